"""What a run's last lines say of stages beyond the dissection: a table a stage, a row a layer."""

from collections.abc import Callable, Collection
from typing import Any

from pipeline.ordering import natural
from pipeline.results import Result, list_results, read_result_table
from pipeline.store import Store
from schemas import ACTIVATION_MAXIMIZATION, DECONVNET, DIAGNOSIS_LAYERS, EVOLUTION_LAYERS

Row = dict[str, Any]


def closing_tables(store: Store, study_id: str, stages: Collection[str], among: Collection[str]) -> list[list[Row]]:
    """The tables of the stages that were asked for.

    Args:
        store: where the results are.
        study_id: of the run.
        stages: what the run was asked for.
        among: ids of the results to look at, and no others: tables of pictures are large.
    """
    results = [one for one in list_results(store, study_id) if one.result_id in among]
    results.sort(key=lambda one: natural(one.layer))
    tables = [
        [row(store, one) for one in results if one.stage == name] for name, row in _ROWS.items() if name in stages
    ]
    return [table for table in tables if table]


def _maximized(store: Store, result: Result) -> Row:
    found = read_result_table(store, result, ACTIVATION_MAXIMIZATION, ["outcome", "ratio"]).to_pandas()
    outcomes = found["outcome"].value_counts()
    return {
        "layer": result.layer,
        "preset": result.settings["preset"],
        "pictures": int(outcomes.get("drawn", 0)),
        "dead": int(outcomes.get("dead", 0)),
        "blocked": int(outcomes.get("relu_blocked", 0)),
        "best / best real image": "" if found["ratio"].isna().all() else f"{found['ratio'].median():.2f}",
    }


def _projected(store: Store, result: Result) -> Row:
    units = read_result_table(store, result, DECONVNET, ["unit"])["unit"]
    return {
        "layer": result.layer,
        "rule": result.settings["rule"],
        "units": len(units.unique()),
        "patterns": len(units),
    }


def _diagnosed(store: Store, result: Result) -> Row:
    (found,) = read_result_table(store, result, DIAGNOSIS_LAYERS).to_pylist()
    return {"layer": result.layer, "verdict": found["verdict"]}


def _followed(store: Store, result: Result) -> Row:
    rows = read_result_table(store, result, EVOLUTION_LAYERS).to_pylist()
    settled = next((row for row in rows if row["is_settled"]), None)
    return {
        "layer": result.layer,
        "checkpoints": len(rows),
        "settled from": "" if settled is None else settled["checkpoint"],
        "cosine of the first with the last": "" if (cosine := rows[0]["cosine_last"]) is None else f"{cosine:.3f}",
        "detectors, first to last": f"{rows[0]['num_detectors']} to {rows[-1]['num_detectors']}",
    }


_ROWS: dict[str, Callable[[Store, Result], Row]] = {
    "activation_maximization": _maximized,
    "deconvnet": _projected,
    "diagnosis": _diagnosed,
    "evolution": _followed,
}

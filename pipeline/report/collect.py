"""Gather what a report shows: for every layer the newest detectors, and the results these were made from."""

import json
import re
from typing import Any

from pipeline.errors import InputError
from pipeline.report.data import LayerData, ReportData
from pipeline.results import Result, list_results, read_result_table
from pipeline.store import Store
from pipeline.study import Study
from schemas import DETECTORS, EXEMPLARS, LAYER_SUMMARY, LAYERS, TABLES, THRESHOLDS


def collect(store: Store, study: Study, wanted: dict[str, dict[str, Any]] | None = None) -> ReportData:
    """The report's data of one study.

    Args:
        store: where it lies.
        study: which.
        wanted: settings by stage that the detectors, and what they were made from, must have; of several
            results that do, the newest counts.

    Raises:
        InputError: nothing has been dissected yet, or not with these settings.
    """
    results = list_results(store, study.study_id)
    by_id = {result.result_id: result for result in results}
    newest: dict[str, Result] = {}
    for result in sorted(results, key=lambda result: result.finished):
        if result.stage == "detectors" and _has_settings(result, by_id, wanted or {}):
            newest[result.layer] = result
    if not newest:
        which = f" with settings {json.dumps(wanted)}" if wanted else " yet"
        raise InputError(f"study {study.study_id} has no detectors{which}: run it with stages=[dissect] first")
    layers = [_layer(store, results, by_id, detectors) for detectors in newest.values()]
    layers.sort(key=lambda layer: depth(layer.layer))
    row = store.read_table(f"tables/studies/study_id={study.study_id}/study.parquet").to_pylist()[0]
    return ReportData({**row, "numerics": json.loads(row["numerics"])}, layers)


def depth(layer: dict[str, Any]) -> tuple:
    """Sorts layers from the input of the network to its output: by what a cell sees, then by name."""
    whole = layer["field_y"] is None
    name = [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", layer["layer"])]
    return (whole, layer["field_y"] or 0, layer["stride_y"] or 0, [str(type(part)) for part in name], name)


def _layer(store: Store, results: list[Result], by_id: dict[str, Result], detectors: Result) -> LayerData:
    tally = by_id[detectors.inputs["tally"]]
    thresholds = by_id[tally.inputs["thresholds"]]
    record = by_id[tally.inputs["record"]]
    summary = _made_from(results, "layer_summary", "detectors", detectors)
    exemplars = _made_from(results, "exemplars", "thresholds", thresholds)
    settings = {
        **thresholds.settings,
        **{name: tally.settings[name] for name in ("mask_order", "upsampling", "null_permutations")},
        **detectors.settings,
    }
    return LayerData(
        layer=read_result_table(store, record, LAYERS).to_pylist()[0],
        summary=_rows(store, summary, LAYER_SUMMARY.name),
        detectors=read_result_table(store, detectors, DETECTORS),
        exemplars=_rows(store, exemplars, EXEMPLARS.name),
        thresholds=read_result_table(store, thresholds, THRESHOLDS),
        settings=settings,
    )


def _has_settings(result: Result, by_id: dict[str, Result], wanted: dict[str, dict[str, Any]]) -> bool:
    """Whether a result, and everything it was made from, has the wanted settings."""
    own = wanted.get(result.stage, {})
    if any(result.settings.get(name) != value for name, value in own.items()):
        return False
    return all(_has_settings(by_id[one], by_id, wanted) for one in result.inputs.values() if one in by_id)


def _made_from(results: list[Result], stage: str, read: str, source: Result) -> Result | None:
    """The newest result of a stage that was made from another."""
    made = [result for result in results if result.stage == stage and result.inputs.get(read) == source.result_id]
    return max(made, key=lambda result: result.finished, default=None)


def _rows(store: Store, result: Result | None, table: str) -> Any:
    return TABLES[table].schema.empty_table() if result is None else read_result_table(store, result, TABLES[table])

"""What a store holds and how far running work is: read from the store, so from any machine."""

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from pipeline.errors import StoreError
from pipeline.events import LONGEST, alive_path
from pipeline.report.collect import depth
from pipeline.results import Result, list_results, read_result_table, staging_path
from pipeline.stages import STAGES
from pipeline.stages.record import PASSES_FILE, Record, read_choice
from pipeline.store import Store
from pipeline.study import list_studies
from schemas import LAYER_SUMMARY, LAYERS, RUNS, THRESHOLDS
from workers.worker import Shard

SILENCE = 4 * LONGEST
"""Seconds without a word after which a run is taken for killed; clocks of machines may differ a little."""


@dataclass(frozen=True)
class Status:
    """Rows of the tables that `raydissect status` prints."""

    studies: list[dict[str, Any]]
    runs: list[dict[str, Any]]
    unfinished: list[dict[str, Any]]
    passes: list[dict[str, Any]]


def read_status(store: Store, last_runs: int = 5) -> Status:
    """Studies with what is published of them, the last runs, and the shards of unfinished work."""
    results = list_results(store)
    studies = [
        {
            "study": study_id,
            "model": study.model,
            "dataset": study.dataset,
            "images": study.num_images,
            "layers": len({result.layer for result in results if result.study_id == study_id}),
            "results": sum(result.study_id == study_id for result in results),
        }
        for study_id, study in sorted(list_studies(store).items())
    ]
    ended = {path.split("/")[-1].removesuffix(".parquet"): path for path in store.list("tables/runs")}
    announced = sorted(path for path in store.list("runs") if path.endswith(".json"))[-last_runs:]
    words = [store.read_json(path) for path in announced]
    now = datetime.now(UTC)
    runs = [_run_row(store, word, ended.get(word["run_id"]), now) for word in words]
    claims = {todo["result_id"]: (word, todo) for word in words for todo in word["todo"]}  # of several, the last
    published = {result.result_id for result in results}
    unfinished = [_unfinished(store, *claim) for result_id, claim in claims.items() if result_id not in published]
    records = {todo["result_id"]: todo["layer"] for _, todo in claims.values() if todo["stage"] == Record.name}
    rows = [_passes_row(store, result_id, layer) for result_id, layer in records.items() if result_id not in published]
    rows += [_passes_row(store, r.result_id, r.layer, r) for r in results if r.stage == Record.name]
    passes = [row for row in rows if row]
    passes.sort(key=lambda row: (row["record"], row["layer"]))
    return Status(studies, runs, unfinished, passes)


def layer_counts(store: Store, study_id: str) -> list[dict[str, Any]]:
    """Detectors, unique concepts and dead units of every layer, by the newest results."""
    results = sorted(list_results(store, study_id), key=lambda result: result.finished)
    newest = {(result.stage, result.layer): result for result in results}
    rows = []
    for (stage, layer), result in newest.items():
        record, thresholds = newest.get(("record", layer)), newest.get(("thresholds", layer))
        if stage != LAYER_SUMMARY.name or record is None or thresholds is None or not record.tables:
            continue
        summary = read_result_table(store, result, LAYER_SUMMARY).to_pandas()
        found = read_result_table(store, record, LAYERS).to_pylist()[0]
        dead = read_result_table(store, thresholds, THRESHOLDS, ["is_dead"]).to_pandas()["is_dead"].sum()
        rows.append(
            {
                **found,
                "units": found["num_units"],
                "detectors": int(summary["num_detectors"].sum()),
                "unique concepts": int(summary["num_unique_concepts"].sum()),
                "dead units": int(dead),
            }
        )
    return sorted(rows, key=depth)


def _run_row(store: Store, word: dict[str, Any], ended: str | None, now: datetime) -> dict[str, Any]:
    row = {"run": word["run_id"], "study": word["study_id"], "started": word["started"][:19]}
    if ended is None:
        return {**row, **_signs_of_life(store, word["run_id"], now)}
    found = store.read_table(ended, [name for name in RUNS.schema.names if name in ("outcome", "computed", "error")])
    record = found.to_pylist()[0]
    error = (record["error"] or "").partition("\n")[0]
    return {**row, "outcome": record["outcome"], "computed": len(record["computed"]), "error": error}


def _signs_of_life(store: Store, run_id: str, now: datetime) -> dict[str, Any]:
    """Whether a run that has not ended is still heard of, and how far it is."""
    try:
        alive = store.read_json(alive_path(run_id))
        silent = (now - datetime.fromisoformat(alive["time"])).total_seconds()
    except (StoreError, ValueError, LookupError):
        return {"outcome": "running, or killed"}
    row = {
        "outcome": "running" if silent < SILENCE else f"killed? silent for {silent:.0f} s",
        "where": f"{alive.get('host', '')} {alive.get('pid', '')}",
        "failed": alive.get("shards_failed", 0),
        "retried": alive.get("shards_retried", 0),
    }
    if "stage" in alive:
        row["progress"] = f"{alive['stage']} {alive['shards_done']}/{alive['shards']}"
    return row


def _passes_row(store: Store, result_id: str, layer: str, result: Result | None = None) -> dict[str, Any] | None:
    """How often the images go through the network for a layer; None if that is not settled, or collected."""
    if not store.exists(staging_path(result_id, PASSES_FILE)):
        return None
    choice = read_choice(store, result_id)
    maps = [file.bytes for file in result.staging if file.path.endswith(".maps.arrow")] if result else []
    staged = f"{sum(maps) / 1e6:,.1f} MB" if maps else ""
    return {"record": result_id, "layer": layer, "passes": choice.passes, "staged": staged, "why": choice.reason}


def _unfinished(store: Store, word: dict[str, Any], todo: dict[str, Any]) -> dict[str, Any]:
    stage = STAGES[todo["stage"]]()
    there = [path.split("/")[-1] for path in store.list(f"staging/{todo['result_id']}")]
    done = sum(name == stage.marker(Shard(name.split(".")[0], 0)) for name in there if name[:1].isdigit())
    row = {"run": word["run_id"], "stage": todo["stage"], "layer": todo["layer"]}
    return {**row, "shards done": done, "shards": todo["shards"]}

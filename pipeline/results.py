"""Results: one stage on one layer of a study, visible only once its manifest is there."""

import hashlib
import json
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
from pydantic import BaseModel, ConfigDict

from pipeline.errors import AlteredError
from pipeline.sealed import gone_is_altered
from pipeline.store import Store, StoredFile, digest, read_parquet
from pipeline.threads import at_once
from schemas import RESULTS, TABLES, Table


class Result(BaseModel):
    """The manifest of a published result: written last, never changed."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    result_id: str
    study_id: str
    stage: str
    version: int
    layer: str
    settings: dict[str, Any]
    inputs: dict[str, str]  # stage, or stage and a suffix -> id of a result that was read
    tables: dict[str, StoredFile]  # table name -> its file
    staging: list[StoredFile]  # what later stages read, until `gc --staging`
    seconds: float  # of work, summed over shards
    finished: datetime

    @property
    def path(self) -> str:
        return result_path(self.study_id, self.stage, self.layer, self.result_id)


def result_path(study_id: str, stage: str, layer: str, result_id: str) -> str:
    return f"results/{study_id}/{stage}/{layer}/{result_id}.json"


def result_id(
    stage: str, version: int, settings: dict[str, Any], layer: str, scope: str, inputs: dict[str, str]
) -> str:
    """Hash of everything a result depends on; `scope` is the study's id, or its forward id."""
    return digest([stage, version, settings, layer, scope, inputs])


def staging_path(result_id: str, name: str) -> str:
    return f"staging/{result_id}/{name}"


def find_result(store: Store, study_id: str, stage: str, layer: str, result_id: str) -> Result | None:
    path = result_path(study_id, stage, layer, result_id)
    return Result.model_validate_json(store.read(path)) if store.exists(path) else None


def list_results(store: Store, study_id: str | None = None) -> list[Result]:
    """Published results of a study or of all, in the order of their paths."""
    folder = f"results/{study_id}" if study_id else "results"
    paths = [path for path in store.list(folder) if path.endswith(".json") and not path.endswith("/study.json")]
    return [Result.model_validate_json(store.read(path)) for path in paths]


def publish(store: Store, result: Result, tables: dict[str, pa.Table]) -> bool:
    """Write a result's tables, then its manifest; whether this call published it.

    A result that is published already is left as it is.

    Args:
        result: the manifest, with `tables` still empty.
        tables: rows by table name, without study_id, result_id and layer, which are added here.
    """
    if store.exists(result.path):
        return False

    def write(name: str) -> StoredFile:
        rows = tables[name]
        for column, value in (("layer", result.layer), ("result_id", result.result_id), ("study_id", result.study_id)):
            rows = rows.append_column(column, pa.repeat(value, len(rows)))
        path = f"tables/{name}/study_id={result.study_id}/layer={result.layer}/{result.result_id}.parquet"
        return store.create_table(path, TABLES[name].cast(rows, result_id=result.result_id))

    files = dict(zip(tables, at_once(write, tables), strict=True))
    whole = result.model_copy(update={"tables": files, "finished": datetime.now(UTC)})
    return store.create(whole.path, whole.model_dump_json(indent=1).encode())


def read_result_table(store: Store, result: Result, table: Table, columns: list[str] | None = None) -> pa.Table:
    """Rows of a result's table.

    Raises:
        AlteredError: the file is gone, or its hash is not the manifest's.
    """
    file = result.tables[table.name]
    with gone_is_altered(store, file.path):
        data = store.read(file.path)
    if hashlib.sha256(data).hexdigest() != file.sha256:
        raise AlteredError(file.path, store.location(file.path), f"its hash is not the one that {result.path} names")
    return read_parquet(pa.BufferReader(data), columns)


def results_table(results: list[Result]) -> pa.Table:
    """The `results` table."""
    rows = [
        {
            "study_id": result.study_id,
            "result_id": result.result_id,
            "layer": result.layer,
            "stage": result.stage,
            "settings": json.dumps(result.settings, sort_keys=True),
            "inputs": sorted(result.inputs.values()),
            "rows": sum(file.rows for file in result.tables.values()),
            "bytes": sum(file.bytes for file in result.tables.values()),
            "seconds": result.seconds,
            "finished": result.finished,
        }
        for result in results
    ]
    return RESULTS.cast(pa.Table.from_pylist(rows, schema=RESULTS.schema))

"""`raydissect query`: DuckDB over the tables of the published results."""

import json
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import InputError
from pipeline.report.download import write_csv
from pipeline.store import Store
from pipeline.views import open_tables


def query(store: Store, sql: str) -> pa.Table:
    """Run one SQL statement; every table of the contract is a view of that name.

    Nothing but these tables can be read: DuckDB's access to files and the network is off.

    Raises:
        InputError: DuckDB refuses the statement; its message names the place.
    """
    with duckdb.connect() as connection:
        for name, table in open_tables(store).items():
            connection.register(name, table)
        connection.execute("SET enable_external_access = false")
        connection.execute("SET lock_configuration = true")
        try:
            return connection.sql(sql).to_arrow_table()
        except duckdb.Error as error:
            raise InputError(f"the query failed: {error}") from error


def write_answer(answer: pa.Table, path: Path, kind: str) -> None:
    """Write an answer as csv, json or parquet; in CSV no cell starts a formula."""
    if kind == "parquet":
        pq.write_table(answer, path, compression="zstd")
    elif kind == "json":
        path.write_text(json.dumps(answer.to_pylist(), default=_jsonable, indent=1, ensure_ascii=False) + "\n")
    else:
        write_csv(path, answer)


def _jsonable(value: Any) -> Any:
    if isinstance(value, bytes):
        return f"<{len(value)} bytes>"
    return value.isoformat() if hasattr(value, "isoformat") else str(value)

"""`raydissect query`: DuckDB over the tables of the published results."""

import json
from decimal import Decimal
from itertools import chain, count
from math import isfinite
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import InputError, StoreError
from pipeline.report.download import write_csv
from pipeline.store import Store
from pipeline.views import open_tables


def query(store: Store, sql: str) -> pa.Table:
    """Run one SQL statement; every table of the contract is a view of that name.

    Nothing but these tables can be read, nothing written, no extension loaded: DuckDB's access to files and the
    network is off, and stays off. Who asks could read this machine's files by other means; but a statement may come
    from a notebook or a colleague, and must not be able to do more than to ask. Answers are written by `write_answer`.

    Returns:
        The answer; of columns of one name, the second is called `name_1`, the third `name_2`.

    Raises:
        InputError: DuckDB refuses the statement; its message names the place.
        StoreError: a table's file cannot be read.
    """
    with duckdb.connect() as connection:
        try:
            for name, table in open_tables(store).items():
                connection.register(name, table)
            for setting in ("enable_external_access = false", "python_enable_replacements = false"):
                connection.execute(f"SET {setting}")
            connection.execute("SET lock_configuration = true")
            answer = connection.sql(sql)
            if answer is None:
                raise InputError(f"the query has no answer: {sql!r} is no statement that selects anything")
            return _with_distinct_names(answer.to_arrow_table())
        except duckdb.Error as error:
            raise InputError(f"the query failed: {error}") from error
        except OSError as error:
            raise StoreError(f"a table in {store.url} cannot be read: {error}") from error


def write_answer(answer: pa.Table, path: Path, kind: str) -> None:
    """Write an answer as csv, json or parquet; in CSV no cell starts a formula.

    Parquet keeps everything. CSV and JSON hold pictures as their size; JSON has null for NaN and infinity.

    Raises:
        InputError: the file cannot be written.
    """
    try:
        if kind == "parquet":
            pq.write_table(answer, path, compression="zstd")
        elif kind == "json":
            rows = [{name: _to_json(value) for name, value in row.items()} for row in answer.to_pylist()]
            path.write_text(json.dumps(rows, indent=1, ensure_ascii=False, allow_nan=False) + "\n", "utf-8")
        else:
            write_csv(path, pa.table([_without_bytes(column) for column in answer.columns], answer.column_names))
    except OSError as error:
        raise InputError(f"cannot write the answer to {path}: {error}") from error


def _with_distinct_names(answer: pa.Table) -> pa.Table:
    names: list[str] = []
    for name in answer.column_names:
        candidates = chain([name], (f"{name}_{number}" for number in count(1)))
        names.append(next(one for one in candidates if one not in names))
    return answer.rename_columns(names)


def _to_json(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _to_json(part) for name, part in value.items()}
    if isinstance(value, list):
        return [_to_json(part) for part in value]
    if isinstance(value, bytes):
        return f"<{len(value)} bytes>"
    if isinstance(value, Decimal):  # what DuckDB makes of a sum of int64
        return int(value) if value == value.to_integral_value() else float(value)
    if isinstance(value, float):
        return value if isfinite(value) else None
    if value is None or isinstance(value, (str, int)):
        return value
    return value.isoformat() if hasattr(value, "isoformat") else str(value)


def _without_bytes(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """A column as it is, or where bytes are in it, as text with their size."""
    if not pa.types.is_nested(column.type) and not pa.types.is_binary(column.type):
        return column
    cells = [_to_json(value) for value in column.to_pylist()]
    texts = [cell if cell is None or isinstance(cell, str) else json.dumps(cell, ensure_ascii=False) for cell in cells]
    return pa.chunked_array([pa.array(texts, pa.string())])

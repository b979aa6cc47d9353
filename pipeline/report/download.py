"""The tables of a report as CSV files that no spreadsheet takes for formulas."""

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")
"""Also the full-width ones, which spreadsheets of some languages take for the others."""


def safe_cell(value: Any) -> Any:
    """A cell's value; text that a spreadsheet could take for a formula gets a leading apostrophe."""
    if isinstance(value, str) and value.startswith(FORMULA_STARTS):
        return f"'{value}"
    return value


def write_csv(path: Path, table: pa.Table) -> None:
    """Write a table as CSV: UTF-8, a header of column names, empty cells for nulls."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([safe_cell(name) for name in table.column_names])
        for batch in table.to_batches(max_chunksize=1024):
            columns = [column.to_pylist() for column in batch.columns]
            writer.writerows([safe_cell(value) for value in row] for row in zip(*columns, strict=True))


def plain_columns(table: pa.Table) -> pa.Table:
    """A table without its pictures and lists; float32 as the shortest decimals that read back as the same."""
    table = table.select([field.name for field in table.schema if not pa.types.is_nested(field.type)])
    for place, field in enumerate(table.schema):
        if pa.types.is_float32(field.type):
            values = [None if value is None else float(str(np.float32(value))) for value in table[place].to_pylist()]
            table = table.set_column(place, field.name, pa.array(values, pa.float64()))
    return table

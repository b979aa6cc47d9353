"""Rows of tables and numbers in them, as several pages need them."""

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, TypeVar

import pyarrow as pa

Item = TypeVar("Item")


def iterate_rows(table: pa.Table) -> Iterator[dict[str, Any]]:
    """The rows, each made a Python object only when it is its turn."""
    for i in range(table.num_rows):
        yield table.slice(i, 1).to_pylist()[0]


def results_of(*tables: pa.Table) -> list[str]:
    """The ids of the results that rows belong to."""
    return sorted({one for table in tables for one in table["result_id"].to_pylist()})


def finite(values: Iterable[float | None]) -> list[float]:
    """The values that are there and finite."""
    return [value for value in values if value is not None and math.isfinite(value)]


def spread(items: Sequence[Item], count: int) -> list[Item]:
    """At most `count` items, spread evenly."""
    count = min(count, len(items))
    return [items[i * len(items) // count] for i in range(count)]

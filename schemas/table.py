"""A table: a name, a version, and a pyarrow schema with a description on every column."""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

PICTURE = pa.struct([pa.field("bytes", pa.binary()), pa.field("path", pa.string())])
"""An encoded image, as Hugging Face `datasets` stores images."""


def column(name: str, kind: pa.DataType, description: str, nullable: bool = False) -> pa.Field:
    """One documented column; non-null unless said."""
    return pa.field(name, kind, nullable=nullable, metadata={"description": description})


RESULT_KEY = (
    column("study_id", pa.string(), "the study: network weights x data set x numerics"),
    column("result_id", pa.string(), "the result this row belongs to: one stage on one layer"),
    column("layer", pa.string(), "dotted module name"),
)
UNIT = column("unit", pa.int32(), "channel of the layer, from 0")
SPLIT = column("split", pa.string(), "train, val, ...: as the data set's index says")


@dataclass(frozen=True)
class Table:
    """A stored table.

    Args:
        name: the table's name, also of its folder and of its view in `query`.
        version: raised when a column is added; columns are never changed.
        schema: the columns, in order.
        sort: the columns its rows are sorted by.
    """

    name: str
    version: int
    schema: pa.Schema
    sort: tuple[str, ...] = ()

    def cast(self, table: pa.Table, **metadata: str) -> pa.Table:
        """Order, type and sort the columns of `table`; this is the validation before a write.

        Args:
            table: columns in any order, of any type that converts without loss.
            metadata: written into the file's key-value metadata beside the schema version.

        Raises:
            ValueError: a column is missing or unknown, or a value is null where none may be, or does
                not fit its type.
        """
        missing = [name for name in self.schema.names if name not in table.column_names]
        extra = [name for name in table.column_names if name not in self.schema.names]
        if missing or extra:
            raise ValueError(f"table {self.name} has missing columns {missing}, unknown columns {extra}")
        try:
            cast = table.select(self.schema.names).cast(self.schema)
        except (pa.ArrowException, ValueError) as error:
            raise ValueError(f"table {self.name} does not fit its schema: {error}") from error
        for field in self.schema:
            if problem := _loss(table[field.name], cast[field.name]):
                raise ValueError(f"table {self.name} does not fit its schema: {field.name} {problem}")
            if not field.nullable and cast[field.name].null_count:
                raise ValueError(f"table {self.name} has nulls in {field.name}, which allows none")
        if self.sort:
            cast = _sorted(cast, self.sort)
        return cast.replace_schema_metadata({"table": self.name, "schema_version": str(self.version), **metadata})


def _sorted(table: pa.Table, names: tuple[str, ...]) -> pa.Table:
    """The rows in the order of some columns, ties as they came; many times as fast as `sort_by` where they are in order."""
    keys = [_ranks(table[name]) for name in names]
    order = np.lexsort(keys[::-1])
    return table if (order[1:] > order[:-1]).all() else table.take(pa.array(order))


def _ranks(column: pa.ChunkedArray) -> np.ndarray:
    """Numbers in the order of a column's values, which are numbers or text."""
    if not _is_text(column.type):
        return column.to_numpy()
    coded = column.combine_chunks().dictionary_encode()
    return np.argsort(np.argsort(coded.dictionary.to_numpy(zero_copy_only=False)))[coded.indices.to_numpy()]


def _loss(given: pa.ChunkedArray, cast: pa.ChunkedArray) -> str | None:
    """What pyarrow's own cast lets pass: text for numbers and numbers for text, and infinities made of large floats."""
    if not pa.types.is_null(given.type) and _is_text(given.type) != _is_text(cast.type):
        return f"is {given.type}, must be {cast.type}"
    floating = pa.types.is_floating(cast.type) and pa.types.is_floating(given.type)
    if floating and np.isinf(cast.to_numpy()).sum() > np.isinf(given.to_numpy()).sum():
        return f"has values too large for {cast.type}"
    return None


def _is_text(kind: pa.DataType) -> bool:
    values = kind.value_type if pa.types.is_dictionary(kind) else kind
    return pa.types.is_string(values) or pa.types.is_large_string(values)

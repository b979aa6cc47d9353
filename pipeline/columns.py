"""Columns of tables as tensors and arrays."""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Int64
from torch import Tensor


def to_tensor(table: pa.Table, name: str, kind: type | str | None = None) -> Tensor:
    """A copy of a column without nulls; `kind` is a numpy type to convert to."""
    return torch.from_numpy(np.array(table[name].to_numpy(), dtype=kind))


def places_in(names: Sequence[str], column: pa.ChunkedArray) -> Int64[np.ndarray, " row"]:
    """Where each of a column's strings is in a list, 0 for a null."""
    coded = column.combine_chunks().dictionary_encode()
    places = np.array([*map(list(names).index, coded.dictionary.to_pylist()), 0], dtype=np.int64)
    return places[coded.indices.fill_null(len(places) - 1).to_numpy()]

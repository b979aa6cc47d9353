"""Columns of tables as tensors."""

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor


def to_tensor(table: pa.Table, name: str, kind: type | str | None = None) -> Tensor:
    """A copy of a column without nulls; `kind` is a numpy type to convert to."""
    return torch.from_numpy(np.array(table[name].to_numpy(), dtype=kind))

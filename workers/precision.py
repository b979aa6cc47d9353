"""In which type and memory layout the network runs, and what its float32 may be rounded to.

All of it can move the last bits of an activation, so it is part of the numerics. PyTorch rounds the
convolutions of a GPU to TF32 (10 bits of mantissa) unless told otherwise; here only `tf32` does.
"""

import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Literal

import torch

Precision = Literal["float32", "tf32", "float16", "bfloat16"]
MemoryFormat = Literal["contiguous", "channels_last"]

DTYPES: dict[Precision, torch.dtype] = {
    "float32": torch.float32,
    "tf32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
}
"""Of weights and input; activations are handed on as float32."""

MEMORY_FORMATS: dict[MemoryFormat, torch.memory_format] = {
    "contiguous": torch.contiguous_format,
    "channels_last": torch.channels_last,
}

_SWITCHING = threading.RLock()


@contextmanager
def rounding(precision: Precision) -> Iterator[None]:
    """Round float32 multiplications to TF32 for `tf32`, and to nothing otherwise; before and after it is as it was.

    The switches are the process's: one thread at a time, the others wait.
    """
    backends = torch.backends
    cpu: Any = backends.mkldnn  # no stubs for these
    gpu: Any = backends.cudnn
    switches = (backends.cuda.matmul, gpu.conv, cpu.matmul, cpu.conv)
    with _SWITCHING, ExitStack() as stack:
        for switch in switches:
            stack.callback(setattr, switch, "fp32_precision", switch.fp32_precision)
            switch.fp32_precision = "tf32" if precision == "tf32" else "ieee"
        yield

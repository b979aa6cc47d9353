"""Seconds of some work in this process, in float32 without TF32."""

from collections.abc import Callable
from time import perf_counter

import torch

from workers.precision import rounding


def timed(threads: int, device: str, work: Callable[[], object]) -> float:
    """Do some work with so many torch threads, and wait until the device has done it."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with rounding("float32"):
            start = perf_counter()
            work()
            if device == "cuda":
                torch.cuda.synchronize()
            return perf_counter() - start
    finally:
        torch.set_num_threads(before)

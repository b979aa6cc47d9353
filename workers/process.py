"""What every executor needs to work on a shard: how it can fail, and on what it ran. No Ray here."""

import os
import traceback
from dataclasses import dataclass

import torch

from workers.worker import Shard, ShardReport, Stopwatch

OUT_OF_MEMORY = "OutOfMemory"
"""What a failure is called that less work at a time would cure."""

BATCH_SIZE = "data.batch_size at ingest (images that go through the network at a time; data.shard_size: in memory)"


@dataclass(frozen=True)
class Failure:
    """An error as text: it travels between processes, whatever its class needs to be built.

    Attributes:
        shard: the shard that failed; None if the worker could not be built.
        error: the class of the error.
        message: its message.
        frames: where it was raised, as in a traceback.
        exit_code: the one the error asks for.
        altered: the path of the stored file that is not what was written, where that is the error.
    """

    shard: Shard | None
    error: str
    message: str
    frames: str = ""
    exit_code: int = 1
    altered: str = ""

    @classmethod
    def of(cls, error: BaseException, shard: Shard | None = None) -> "Failure":
        """The failure that an exception is, with its causes in `frames`; one kind for all that memory can be short."""
        short = _is_out_of_memory(error)
        return cls(
            shard=shard,
            error=OUT_OF_MEMORY if short else type(error).__name__,
            message=f"{_first_sentence(error)}. {_less_memory(error)}" if short else str(error),
            frames="".join(traceback.format_exception(error)).rstrip(),
            exit_code=getattr(error, "exit_code", 1),
            altered=getattr(error, "altered", ""),
        )

    def __str__(self) -> str:
        return f"{self.error}: {self.message}"


def _is_out_of_memory(error: BaseException) -> bool:
    """Torch raises a RuntimeError of no kind of its own where the CPU's memory ends."""
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "DefaultCPUAllocator" in str(error)


def _first_sentence(error: BaseException) -> str:
    text = str(error) or type(error).__name__
    return text.partition("DefaultCPUAllocator: ")[2] or text.partition(". ")[0].rstrip(".")


def _less_memory(error: BaseException) -> str:
    if isinstance(error, torch.OutOfMemoryError):
        return f"Lower {BATCH_SIZE}, or let fewer workers share a GPU (raise cluster.gpus_per_worker)"
    return f"Lower cluster.workers (or cluster.window, to 1), and if one worker is too many, {BATCH_SIZE}"


def report_of(shard: Shard, watch: Stopwatch, bytes_written: int, worker: str, hardware: str) -> ShardReport:
    """The report of a shard that was read, computed and written."""
    return ShardReport(
        shard=shard,
        read_seconds=watch.seconds["read"],
        compute_seconds=watch.seconds["compute"],
        write_seconds=watch.seconds["write"],
        bytes_written=bytes_written,
        worker=worker,
        hardware=hardware,
    )


def cores_here() -> int:
    """How many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):  # not on macOS
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def describe_hardware() -> str:
    """What can move the last bit of a forward pass here: the CPU's capability, and the GPU if any."""
    capability = torch.backends.cpu.get_cpu_capability()
    if not torch.cuda.is_available():
        return f"cpu {capability}"
    return f"cpu {capability}, {torch.cuda.get_device_name()}"

"""The one shape of work: a worker takes a shard, and leaves whole files behind.

A stage builds a `Worker` once an actor; the actor (or the inline executor) then calls it shard by
shard. Reading is apart from computing so that an executor can read the next shard while the
device is busy with this one.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any


@dataclass(frozen=True)
class Shard:
    """One piece of a job: what a worker is given.

    Attributes:
        name: unique in its job; names its files and log lines.
        index: its place in the order of the data set.
        path: its file in the store, where it has one.
        rows: how many images it holds.
        first_image: image_id of the first.
        layers: the layers to work on; only those whose output is missing.
    """

    name: str
    index: int
    path: str = ""
    rows: int = 0
    first_image: int = 0
    layers: tuple[str, ...] = ()


@dataclass(frozen=True)
class Worker:
    """What a stage builds: three functions that run one after another for every shard.

    Attributes:
        read: shard -> what `compute` needs; may run on another thread, ahead of time.
        compute: that -> outputs, on the device.
        write: shard, outputs -> bytes written; each file appears whole or not at all.
        alone: whether `compute` must not run for two shards at once, as one that runs the network.
    """

    read: Callable[[Shard], Any]
    compute: Callable[[Any], Any]
    write: Callable[[Shard, Any], int]
    alone: bool = True

    def __call__(self, shard: Shard) -> Any:
        """Read and compute, without writing: what tests call."""
        return self.compute(self.read(shard))


@dataclass(frozen=True)
class ShardReport:
    """What happened to one shard: seconds by phase, bytes written, where it ran."""

    shard: Shard
    read_seconds: float
    compute_seconds: float
    write_seconds: float
    bytes_written: int
    worker: str = "inline"
    hardware: str = ""

    @property
    def seconds(self) -> float:
        return self.read_seconds + self.compute_seconds + self.write_seconds


@dataclass
class Stopwatch:
    """Seconds by phase of one shard."""

    seconds: dict[str, float] = field(default_factory=dict)

    def time(self, phase: str, function: Callable[..., Any], *arguments: Any) -> Any:
        """Call `function` and add its wall seconds to `phase`."""
        start = perf_counter()
        try:
            return function(*arguments)
        finally:
            self.seconds[phase] = self.seconds.get(phase, 0.0) + perf_counter() - start

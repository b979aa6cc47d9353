"""Executors: run a stage's shards, here (`cluster=inline`) or on a Ray cluster (`cluster=ray`).

Both call the same worker on the same shards with the same number of torch threads, so their tables
are identical. Only `pipeline.ray_executor` imports Ray, and only `cluster=ray` imports that.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol, Self

import torch

from pipeline.events import OnEvent, ignore
from pipeline.ledger import Build, Ledger, OnReport, build_failed
from pipeline.settings import Cluster
from workers.process import Failure, cores_here, describe_hardware, report_of
from workers.worker import Shard, ShardReport, Stopwatch, Worker

logger = logging.getLogger("raydissect")

MOST_LANES = 4
"""Shards that this process works on at a time at the most: each takes memory, and Python lets one thread run."""


class Executor(Protocol):
    """Runs shards; a context manager, so that several runs share what it started."""

    def __enter__(self) -> Self: ...

    def __exit__(self, *error: Any) -> None: ...

    def run(
        self,
        build: Build,
        shards: Sequence[Shard],
        *,
        title: str,
        on_report: OnReport | None = None,
        on_event: OnEvent = ignore,
    ) -> list[ShardReport]:
        """Work on every shard; what they leave behind is in the store.

        Args:
            build: makes the worker, once a process; must pickle, so it cannot hold a model.
            shards: the work; their names must differ.
            title: names the work in log lines, metrics and errors.
            on_report: called in this process as each shard is done.
            on_event: told of every shard that is done, failed or retried, and of every worker that is lost.

        Returns:
            One report a shard, in the order of their indices.

        Raises:
            ShardsFailed: some shards raised, or were quarantined; all others are done.
            NoWorkersError: no worker can be had or built.
        """
        ...


def make_executor(cluster: Cluster) -> Executor:
    """The executor that the settings ask for; nothing is started before it has a shard to run."""
    if cluster.executor == "inline":
        return InlineExecutor(cluster)
    from pipeline.ray_executor import RayExecutor  # machines without Ray have cluster=inline

    return RayExecutor(cluster)


class InlineExecutor:
    """One worker in this process: no Ray, breakpoints work.

    Reads the next shard and writes the one before while it computes, each on a thread of its own. Where computing
    need not be alone, it works on as many shards at a time as there are cores for. With `cluster.window=1` it does
    one thing at a time.
    """

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: Any) -> None: ...

    def run(
        self,
        build: Build,
        shards: Sequence[Shard],
        *,
        title: str,
        on_report: OnReport | None = None,
        on_event: OnEvent = ignore,
    ) -> list[ShardReport]:
        """See `Executor.run`."""
        if not shards:
            return []
        ledger = Ledger(title, on_report, on_event)
        threads = self._cluster.threads
        with _torch_threads(threads):
            try:
                worker = build()
            except Exception as error:
                raise build_failed(title, [Failure.of(error)]) from error
            phases = _Phases(worker, describe_hardware())
            if self._cluster.window == 1:
                for shard in shards:
                    ledger.add(phases.write(phases.compute(phases.read(shard))))
            elif worker.alone:
                with _helpers("reader", threads) as reader, _helpers("writer", threads) as writer:
                    for outcome in _overlap(phases, shards, reader, writer):
                        ledger.add(outcome)
            else:
                for outcome in _side_by_side(phases, shards, _lanes(threads), threads):
                    ledger.add(outcome)
        return ledger.close()


def _overlap(
    phases: "_Phases", shards: Sequence[Shard], reader: ThreadPoolExecutor, writer: ThreadPoolExecutor
) -> Iterator[ShardReport | Failure]:
    """Compute shard by shard in this thread; never more than one is read ahead, and one being written."""
    upcoming = reader.submit(phases.read, shards[0])
    written: Future[ShardReport | Failure] | None = None
    for following in [*shards[1:], None]:
        shard = upcoming.result()
        if following is not None:
            upcoming = reader.submit(phases.read, following)
        phases.compute(shard)
        if written is not None:
            yield written.result()
        written = writer.submit(phases.write, shard)
    if written is not None:
        yield written.result()


def _side_by_side(
    phases: "_Phases", shards: Sequence[Shard], lanes: int, threads: int
) -> Iterator[ShardReport | Failure]:
    """Work on several shards at a time, each from its first phase to its last on one thread."""
    with _helpers("lane", threads, lanes) as pool:
        try:
            yield from pool.map(lambda shard: phases.write(phases.compute(phases.read(shard))), shards)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)  # after an interrupt, those that have not begun


def _lanes(threads: int) -> int:
    return min(max(1, cores_here() // threads), MOST_LANES)


@dataclass
class _Underway:
    """A shard between phases, with what the last one made of it, or why it goes no further."""

    shard: Shard
    watch: Stopwatch = field(default_factory=Stopwatch)
    value: Any = None
    failure: Failure | None = None

    def advance(self, phase: str, function: Callable[..., Any], *arguments: Any) -> "_Underway":
        if self.failure is None:
            try:
                self.value = self.watch.time(phase, function, *arguments)
            except Exception as error:
                self.value, self.failure = None, Failure.of(error, self.shard)
        return self


class _Phases:
    """The three phases of a worker, each of which may run on another thread."""

    def __init__(self, worker: Worker, hardware: str) -> None:
        self._worker, self._hardware = worker, hardware

    def read(self, shard: Shard) -> _Underway:
        return _Underway(shard).advance("read", self._worker.read, shard)

    def compute(self, one: _Underway) -> _Underway:
        return one.advance("compute", self._worker.compute, one.value)

    def write(self, one: _Underway) -> ShardReport | Failure:
        one.advance("write", self._worker.write, one.shard, one.value)
        return one.failure or report_of(one.shard, one.watch, one.value, "inline", self._hardware)


def _helpers(name: str, threads: int, number: int = 1) -> ThreadPoolExecutor:
    """Threads of this process; torch counts its own for each thread that calls it."""
    return ThreadPoolExecutor(number, name, torch.set_num_threads, (threads,))


@contextmanager
def _torch_threads(threads: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)

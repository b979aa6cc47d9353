"""Executors: run a stage's shards, here (`cluster=inline`) or on a Ray cluster (`cluster=ray`).

Both call the same worker on the same shards with the same number of torch threads, so their tables
are identical. Only `pipeline.ray_executor` imports Ray, and only `cluster=ray` imports that.
"""

import logging
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, Protocol, Self

import torch

from pipeline.ledger import Build, Ledger, OnReport, build_failed
from pipeline.settings import Cluster
from workers.process import Failure, describe_hardware, report_of
from workers.worker import Shard, ShardReport, Stopwatch, Worker

logger = logging.getLogger("raydissect")


class Executor(Protocol):
    """Runs shards; a context manager, so that several runs share what it started."""

    def __enter__(self) -> Self: ...

    def __exit__(self, *error: Any) -> None: ...

    def run(
        self, build: Build, shards: Sequence[Shard], *, title: str, on_report: OnReport | None = None
    ) -> list[ShardReport]:
        """Work on every shard; what they leave behind is in the store.

        Args:
            build: makes the worker, once a process; must pickle, so it cannot hold a model.
            shards: the work; their names must differ.
            title: names the work in log lines, metrics and errors.
            on_report: called in this process as each shard is done.

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
    """One worker in this process: no Ray, breakpoints work. Reads the next shard while computing."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: Any) -> None: ...

    def run(
        self, build: Build, shards: Sequence[Shard], *, title: str, on_report: OnReport | None = None
    ) -> list[ShardReport]:
        """See `Executor.run`."""
        if not shards:
            return []
        ledger = Ledger(title, on_report)
        threads = self._cluster.threads
        with _torch_threads(threads):
            try:
                worker = build()
            except Exception as error:
                raise build_failed(title, [Failure.of(error)]) from error
            hardware = describe_hardware()
            reader = ThreadPoolExecutor(1, "reader", torch.set_num_threads, (threads,))
            with reader:
                for shard, watch, batch in self._read_ahead(reader, worker, shards):
                    ledger.add(_finish(worker, shard, watch, batch, hardware))
        return ledger.close()

    def _read_ahead(
        self, reader: ThreadPoolExecutor, worker: Worker, shards: Sequence[Shard]
    ) -> Iterator[tuple[Shard, Stopwatch, Future[Any]]]:
        def submit(shard: Shard) -> tuple[Shard, Stopwatch, Future[Any]]:
            watch = Stopwatch()
            return shard, watch, reader.submit(watch.time, "read", worker.read, shard)

        if self._cluster.window == 1:
            yield from map(submit, shards)
            return
        upcoming = submit(shards[0])
        for shard in shards[1:]:
            current = upcoming
            current[2].exception()  # one shard ahead, no more
            upcoming = submit(shard)
            yield current
        yield upcoming


def _finish(worker: Worker, shard: Shard, watch: Stopwatch, batch: Future[Any], hardware: str) -> ShardReport | Failure:
    try:
        outputs = watch.time("compute", worker.compute, batch.result())
        written = watch.time("write", worker.write, shard, outputs)
    except Exception as error:
        return Failure.of(error, shard)
    return report_of(shard, watch, written, "inline", hardware)


@contextmanager
def _torch_threads(threads: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)

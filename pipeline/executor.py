"""Executors: run a stage's shards, here (`cluster=inline`) or on a Ray cluster (`cluster=ray`).

Both call the same worker on the same shards with the same number of torch threads, so their tables
are identical. Only `pipeline.ray_executor` imports Ray, and only `cluster=ray` imports that.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, Protocol, Self

import torch

from pipeline.errors import BAD_INPUT, FAILED, NoWorkersError, RaydissectError, ShardsFailed
from pipeline.settings import Cluster
from workers.process import Failure, describe_hardware, report_of
from workers.worker import Shard, ShardReport, Stopwatch, Worker

Build = Callable[[], Worker]
OnReport = Callable[[ShardReport], None]

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


class Ledger:
    """What has become of the shards of one run."""

    def __init__(self, title: str, on_report: OnReport | None) -> None:
        self.title = title
        self.reports: list[ShardReport] = []
        self.failures: list[Failure] = []
        self._on_report = on_report

    def add(self, outcome: ShardReport | Failure) -> None:
        """Take down, and log, how a shard ended."""
        if isinstance(outcome, Failure):
            logger.error("%s: shard %s failed: %s", self.title, _name(outcome), outcome)
            self.failures.append(outcome)
            return
        logger.info(
            "%s: shard %s: read %.2f s, compute %.2f s, write %.2f s (%s)",
            self.title,
            outcome.shard.name,
            outcome.read_seconds,
            outcome.compute_seconds,
            outcome.write_seconds,
            outcome.worker,
        )
        self.reports.append(outcome)
        if self._on_report:
            self._on_report(outcome)

    def close(self) -> list[ShardReport]:
        """The reports in order, or `ShardsFailed` with every failure."""
        if not self.failures:
            return sorted(self.reports, key=lambda report: report.shard.index)
        failures = sorted(self.failures, key=lambda failure: failure.shard.index if failure.shard else -1)
        total = len(failures) + len(self.reports)
        lines = [f"  {_name(failure)}: {failure}" for failure in failures]
        error = ShardsFailed(
            f"{self.title}: {len(failures)} of {total} shards failed; the others are done and kept, "
            "and the same command goes on from there:\n" + "\n".join(lines)
        )
        error.failures = tuple(failures)
        _explain(error, failures)
        raise error


def _explain(error: RaydissectError, failures: Sequence[Failure]) -> None:
    """Give an error the failures' tracebacks as notes (each once), and their exit code if they agree."""
    error.exit_code = BAD_INPUT if {failure.exit_code for failure in failures} == {BAD_INPUT} else FAILED
    seen: set[str] = set()
    for failure in failures:
        where = failure.frames.removesuffix(str(failure))
        if where and where not in seen:
            seen.add(where)
            error.add_note(f"\nShard {_name(failure)}:\n{failure.frames}")


def build_failed(title: str, failures: Sequence[Failure]) -> NoWorkersError:
    """The error of a run none of whose workers could be built; the same cause is told once."""
    causes = {str(failure): failure for failure in failures}
    error = NoWorkersError(f"{title}: no worker could be built: " + "\n".join(causes))
    _explain(error, list(causes.values()))
    return error


def _name(failure: Failure) -> str:
    return failure.shard.name if failure.shard else "(none: building the worker)"


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

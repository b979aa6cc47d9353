"""What becomes of the shards of one run: reports, log lines, failures and the error they end in."""

import logging
from collections.abc import Callable, Sequence

from pipeline.errors import BAD_INPUT, FAILED, NoWorkersError, RaydissectError, ShardsFailed
from pipeline.events import OnEvent, ignore
from workers.process import Failure
from workers.worker import Shard, ShardReport, Worker

Build = Callable[[], Worker]
OnReport = Callable[[ShardReport], None]

logger = logging.getLogger("raydissect")


class Ledger:
    """What has become of the shards of one run."""

    def __init__(self, title: str, on_report: OnReport | None, on_event: OnEvent = ignore) -> None:
        self.title = title
        self.reports: list[ShardReport] = []
        self.failures: list[Failure] = []
        self._on_report, self._on_event = on_report, on_event

    def add(self, outcome: ShardReport | Failure) -> None:
        """Take down, and log, how a shard ended."""
        if isinstance(outcome, Failure):
            logger.error("%s: shard %s failed: %s", self.title, _name(outcome), outcome)
            self._on_event(
                "shard_failed", stage=self.title, shard=_name(outcome), error=outcome.error, message=outcome.message
            )
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
        self._on_event(
            "shard_done",
            stage=self.title,
            shard=outcome.shard.name,
            images=outcome.shard.rows,
            read_seconds=round(outcome.read_seconds, 6),
            compute_seconds=round(outcome.compute_seconds, 6),
            write_seconds=round(outcome.write_seconds, 6),
            bytes_written=outcome.bytes_written,
            worker=outcome.worker,
        )
        self.reports.append(outcome)
        if self._on_report:
            self._on_report(outcome)

    def retry(self, shard: Shard, reason: str) -> None:
        """Take down that a shard goes to another worker, as the one that had it is gone."""
        self._on_event("shard_retried", stage=self.title, shard=shard.name, reason=reason)

    def lose(self, worker: str, reason: str) -> None:
        """Take down that a worker is gone."""
        self._on_event("worker_lost", stage=self.title, worker=worker, reason=reason)

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
    error.failures = tuple(causes.values())
    _explain(error, list(causes.values()))
    return error


def _name(failure: Failure) -> str:
    return failure.shard.name if failure.shard else "(none: building the worker)"

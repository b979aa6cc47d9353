"""The one Ray actor: reads the next shard on another thread while the current one is computed.

The executor gives it `max_concurrency` threads and as many shards; a lock lets one of them compute.
It holds a worker and nothing that would be missed: whatever is worth keeping is in the store.
"""

import pickle
import threading

import torch
from ray.util.metrics import Counter

from workers.process import Failure, describe_hardware, report_of
from workers.worker import Shard, ShardReport, Stopwatch, Worker


class ShardActor:
    """A process that works on shards; it becomes useful with `start`.

    Errors of the stage come back as a `Failure`, never as an exception: what is raised here means that
    Ray or the process is at fault.
    """

    def __init__(self) -> None:
        self._computing = threading.Lock()

    def start(self, build: bytes, stage: str, name: str, threads: int) -> str | Failure:
        """Build the worker, in place of the one there was.

        Args:
            build: a pickled function without arguments that returns a `Worker`; from the driver.
            stage: what metrics are tagged with.
            name: what reports call this actor.
            threads: torch threads to compute with.

        Returns:
            The hardware it found, or why the worker could not be built.
        """
        self._name, self._threads = name, threads
        torch.set_num_threads(threads)
        try:
            self._worker: Worker = pickle.loads(build)()
        except Exception as error:
            return Failure.of(error)
        self._hardware = describe_hardware()
        self._metrics = _Metrics(stage)
        return self._hardware

    def process(self, shard: Shard) -> ShardReport | Failure:
        """Read, compute and write one shard; computing waits until no other shard computes."""
        torch.set_num_threads(self._threads)  # counts for the calling thread only
        watch = Stopwatch()
        try:
            batch = watch.time("read", self._worker.read, shard)
            with self._computing:
                outputs = watch.time("compute", self._worker.compute, batch)
            written = watch.time("write", self._worker.write, shard, outputs)
        except Exception as error:
            return Failure.of(error, shard)
        report = report_of(shard, watch, written, self._name, self._hardware)
        self._metrics.count(report)
        return report


class _Metrics:
    """What Ray exports for Prometheus, by stage."""

    def __init__(self, stage: str) -> None:
        self._stage = stage
        self._shards = Counter("raydissect_shards", "Shards done", tag_keys=("stage",))
        self._images = Counter("raydissect_images", "Images in the shards done", tag_keys=("stage",))
        self._bytes = Counter("raydissect_written_bytes", "Bytes written", tag_keys=("stage",))
        self._seconds = Counter("raydissect_seconds", "Seconds spent on the shards done", tag_keys=("stage", "phase"))

    def count(self, report: ShardReport) -> None:
        tags = {"stage": self._stage}
        self._shards.inc(1, tags)
        for counter, amount in ((self._images, report.shard.rows), (self._bytes, report.bytes_written)):
            if amount > 0:  # Ray refuses to add 0
                counter.inc(amount, tags)
        for phase in ("read", "compute", "write"):
            seconds = getattr(report, f"{phase}_seconds")
            if seconds > 0:
                self._seconds.inc(seconds, {**tags, "phase": phase})

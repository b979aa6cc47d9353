"""The one Ray actor: reads the next shard on another thread while the current one is computed.

The executor gives it `max_concurrency` threads and as many shards; a lock lets one of them compute, or as
many as it has cores for where a stage's computing need not be alone.
It holds a worker and nothing that would be missed: whatever is worth keeping is in the store.
"""

import pickle
import threading

import ray
import torch
from ray.util.metrics import Counter

from workers.process import Failure, describe_hardware, report_of
from workers.worker import Shard, ShardReport, Stopwatch, Worker


class ShardActor:
    """A process that works on shards; it becomes useful with `start`.

    Errors of the stage come back as a `Failure`, never as an exception: what is raised here means that
    Ray or the process is at fault.
    """

    def start(self, build: bytes, stage: str, name: str, threads: int, lanes: int = 1) -> str | Failure:
        """Build the worker, in place of the one there was.

        Args:
            build: a pickled function without arguments that returns a `Worker`; from the driver.
            stage: what metrics are tagged with.
            name: what reports call this actor, with its node's address.
            threads: torch threads to compute with.
            lanes: how many shards may be computed at once where the worker allows it.

        Returns:
            The hardware it found, or why the worker could not be built.
        """
        self._name, self._threads = f"{name} at {ray.util.get_node_ip_address()}", threads
        torch.set_num_threads(threads)
        try:
            self._worker: Worker = pickle.loads(build)()
        except Exception as error:
            return Failure.of(error)
        self._computing = threading.Semaphore(1 if self._worker.alone else lanes)
        self._hardware = describe_hardware()
        self._metrics = _Metrics(stage)
        return self._hardware

    def process(self, shard: Shard) -> ShardReport | Failure:
        """Read, compute and write one shard; computing waits for others as the worker wants it."""
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
        self._shards = Counter("raydissect_shards_done", "Shards done", tag_keys=("stage",))
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

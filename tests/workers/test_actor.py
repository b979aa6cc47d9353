"""The actor's class without a cluster: it is a plain class until the executor hands it to Ray."""

import pickle
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import pytest
import torch

from workers.actor import ShardActor
from workers.process import Failure
from workers.worker import Shard, ShardReport, Worker


def _start(worker: Worker, monkeypatch: pytest.MonkeyPatch, threads: int = 1, lanes: int = 1) -> ShardActor:
    monkeypatch.setattr(pickle, "loads", lambda data: lambda: worker)  # local functions do not pickle
    monkeypatch.setattr("ray.util.get_node_ip_address", lambda: "10.0.0.7")
    actor = ShardActor()
    hardware = actor.start(b"", "tally", "worker 7", threads, lanes)
    assert hardware.startswith(f"cpu {torch.backends.cpu.get_cpu_capability()}")
    return actor


def test_a_report_says_what_happened_and_where(monkeypatch: pytest.MonkeyPatch):
    written = []
    worker = Worker(lambda s: s.rows, lambda n: n + 1, lambda s, n: written.append(n) or 17)
    report = _start(worker, monkeypatch).process(Shard("a", 3, rows=4))
    assert isinstance(report, ShardReport)
    assert written == [5]
    assert (report.shard.name, report.bytes_written, report.worker) == ("a", 17, "worker 7 at 10.0.0.7")
    assert report.hardware.startswith("cpu ")
    assert min(report.read_seconds, report.compute_seconds, report.write_seconds) > 0


def test_reads_overlap_with_computing_which_runs_alone(monkeypatch: pytest.MonkeyPatch):
    spans: list[tuple[str, float, float]] = []

    def spend(phase: str) -> None:
        start = time.monotonic()
        time.sleep(0.05)
        spans.append((phase, start, time.monotonic()))

    worker = Worker(lambda s: spend("read"), lambda _: spend("compute"), lambda s, _: 0)
    actor = _start(worker, monkeypatch)
    with ThreadPoolExecutor(2) as threads:
        list(threads.map(actor.process, [Shard(str(index), index) for index in range(6)]))
    computes = sorted((start, end) for phase, start, end in spans if phase == "compute")
    reads = [(start, end) for phase, start, end in spans if phase == "read"]
    assert all(end <= start for (_, end), (start, _) in pairwise(computes))
    assert any(start < end_c and start_c < end for start, end in reads for start_c, end_c in computes)


@pytest.mark.parametrize(("alone", "lanes", "together"), [(True, 3, 1), (False, 3, 3), (False, 1, 1)])
def test_as_many_shards_compute_as_there_are_cores_for(
    monkeypatch: pytest.MonkeyPatch, alone: bool, lanes: int, together: int
):
    computing, most = [], []

    def compute(value: object) -> None:
        computing.append(value)
        most.append(len(computing))
        time.sleep(0.05)
        computing.pop()

    actor = _start(Worker(lambda s: s, compute, lambda s, _: 0, alone=alone), monkeypatch, lanes=lanes)
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(actor.process, [Shard(str(index), index) for index in range(8)]))
    assert max(most) == together


def test_torch_threads_are_set_where_computing_happens(monkeypatch: pytest.MonkeyPatch):
    before = torch.get_num_threads()
    seen = []
    worker = Worker(lambda s: None, lambda _: seen.append(torch.get_num_threads()), lambda s, _: 0)
    try:
        actor = _start(worker, monkeypatch, threads=3)
        torch.set_num_threads(1)  # what a thread that Ray made earlier may have
        thread = threading.Thread(target=actor.process, args=(Shard("a", 0),))
        thread.start()
        thread.join()
    finally:
        torch.set_num_threads(before)
    assert seen == [3]


@pytest.mark.parametrize("phase", ["read", "compute", "write"])
def test_an_error_comes_back_as_text(phase: str, monkeypatch: pytest.MonkeyPatch):
    class Unpicklable(ValueError):
        exit_code = 2

        def __init__(self, lock: object) -> None:
            super().__init__("row 3 is bad")
            self.lock = lock

    def fail(*arguments: object) -> None:
        raise Unpicklable(threading.Lock())

    phases = {"read": lambda s: 0, "compute": lambda n: 0, "write": lambda s, n: 0, phase: fail}
    failure = _start(Worker(**phases), monkeypatch).process(Shard("a", 0))
    assert isinstance(failure, Failure)
    assert str(failure) == "Unpicklable: row 3 is bad"
    assert failure.exit_code == 2
    assert failure.shard == Shard("a", 0)
    assert "in fail" in failure.frames
    assert pickle.dumps(failure)


def _cannot_build() -> Worker:
    raise FileNotFoundError("no weights")


def test_a_worker_that_cannot_be_built_is_a_failure():
    failure = ShardActor().start(pickle.dumps(_cannot_build), "tally", "worker 0", 1)
    assert isinstance(failure, Failure)
    assert str(failure) == "FileNotFoundError: no weights"


def test_what_cannot_be_unpickled_is_a_failure():
    failure = ShardActor().start(b"not a pickle", "tally", "worker 0", 1)
    assert isinstance(failure, Failure)
    assert failure.error == "UnpicklingError"

"""What must not grow with the data set: the driver's cost of a shard, and memory."""

import hashlib
import subprocess
import sys
import threading
import time
import tracemalloc
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from pipeline.errors import StoreError
from pipeline.executor import make_executor
from pipeline.ledger import Ledger
from pipeline.results import staging_path
from pipeline.settings import Cluster
from pipeline.stage import stage_table, staged_tables
from pipeline.store import Store
from pipeline.threads import READ_AHEAD
from tests import specks
from workers.worker import Shard, ShardReport, Worker

SHARDS = 10_000
ROOT = Path(__file__).parents[2]


def _shards(number: int) -> list[Shard]:
    return [Shard(f"{index:06d}", index) for index in range(number)]


def _build_trivial() -> Worker:
    return Worker(lambda shard: shard, lambda shard: shard.index, lambda shard, index: 0)


@pytest.mark.parametrize("executor", ["inline", pytest.param("ray", marks=pytest.mark.cluster)])
def test_a_trivial_shard_costs_the_driver_little(executor: str):
    shards = _shards(SHARDS)
    with make_executor(Cluster(executor=executor, workers=2)) as running:
        running.run(_build_trivial, shards[:200], title="warm")
        before, start = specks.memory("VmRSS"), time.perf_counter()
        reports = running.run(_build_trivial, shards, title="trivial")
        seconds, grown = time.perf_counter() - start, specks.memory("VmRSS") - before
    assert [report.shard.index for report in reports] == list(range(SHARDS))
    assert seconds / SHARDS < 0.005  # measured on two cores: 0.0007 by Ray, 0.0001 inline
    assert grown / SHARDS < 5000  # bytes, most of them the reports


def test_a_report_in_the_ledger_is_small():
    ledger = Ledger("small", None)
    shards = _shards(SHARDS)
    tracemalloc.start()
    try:
        for shard in shards:
            ledger.add(ShardReport(shard, 0.1 + shard.index, 0.2 + shard.index, 0.3 + shard.index, 10**6 + shard.index))
        assert tracemalloc.get_traced_memory()[0] / SHARDS < 600  # bytes
    finally:
        tracemalloc.stop()


@pytest.mark.timeout(180)
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads a process's peak memory as Linux says it")
def test_memory_is_flat_from_200_to_20000_images(tmp_path: Path):
    peaks = {}
    for images in (200, 20_000):
        store = specks.write_store(tmp_path / f"{images}", images)
        command = [sys.executable, "-m", "tests.specks", str(store)]
        peaks[images] = int(subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True).stdout)
    assert peaks[20_000] / peaks[200] < 1.1, peaks
    assert peaks[20_000] - peaks[200] < 60e6, peaks  # most of a process is torch, which would hide what grows


class _Bytes(bytearray):
    """Bytes that can be counted while they, or a table that lies in them, are alive."""


class _Files:
    """Stands for a store: a sealed file wherever one looks, after a while."""

    def __init__(self, seconds: float = 0.0) -> None:
        sink = pa.BufferOutputStream()
        table = pa.table({"a": range(100), "b": range(100)})
        with pa.ipc.new_file(sink, table.schema) as writer:  # not compressed, so that tables lie in the file's bytes
            writer.write_table(table)
        data = sink.getvalue().to_pybytes()
        self._file, self._seconds = data + hashlib.sha256(data).digest(), seconds
        self._living: list[weakref.ref] = []
        self._lock = threading.Lock()

    def read(self, path: str) -> _Bytes:
        time.sleep(self._seconds)
        data = _Bytes(self._file)
        with self._lock:
            self._living.append(weakref.ref(data))
        return data

    def count(self) -> int:
        """How many are alive, once no thread is busy with one."""
        time.sleep(0.01)
        with self._lock:
            self._living = [one for one in self._living if one() is not None]
            return len(self._living)


def _staged(files: Any, number: int, **more: Any) -> Iterator[tuple]:
    return staged_tables(files, "result", _shards(number), "arrow", **more)


def test_a_reduce_holds_as_many_partials_as_are_read_ahead():
    files, most = _Files(), 0
    for place, (shard, _, table) in enumerate(_staged(files, 100)):
        assert (shard.index, len(table)) == (place, 100)
        most = max(most, files.count())
    assert 2 <= most <= READ_AHEAD + 1
    del table
    assert files.count() == 0


def test_a_reduce_that_ends_early_leaves_nothing():
    files = _Files()
    stream = _staged(files, 100)
    next(stream)
    stream.close()
    assert files.count() == 0
    assert threading.active_count() == sum(not one.name.startswith("staged") for one in threading.enumerate())


def test_partials_are_read_while_others_are_awaited():
    start = time.perf_counter()
    assert sum(1 for _ in _staged(_Files(seconds=0.05), 40)) == 40
    assert time.perf_counter() - start < 40 * 0.05 / 2  # measured: an eighth


def test_only_the_columns_that_are_asked_for_are_decoded():
    tables = [table for _, _, table in _staged(_Files(), 2, columns=["b"])]
    assert [table.column_names for table in tables] == [["b"], ["b"]]


def test_a_partial_that_cannot_be_read_is_named(tmp_path: Path):
    store = Store(str(tmp_path))
    for shard in _shards(3):
        stage_table(store, "result", f"{shard.name}.arrow", pa.table({"a": [1]}))
    store.write(staging_path("result", "000001.arrow"), b"no Arrow file")
    stream = _staged(store, 4)
    shard, file, table = next(stream)
    assert (shard.index, file.rows, table["a"].to_pylist()) == (0, 1, [1])
    assert len(store.read(file.path)) == file.bytes
    with pytest.raises(StoreError, match=r"result/000001\.arrow is not what was written there: "):
        next(stream)
    store.remove(staging_path("result", "000001.arrow"))
    with pytest.raises(StoreError, match=r"result/000001\.arrow is not what was written there: it is gone"):
        list(_staged(store, 4))

"""Files appear whole or not at all, once where asked, on a disk and in an object store's manner."""

import os
import subprocess
import sys
import threading
import uuid
from pathlib import Path

import pyarrow as pa
import pytest

from pipeline.errors import StoreError
from pipeline.store import Store, digest, to_json


@pytest.fixture(params=["local", "memory"])
def store(request, tmp_path) -> Store:
    return Store(str(tmp_path / "deep" / "store") if request.param == "local" else f"memory://{uuid.uuid4().hex}")


def test_round_trip(store):
    assert not store.exists("a/b.json")
    store.write_json("a/b.json", {"z": 1, "a": "é"})
    assert store.exists("a/b.json")
    assert store.read_json("a/b.json") == {"a": "é", "z": 1}
    store.write("a/b.json", b"{}")
    assert store.read("a/b.json") == b"{}"
    assert store.size("a/b.json") == 2
    store.remove("a/b.json")
    store.remove("a/b.json")
    assert not store.exists("a/b.json")


def test_list_is_sorted_relative_and_deep(store):
    for path in ("t/b/2.parquet", "t/a/1.parquet", "u/3.parquet"):
        store.write(path, b"x")
    assert store.list("t") == ["t/a/1.parquet", "t/b/2.parquet"]
    assert store.list("nowhere") == []


def test_create_writes_once(store):
    assert store.create("one", b"first")
    assert not store.create("one", b"second")
    assert store.read("one") == b"first"


def test_of_many_creators_one_wins(tmp_path):
    store, won = Store(str(tmp_path)), []
    barrier = threading.Barrier(16)

    def create(number: int) -> None:
        barrier.wait()
        if store.create("one", f"{number}".encode() * 100_000):
            won.append(number)

    threads = [threading.Thread(target=create, args=(number,)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1
    assert store.read("one") == f"{won[0]}".encode() * 100_000
    assert store.list("") == ["one"]


def test_nothing_half_written_is_seen(tmp_path, monkeypatch):
    store = Store(str(tmp_path))
    store.write("file", b"old")

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    for act in (store.write, store.create):
        with pytest.raises(StoreError, match="No space left"):
            act("file" if act == store.write else "new", b"new")
    assert store.read("file") == b"old"
    assert os.listdir(tmp_path) == ["file"]


def test_tables(store):
    table = pa.table({"unit": pa.array([1, 2], pa.int32()), "map": [[1.0], [2.0]], "name": ["a", "b"]})
    file = store.write_table("t.parquet", table)
    assert (file.rows, file.bytes) == (2, store.size("t.parquet"))
    assert store.read_table("t.parquet").equals(table)
    assert store.read_table("t.parquet", ["name", "unit"]).to_pydict() == {"name": ["a", "b"], "unit": [1, 2]}


def test_same_table_same_bytes(tmp_path):
    store, table = Store(str(tmp_path)), pa.table({"x": list(range(1000))})
    assert store.write_table("1.parquet", table).sha256 == store.write_table("2.parquet", table).sha256


def test_errors_name_the_path(tmp_path):
    store = Store(str(tmp_path))
    with pytest.raises(StoreError, match=r"missing\.json: there is no such file"):
        store.read("missing.json")
    store.write("broken.parquet", b"PAR1 no")
    with pytest.raises(StoreError, match=r"broken\.parquet"):
        store.read_table("broken.parquet")
    Path(tmp_path, "plain").write_text("a file where a folder should be")
    with pytest.raises(StoreError, match="plain"):
        Store(str(tmp_path / "plain")).write("x", b"")


def test_digest_depends_on_values_not_on_order():
    assert digest({"a": 1, "b": [1, 2]}) == digest({"b": [1, 2], "a": 1})
    assert digest({"a": 1}) != digest({"a": 1.5})
    assert to_json({"b": 1, "a": 2}) == b'{\n "a": 2,\n "b": 1\n}\n'


def test_what_another_removes_meanwhile_is_removed(store, monkeypatch):
    store.write("a", b"1")
    filesystem, _ = store.filesystem
    exists = type(filesystem).exists

    def slow(self, path: str, **more) -> bool:
        found = exists(self, path, **more)
        if found:
            self.rm_file(path)  # as another process would, right after this one looked
        return found

    monkeypatch.setattr(type(filesystem), "exists", slow)
    store.remove("a")
    monkeypatch.undo()
    assert not store.exists("a")


_COUNT_THREADS = """
import os, sys
import pyarrow as pa
from pipeline.store import Store

store = Store(sys.argv[1])
store.write_table("t.parquet", pa.table({name: list(range(10_000)) for name in "abcdefgh"}))
before = len(os.listdir("/proc/self/task"))
store.read_table("t.parquet")
assert len(os.listdir("/proc/self/task")) == before, "a thread of Arrow's was at work"
"""


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="counts threads as Linux does")
def test_reading_leaves_no_thread_that_could_outlive_the_interpreter(tmp_path):
    """One that did ended one ingest in a hundred with an abort, after all its work."""
    subprocess.run([sys.executable, "-c", _COUNT_THREADS, tmp_path], check=True, cwd=Path(__file__).parents[2])

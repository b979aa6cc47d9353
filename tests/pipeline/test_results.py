"""Publishing: a result is whole or not there, and two writers of one agree."""

import hashlib
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pytest

from pipeline import results as results_module
from pipeline.executor import make_executor
from pipeline.query import query
from pipeline.results import Result, find_result, list_results, publish, read_result_table, result_path
from pipeline.run import Outcome, run
from pipeline.store import Store
from pipeline.views import table_files
from schemas import LAYER_SUMMARY
from tests import dissect, small

NAMES = ["num_units", "num_detectors", "num_unique_concepts", "num_detectors_within", "num_unique_concepts_within"]


def draft(identity="r1", **changes) -> Result:
    values = {
        "result_id": identity, "study_id": "s1", "stage": "layer_summary", "version": 1, "layer": "conv",
        "settings": {"a": 1}, "inputs": {}, "tables": {}, "staging": [], "seconds": 1.5,
        "finished": datetime.now(UTC), **changes,
    }  # fmt: skip
    return Result(**values)


def rows(number=3) -> dict[str, pa.Table]:
    return {"layer_summary": pa.table({"category": ["object"], **{name: [number] for name in NAMES}})}


@pytest.fixture(params=["local", "memory"])
def store(request, tmp_path) -> Store:
    return Store(str(tmp_path / "store") if request.param == "local" else f"memory://{tmp_path.name}")


def test_a_published_result_is_found_with_its_rows(store):
    assert publish(store, draft(), rows())
    result = find_result(store, "s1", "layer_summary", "conv", "r1")
    table = read_result_table(store, result, LAYER_SUMMARY)
    assert table["num_units"].to_pylist() == [3]
    assert [table[name][0].as_py() for name in ("study_id", "result_id", "layer")] == ["s1", "r1", "conv"]
    file = result.tables["layer_summary"]
    data = store.read(file.path)
    assert (file.sha256, file.bytes, file.rows) == (hashlib.sha256(data).hexdigest(), len(data), 1)
    assert table.schema.metadata[b"result_id"] == b"r1"
    assert list_results(store) == [result]
    assert list_results(store, "s2") == []


def test_a_published_result_is_never_written_again(store, monkeypatch):
    assert publish(store, draft(), rows(3))
    monkeypatch.setattr(Store, "create_table", None)
    before = store.read(draft().path), list_results(store)[0].tables["layer_summary"]
    assert not publish(store, draft(seconds=9.0), rows(4))
    result = list_results(store)[0]
    assert (store.read(draft().path), result.tables["layer_summary"]) == before
    assert hashlib.sha256(store.read(before[1].path)).hexdigest() == before[1].sha256


def test_of_two_writers_at_once_one_publishes_and_its_manifest_names_what_is_there(store, monkeypatch):
    """Both have written their tables before either writes its manifest, and the tables differ."""
    barrier = threading.Barrier(2, timeout=20)
    create_table = Store.create_table

    def together(self, path, table):
        file = create_table(self, path, table)
        barrier.wait()
        return file

    monkeypatch.setattr(Store, "create_table", together)
    with ThreadPoolExecutor(2) as pool:
        published = list(pool.map(lambda number: publish(store, draft(seconds=number), rows(number)), (3, 4)))
    assert sorted(published) == [False, True]
    (result,) = list_results(store)
    file = result.tables["layer_summary"]
    assert hashlib.sha256(store.read(file.path)).hexdigest() == file.sha256
    assert store.list("tables") == [file.path]


def test_many_writers_at_once(store):
    with ThreadPoolExecutor(8) as pool:
        published = list(pool.map(lambda _: publish(store, draft(), rows()), range(24)))
    assert sum(published) == 1
    assert len(list_results(store)) == 1


def test_killed_before_the_manifest_a_result_is_invisible_and_is_published_by_the_next(store, monkeypatch):
    def killed(self, path, data):
        raise KeyboardInterrupt

    create = Store.create
    monkeypatch.setattr(
        Store, "create", lambda self, path, data: (killed if path.endswith(".json") else create)(self, path, data)
    )
    with pytest.raises(KeyboardInterrupt):
        publish(store, draft(), rows(3))
    monkeypatch.undo()
    assert len(store.list("tables/layer_summary")) == 1
    assert find_result(store, "s1", "layer_summary", "conv", "r1") is None
    assert table_files(store)["layer_summary"] == []
    assert query(store, "select * from layer_summary").num_rows == 0
    assert publish(store, draft(), rows(3))
    assert query(store, "select num_units from layer_summary").to_pylist() == [{"num_units": 3}]


def test_a_row_that_does_not_fit_publishes_nothing(store):
    with pytest.raises(ValueError, match="null"):
        publish(
            store,
            draft(),
            {"layer_summary": rows()["layer_summary"].set_column(0, "category", [pa.nulls(1, pa.string())])},
        )
    assert store.list("tables") == store.list("results") == []


def test_ids_tell_results_apart():
    base = ("tally", 1, {"a": 1, "b": None}, "conv", "scope", {"record": "x"})
    assert results_module.result_id(*base) == results_module.result_id(
        "tally", 1, {"b": None, "a": 1}, "conv", "scope", {"record": "x"}
    )
    others = [
        ("tallx", *base[1:]), (base[0], 2, *base[2:]), (*base[:2], {"a": 1, "b": 0}, *base[3:]),
        (*base[:3], "conv2", *base[4:]), (*base[:4], "other", base[5]), (*base[:5], {"record": "y"}),
    ]  # fmt: skip
    assert len({results_module.result_id(*other) for other in [base, *others]}) == 7
    assert result_path("s", "tally", "a.b", "r") == "results/s/tally/a.b/r.json"


def test_two_runs_at_once_publish_each_result_once(tmp_path):
    source = small.write_source(tmp_path / "source", number=6)
    chosen = small.overrides(source, layers=("features.6", "classifier.2"))
    alone, both = tmp_path / "alone", tmp_path / "both"
    dissect.ingest_and_run(alone, *chosen)
    shutil.copytree(alone / "datasets", both / "datasets")
    settings = dissect.settings(both, *chosen)

    def once(_: int) -> Outcome:
        with make_executor(settings.cluster) as executor:
            return run(settings, executor)

    with ThreadPoolExecutor(2) as pool:
        outcomes = list(pool.map(once, range(2)))
    assert outcomes[0].study_id == outcomes[1].study_id
    for place in (alone, both):
        assert len(list_results(Store(str(place)))) == 7 * 2
    for result in list_results(Store(str(both))):
        for file in [*result.tables.values(), *result.staging]:
            assert hashlib.sha256(Path(both, file.path).read_bytes()).hexdigest() == file.sha256, (
                result.stage,
                file.path,
            )
    small.same_tables(alone, both, "thresholds", "tally", "areas", "detectors", "exemplars")
    assert len(dissect.read_table(both, "runs")) == 2

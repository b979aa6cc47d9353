import os
import shutil
import time
from datetime import timedelta
from pathlib import Path

import pytest

from pipeline.datasets import list_datasets
from pipeline.gc import collect
from pipeline.results import Result, list_results
from pipeline.run import prepare
from pipeline.store import Store
from tests import dissect, small

HOUR = 3600.0


@pytest.fixture(scope="module")
def chosen(tmp_path_factory) -> list[str]:
    source = small.write_source(tmp_path_factory.mktemp("gc") / "source", number=6)
    return small.overrides(source, layers=("features.6",))


@pytest.fixture(scope="module")
def done(tmp_path_factory, chosen) -> Path:
    store = tmp_path_factory.mktemp("gc-store")
    dissect.ingest_and_run(store, *chosen)
    dissect.run_only(store, *chosen, "union=all", "stages=[layer_summary]")
    return store


@pytest.fixture
def store(done, tmp_path) -> Store:
    return Store(str(shutil.copytree(done, tmp_path / "store")))


def put(store: Store, path: str, hours: float = 0, data: bytes = b"left") -> str:
    store.write(path, data)
    age(store, path, hours)
    return path


def age(store: Store, path: str, hours: float) -> None:
    then = time.time() - hours * HOUR
    os.utime(Path(store.url, path), (then, then))


def everything(store: Store) -> list[str]:
    return sorted(path.relative_to(store.url).as_posix() for path in Path(store.url).rglob("*") if path.is_file())


def republish(store: Store, result: Result, days: float) -> None:
    """Put the moment a result was published into the past."""
    past = result.model_copy(update={"finished": result.finished - timedelta(days=days)})
    store.write(past.path, past.model_dump_json().encode())


def test_leaves_what_manifests_name(store):
    before = everything(store)
    for path in before:
        age(store, path, 1000)
    assert collect(store).files == []
    assert everything(store) == before


def test_removes_leftovers_past_their_grace(store):
    before = everything(store)
    old = [
        put(store, "tables/tally/study_id=x/layer=y/0123.parquet", 30),
        put(store, "staging/0123456789abcdef/000000.arrow", 30),
        put(store, "datasets/shards/abc.parquet", 30),
    ]
    young = [
        put(store, "tables/tally/study_id=x/layer=y/4567.parquet", 2),
        put(store, "staging/fedcba9876543210/000000.arrow", 2),
        put(store, "datasets/shards/def.parquet", 2),
    ]
    told = collect(store, dry_run=True)
    assert sorted(told.files) == sorted(old)
    assert told.bytes == 4 * len(old)
    assert everything(store) == sorted([*before, *old, *young])
    assert collect(store).files == told.files
    assert everything(store) == sorted([*before, *young])
    collect(store, grace_hours=0)
    assert everything(store) == before


def test_staging_of_a_run_under_way_outlives_the_grace_of_its_first_shards(store):
    first = put(store, "staging/0123456789abcdef/000000.arrow", 30)
    put(store, "staging/0123456789abcdef/000001.arrow", 1)
    assert collect(store).files == []
    assert store.exists(first)


def test_shards_of_an_ingest_under_way_outlive_their_grace(store):
    (shard,) = (entry for manifest in list_datasets(store) for entry in manifest.shards[:1])
    path = put(store, "datasets/shards/long.parquet", 30)
    marker = '{"entry": {"path": "datasets/shards/long.parquet"}}'
    put(store, "staging/ingest-abc/000000.json", 30, marker.encode())
    last = put(store, "staging/ingest-abc/000001.json", 1, marker.replace("long", "next").encode())
    assert collect(store).files == []
    age(store, last, 30)
    assert path in collect(store).files
    assert store.exists(shard.path)


def test_staging_of_published_results_goes_on_request_only(store):
    staged = [path for path in everything(store) if path.startswith("staging/")]
    rest = [path for path in everything(store) if not path.startswith("staging/")]
    assert staged
    assert sorted(collect(store, staging=True, dry_run=True).files) == staged
    removed = collect(store, staging=True)
    assert sorted(removed.files) == staged
    assert removed.results == []
    assert everything(store) == rest


def test_keeps_the_newest_and_what_they_were_made_from(store, chosen):
    results = {result.path: result for result in list_results(store)}
    told = collect(store, keep_newest=1, dry_run=True)
    assert {r.path for r in list_results(store)} == set(results)
    removed = collect(store, keep_newest=1)
    assert removed == told
    left = list_results(store)
    gone = [result for path, result in results.items() if path not in {r.path for r in left}]
    assert sorted(result.stage for result in gone) == ["detectors", "layer_summary"]
    assert all(r.settings["union"] == "annotated" for r in gone if r.stage == "detectors")
    assert removed.results == sorted(result.result_id for result in gone)
    for result in gone:
        assert not any(store.exists(file.path) for file in result.tables.values())
    for result in left:
        assert all(store.exists(file.path) for file in [*result.tables.values(), *result.staging])
    outcome = dissect.run_only(store.url, *chosen)
    assert len(outcome.computed) == 2
    for name in ("studies", "runs", "concepts", "label_areas"):
        assert len(dissect.read_table(store.url, name))


def test_removes_results_by_age_but_not_those_that_young_ones_were_made_from(store):
    for result in list_results(store):
        if result.stage != "detectors":
            republish(store, result, days=10)
    removed = collect(store, older_than_days=5)
    left = list_results(store)
    assert {result.stage for result in left} == {"pilot", "record", "thresholds", "tally", "detectors"}
    assert len(removed.results) == 3
    for result in left:
        assert all(store.exists(file.path) for file in result.tables.values())
    for result in left:
        republish(store, result, days=10)
    collect(store, older_than_days=5)
    assert list_results(store) == []
    assert not [path for path in everything(store) if path.startswith("staging/")]
    kept = {path.split("/")[1] for path in everything(store) if path.startswith("tables/")}
    assert kept == {"studies", "runs"}
    assert list_datasets(store)


def test_events_go_by_age_with_results(store):
    young = [path for path in everything(store) if path.startswith("events/")]
    old = put(store, "events/20200101T000000-abcdef/000000.jsonl")
    assert old not in collect(store, dry_run=True).files
    assert collect(store, older_than_days=5).files == [old]
    assert [path for path in everything(store) if path.startswith("events/")] == young != []


def test_a_study_keeps_what_it_shares_with_one_whose_results_go(store, tmp_path):
    """Other labels of the same images: the record of both studies has one id, and one staging folder."""
    relabelled = small.overrides(
        small.write_source(tmp_path / "relabelled", number=6, labels=5), "data.name=other", layers=("features.6",)
    )
    first = {result.study_id for result in list_results(store)}
    second = dissect.ingest_and_run(store.url, *relabelled).study_id
    for result in list_results(store):
        if result.study_id in first:
            republish(store, result, days=10)
    collect(store, older_than_days=5, grace_hours=0)
    left = list_results(store)
    assert {result.study_id for result in left} == {second}
    assert len(left) == 7
    for result in left:
        assert all(store.exists(file.path) for file in [*result.tables.values(), *result.staging])
    assert len(dissect.read_table(store.url, "layers")) == 1
    assert prepare(dissect.settings(store.url, *relabelled)).study.study_id == second


def test_what_killed_writers_left_goes_after_the_grace(tmp_path):
    store = Store(str(tmp_path))
    store.write("staging/one/000000.arrow", b"whole")
    (tmp_path / "staging" / "one" / "000001.arrow.x7.partial").write_bytes(b"half")
    assert collect(store).files == []
    assert "staging/one/000001.arrow.x7.partial" in collect(store, grace_hours=0).files
    assert not list(tmp_path.rglob("*.partial"))

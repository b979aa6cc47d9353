"""Stores that are not folders: ingest, run, query and gc in memory and on S3 servers."""

import pyarrow as pa
import pytest

from pipeline.gc import collect
from pipeline.query import query
from pipeline.results import list_results
from pipeline.store import Store
from tests import dissect, small

pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning")

TABLES = ("thresholds", "tally", "areas", "null_tally", "detectors", "layer_summary", "exemplars", "layers")
LAYERS = ("features.6", "classifier.2")


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return small.write_source(tmp_path_factory.mktemp("object") / "source", number=6)


@pytest.fixture(scope="module")
def local(tmp_path_factory, source):
    store = tmp_path_factory.mktemp("local")
    dissect.ingest_and_run(store, *small.overrides(source, layers=LAYERS))
    return store


def check(url, source, local):
    chosen = small.overrides(source, layers=LAYERS)
    outcome = dissect.ingest_and_run(url, *chosen)
    assert len(outcome.computed) == 7 * 2
    small.same_tables(local, url, *TABLES)
    counted = query(Store(url), "select layer, count(*) as n from thresholds group by layer order by layer")
    assert counted.to_pylist() == [{"layer": "classifier.2", "n": 128}, {"layer": "features.6", "n": 64}]
    assert dissect.run_only(url, *chosen).computed == []
    more = dissect.run_only(url, *chosen, "union=all")
    assert len(more.computed) == 4
    store = Store(url)
    assert store.read("views.sql").count(b"CREATE OR REPLACE VIEW") == len(dissect.DISSECTED) - 1
    assert collect(store, grace_hours=0).files == []
    assert len(collect(store, keep_newest=1).results) == 4
    assert collect(store, staging=True).files
    assert store.list("staging") == []
    assert len(list_results(store)) == 14


def test_in_memory(source, local):
    check("memory://dissections", source, local)


def test_on_s3(bucket, source, local):
    check(bucket.url, source, local)


def test_on_s3_of_two_creates_one_wins(bucket):
    store = Store(bucket.url)
    assert store.create("a/b.json", b"first")
    assert not store.create("a/b.json", b"second")
    assert store.read("a/b.json") == b"first"
    table = pa.table({"a": [1]})
    file = store.create_table("t/a.parquet", table)
    assert store.create_table("t/a.parquet", pa.table({"a": [2, 3]})) == file
    assert store.read_table("t/a.parquet").equals(table)


def test_on_s3_what_others_write_is_seen_after_a_listing(bucket):
    """Listings are not remembered: workers, and other drivers, publish beside this process."""
    client, url = bucket.client, bucket.url
    store = Store(url)
    store.write_table("results/s/one.parquet", pa.table({"a": [1]}))
    assert store.list("results") == ["results/s/one.parquet"]
    data = store.read("results/s/one.parquet")
    client.put_object(Bucket="dissections", Key="a/prefix/results/s/two.parquet", Body=data)
    assert store.read_table("results/s/two.parquet").to_pydict() == {"a": [1]}
    client.put_object(Bucket="dissections", Key="a/prefix/results/s/three.parquet", Body=data)
    assert store.exists("results/s/three.parquet")
    client.delete_object(Bucket="dissections", Key="a/prefix/results/s/one.parquet")
    assert not store.exists("results/s/one.parquet")

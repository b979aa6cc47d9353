"""An S3 store that refuses, hangs, cuts or loses answers: everything arrives once and whole, or the error says why."""

from __future__ import annotations

import hashlib
import logging
import os
import time
from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pytest
from s3fs import S3FileSystem

from pipeline.errors import RaydissectError, SettingsError, StoreError
from pipeline.results import list_results
from pipeline.retries import VARIABLE
from pipeline.store import Store
from tests import dissect, small
from tests.faulty_s3 import Fault, FaultyS3
from tests.pipeline.conftest import Bucket
from tests.s3_servers import gateway_down

pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning")

TABLES = ("thresholds", "tally", "areas", "null_tally", "detectors", "layer_summary", "exemplars", "layers")
LAYERS = ("features.6",)
DATA = os.urandom(300_000)
TABLE = pa.table({"unit": pa.array(range(5000), pa.int32()), "map": [os.urandom(8).hex() for _ in range(5000)]})


@pytest.fixture
def proxy(bucket: Bucket, monkeypatch):
    """A proxy before the bucket's server, which the environment names; waits between attempts are short."""
    proxy = FaultyS3(bucket.server.endpoint)
    monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
    monkeypatch.setenv(VARIABLE, "60")
    monkeypatch.setattr("pipeline.retries.LONGEST_WAIT", 0.5)
    monkeypatch.setattr("pipeline.events.PATIENCE", 0.5)
    yield proxy
    proxy.faults = []
    proxy.down()


@pytest.fixture
def impatient(monkeypatch) -> None:
    """A server that is silent for a second counts as hung."""
    monkeypatch.setattr("pipeline.store.SILENCE", 1.0)


@pytest.fixture
def store(bucket: Bucket, proxy) -> Store:
    return Store(bucket.url)


def check_operations(store: Store, name: str) -> None:
    assert not store.exists(f"{name}/a")
    store.write(f"{name}/a", b"old")
    store.write(f"{name}/a", DATA)
    assert store.exists(f"{name}/a")
    assert store.read(f"{name}/a") == DATA
    assert store.create(f"{name}/b", DATA)
    assert not store.create(f"{name}/b", b"other")
    assert store.read(f"{name}/b") == DATA
    assert store.size(f"{name}/b") == len(DATA)
    assert abs(store.modified(f"{name}/b") - time.time()) < 60
    for path in (f"{name}/t.parquet", f"{name}/t.arrow"):
        file = store.create_table(path, TABLE)
        assert store.create_table(path, TABLE.slice(1)) == file
        assert store.read_table(path).equals(TABLE)
        assert store.read_table(path, ["map"]).equals(TABLE.select(["map"]))
    assert store.list(name) == [f"{name}/{end}" for end in ("a", "b", "t.arrow", "t.parquet")]
    for path in store.list(name):
        store.remove(path)
    assert store.list(name) == []


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize(
    "faults",
    [
        [Fault("status", share=0.1), Fault("status", share=0.1, status=500, code="InternalError", seed=1)],
        [
            Fault("cut_request", method="PUT", share=0.35, after=1000),
            Fault("cut_response", share=0.2, after=200, seed=1),
            Fault("lose_answer", share=0.2, seed=2),
        ],
        [Fault("hang", times=2, skip=5, seconds=2), Fault("delay", seconds=0.02)],
    ],
    ids=["refuses", "cuts", "hangs"],
)
def test_every_operation_outlives_faults(store: Store, proxy: FaultyS3, faults):
    with proxy.failing(*faults):
        check_operations(store, "x")


def test_a_body_that_is_cut_is_never_the_whole(store: Store, proxy: FaultyS3, monkeypatch):
    store.write("a", DATA)
    store.write_table("t.parquet", TABLE)
    monkeypatch.setenv(VARIABLE, "0")
    for after in (0, 1, 1000, len(DATA) - 1):
        with (
            proxy.failing(Fault("cut_response", method="GET", after=after)),
            pytest.raises(StoreError, match="gave up"),
        ):
            store.read("a")
    with proxy.failing(Fault("cut_response", method="GET", after=1000)), pytest.raises(StoreError, match="gave up"):
        store.read_table("t.parquet")
    with proxy.failing(Fault("cut_response", method="GET", after=100)), pytest.raises(StoreError, match="gave up"):
        store.list("")


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("mine", [True, False])
@pytest.mark.parametrize("kind", ["lose_answer", "hang"])
def test_a_file_that_is_met_again_is_known_as_ones_own(store: Store, proxy: FaultyS3, kind, mine):
    """Also where the same bytes were there before: the answer is lost after the server has refused."""
    if not mine:
        assert store.create("a", DATA)
    with proxy.failing(Fault(kind, method="PUT", path="/a", times=2, seconds=2)):
        assert store.create("a", DATA) is mine
    assert store.read("a") == DATA
    assert not store.create("a", DATA)


def test_each_retry_is_told_once(store: Store, proxy: FaultyS3, caplog):
    store.write("a", b"1")
    with proxy.failing(Fault("status", method="GET", times=3)), caplog.at_level(logging.INFO):
        store.read("a")
    told = [record for record in caplog.records if record.name == "raydissect"]
    assert [record.levelname for record in told] == 3 * ["WARNING"]
    assert f"cannot read {store.url}/a: SlowDown: no; trying again in" in told[0].getMessage()


def test_a_long_listing_is_whole(bucket: Bucket, proxy: FaultyS3):
    """Pages of 20 stand for those of 1000."""
    store = Store(bucket.url, {"s3_additional_kwargs": {"MaxKeys": 20}})
    paths = [f"many/{number:03}" for number in range(130)]
    for path in paths:
        bucket.client.put_object(Bucket=bucket.name, Key=f"a/prefix/{path}", Body=b"")
    asked = proxy.requests["GET"]
    assert store.list("many") == paths
    assert proxy.requests["GET"] - asked == 7
    with proxy.failing(Fault("status", share=0.3), Fault("cut_response", share=0.2, after=900, seed=1)):
        assert [store.list("many") for _ in range(2)] == 2 * [paths]


def lasting(bucket: Bucket, monkeypatch) -> list[tuple[str, dict[str, str | None], Callable[[Store], Any], str]]:
    """URL, what is in the environment, what is done, and what is said."""
    found = [
        (bucket.url, {}, lambda store: store.read("none"), "none: there is no such file"),
        ("s3://no-such-bucket/x", {}, lambda store: store.write("a", b""), "x/a: there is no such bucket: create it"),
        ("s3://no-such-bucket/x", {}, lambda store: store.list(""), "there is no such bucket: create it, or correct"),
        (
            bucket.url,
            {"AWS_ACCESS_KEY_ID": None, "AWS_SECRET_ACCESS_KEY": None, "AWS_EC2_METADATA_DISABLED": "true"},
            lambda store: store.read("a"),
            "Unable to locate credentials: set AWS_ACCESS_KEY_ID and",
        ),
    ]
    if bucket.server.name != "moto":  # which takes any key
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            for act in (Store.read, Store.exists, Store.list, Store.remove):
                found.append((bucket.url, {name: "wrong"}, lambda store, act=act: act(store, "a"), "refuses this key"))
    return found


def test_what_stays_wrong_is_said_at_once(bucket: Bucket, proxy: FaultyS3, monkeypatch, caplog):
    for url, environment, act, told in lasting(bucket, monkeypatch):
        with monkeypatch.context() as patch:
            for name, value in environment.items():
                patch.delenv(name) if value is None else patch.setenv(name, value)
            S3FileSystem.clear_instance_cache()
            started = time.monotonic()
            with pytest.raises(StoreError, match=told):
                act(Store(url))
            assert time.monotonic() - started < 5
    assert not [record for record in caplog.records if record.name == "raydissect"]


def test_what_does_not_pass_ends_in_an_error_with_a_cure(store: Store, proxy: FaultyS3, monkeypatch):
    monkeypatch.setenv(VARIABLE, "1.5")
    proxy.down()
    started = time.monotonic()
    with pytest.raises(StoreError, match=rf"cannot write {store.url}/a: .*gave up after 1.5 s \({VARIABLE} sets"):
        store.write("a", b"")
    assert 1.5 <= time.monotonic() - started < 8
    with pytest.raises(StoreError, match="gave up after 0 s"):
        Store(store.url, {"retry_seconds": 0}).read("a")
    for wrong in ("-1", "long", "inf"):
        monkeypatch.setenv(VARIABLE, wrong)
        with pytest.raises(SettingsError, match=VARIABLE):
            store.read("a")


def test_a_server_that_writes_over_files_is_found_out(store: Store, proxy: FaultyS3):
    with (
        proxy.failing(Fault("status", method="PUT", path="create-only", status=200)),
        pytest.raises(StoreError, match="Results need conditional writes"),
    ):
        store.check_create_only()
    with (
        proxy.failing(Fault("status", method="PUT", path="create-only", status=501, code="NotImplemented")),
        pytest.raises(StoreError, match="does not know that header"),
    ):
        store.check_create_only()
    with proxy.failing(Fault("lose_answer", method="PUT", path="create-only", times=1)):
        store.check_create_only()
    asked = proxy.requests["PUT"]
    store.check_create_only()
    assert proxy.requests["PUT"] == asked


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return small.write_source(tmp_path_factory.mktemp("faults") / "source", number=6)


@pytest.fixture(scope="module")
def local(tmp_path_factory, source):
    store = tmp_path_factory.mktemp("local")
    dissect.ingest_and_run(store, *small.overrides(source, layers=LAYERS))
    return store


def published(store: Store) -> dict[str, str]:
    """The hash of every file that a manifest names."""
    files = [file for result in list_results(store) for file in result.tables.values()]
    for file in files:
        assert hashlib.sha256(store.read(file.path)).hexdigest() == file.sha256
    return {file.path: file.sha256 for file in files}


def assert_as_local(store: Store, local) -> None:
    small.same_tables(local, store.url, *TABLES)
    assert published(store) == published(Store(str(local)))


@pytest.mark.usefixtures("impatient")
def test_a_run_outlives_faults(store: Store, proxy: FaultyS3, source, local):
    faults = [
        Fault("hang", skip=50, times=1, seconds=2),
        Fault("status", share=0.02),
        Fault("status", share=0.02, status=500, code="InternalError", seed=1),
        Fault("cut_request", method="PUT", share=0.03, after=500, seed=2),
        Fault("cut_response", method="GET", share=0.03, after=100, seed=3),
        Fault("lose_answer", method="PUT", path="results", skip=2, times=2),
        Fault("lose_answer", share=0.03, seed=4),
        Fault("delay", share=0.3, seconds=0.02),
    ]
    with proxy.failing(*faults):
        dissect.ingest_and_run(store.url, *small.overrides(source, layers=LAYERS))
    assert_as_local(store, local)


def test_a_run_outlives_a_store_that_is_down(bucket: Bucket, store: Store, proxy: FaultyS3, source, local):
    """Half a minute without a server; where the server is a real one, it is killed and started again."""

    def restart() -> None:
        with gateway_down(bucket.server):
            time.sleep(5)

    down = Fault(
        "action",
        method="PUT",
        path="staging",
        skip=5,
        times=1,
        action=restart if bucket.server.folder else lambda: proxy.down_for(30),
    )
    with proxy.failing(down):
        dissect.ingest_and_run(store.url, *small.overrides(source, layers=LAYERS))
    assert_as_local(store, local)


@pytest.mark.parametrize(("path", "skip"), [("staging", 5), ("results", 6)])
def test_a_store_that_stays_down_leaves_nothing_half(
    store: Store, proxy: FaultyS3, source, local, monkeypatch, path, skip
):
    monkeypatch.setenv(VARIABLE, "0.5")
    chosen = small.overrides(source, layers=LAYERS)
    with (
        proxy.failing(Fault("action", method="PUT", path=path, skip=skip, times=1, action=proxy.down)),
        pytest.raises(RaydissectError, match=r"gave up after 0\.5 s"),
    ):
        dissect.ingest_and_run(store.url, *chosen)
    proxy.up()
    finished = published(store)
    assert finished.items() < published(Store(str(local))).items()
    outcome = dissect.ingest_and_run(store.url, *chosen)
    assert len(outcome.found) == len(list_results(Store(str(local)))) - len(outcome.computed)
    assert_as_local(store, local)

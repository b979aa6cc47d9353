"""A small data set and a store in which a small network was dissected on it: read, do not change. S3 servers."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from s3fs import S3FileSystem

from tests.command import raydissect
from tests.s3_servers import Server, ceph, moto
from tests.tiny_broden import tiny_images, write_broden

LAYER = "features.12"


@dataclass(frozen=True)
class Small:
    """A source of 40 images, a store, and the words that made one from the other."""

    source: Path
    store: Path

    def ingest(self, store: object) -> list[str]:
        sizes = ["data.shard_size=4", "data.batch_size=4"]
        return ["ingest", "data=broden", f"data.root={self.source}", "data.name=tiny", *sizes, f"store={store}"]

    def run(self, store: object) -> list[str]:
        model = ["model=mininet", "model.weights=random", f"layers={LAYER}"]
        return ["run", "data=tiny", *model, "cluster=inline", f"store={store}"]


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> Small:
    folder = tmp_path_factory.mktemp("small")
    small = Small(write_broden(folder / "source", tiny_images(40)), folder / "store")
    for words in (small.ingest(small.store), small.run(small.store)):
        ended = raydissect(*words)
        assert ended.code == 0, ended.err
    return small


@dataclass(frozen=True)
class Bucket:
    """A bucket on a server, and a client that goes there by the direct way."""

    server: Server
    client: Any
    name: str = "dissections"
    url: str = "s3://dissections/a/prefix"


@pytest.fixture(scope="session", params=["moto", "ceph"])
def s3_server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with moto() if request.param == "moto" else ceph(tmp_path_factory.mktemp("s3")) as server:
        yield server


@pytest.fixture
def bucket(s3_server: Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bucket]:
    """An empty bucket; credentials and endpoint are in the environment, as users have them."""
    for name, value in s3_server.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("pipeline.store._proved", set())
    S3FileSystem.clear_instance_cache()  # an instance remembers its endpoint
    bucket = Bucket(s3_server, s3_server.client())
    bucket.client.create_bucket(Bucket=bucket.name)
    yield bucket
    for page in bucket.client.get_paginator("list_objects_v2").paginate(Bucket=bucket.name):
        if keys := [{"Key": entry["Key"]} for entry in page.get("Contents", [])]:
            bucket.client.delete_objects(Bucket=bucket.name, Delete={"Objects": keys})
    bucket.client.delete_bucket(Bucket=bucket.name)
    S3FileSystem.clear_instance_cache()

"""A cluster whose nodes share nothing but an object store: placement, dead nodes, a dead driver, metrics.

Drivers are commands in processes of their own, as users start them; the store is on S3.
"""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from urllib.request import urlopen

import psutil
import pytest
from s3fs import S3FileSystem

from pipeline.events import read_events
from pipeline.store import Store
from tests import dissect
from tests.cluster import RayCluster, ray_cluster
from tests.dissect import published
from tests.s3_servers import Server, moto

pytestmark = [pytest.mark.cluster, pytest.mark.filterwarnings("ignore::ResourceWarning")]

DATA = ["data=mini", "data.num_images=96", "data.shard_size=8", "data.batch_size=4"]
CHOSEN = [*DATA, "model=mininet", "model.weights=random", "layers=[features.4,features.11]", "min_images=16"]


@pytest.fixture(scope="module")
def expected(tmp_path_factory) -> dict:
    store = tmp_path_factory.mktemp("expected")
    dissect.ingest_and_run(store, *CHOSEN)
    return published(str(store))


@pytest.fixture(scope="module")
def s3() -> Iterator[Server]:
    with pytest.MonkeyPatch.context() as patch, moto() as server:
        for name, value in server.environment.items():
            patch.setenv(name, value)
        S3FileSystem.clear_instance_cache()
        server.client().create_bucket(Bucket="work")
        yield server
        S3FileSystem.clear_instance_cache()


@pytest.fixture(scope="module")
def cluster(s3: Server) -> Iterator[RayCluster]:
    with ray_cluster() as cluster:
        cluster.environment |= {"RAY_metrics_report_interval_ms": "200"}
        yield cluster


@pytest.fixture
def nodes(cluster: RayCluster) -> RayCluster:
    """The cluster with two nodes that live: those that a test has killed come back."""
    alive = [node for node in cluster.nodes if node.process.poll() is None]
    for number in range(len(alive), 2):
        cluster.add_node(1, {"ssd": 1} if number == 0 else None)
    return cluster


@pytest.fixture
def url(s3: Server, request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty store with the data set in it."""
    url = f"s3://work/{request.node.name}"
    from pipeline.ingest import ingest

    chosen = dissect.settings(url, *CHOSEN)
    ingest(chosen.data, Store(chosen.store))
    return url


@dataclass
class Driver:
    """A `raydissect run` against a cluster, in an empty folder of its own."""

    cluster: RayCluster
    url: str
    folder: Path
    words: list[str] = field(default_factory=lambda: ["run", *CHOSEN])
    more: tuple[str, ...] = ()

    def __enter__(self) -> "Driver":
        self.folder.mkdir(exist_ok=True)
        self.log = self.folder / "log"
        command = [sys.executable, "-m", "pipeline.cli", *self.words, f"store={self.url}"]
        with self.log.open("w") as output:
            self.process = subprocess.Popen(
                [*command, f"cluster.address={self.cluster.address}", *self.more],
                cwd=self.folder,
                env={**os.environ, **self.cluster.environment},
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        return self

    def __exit__(self, *error: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()

    def wait(self, seconds: float = 120) -> tuple[int, str]:
        code = self.process.wait(seconds)
        return code, self.log.read_text()

    def until(self, condition: Callable[[], bool], seconds: float = 90) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            if self.process.poll() is not None or time.monotonic() > deadline:
                pytest.fail(f"waited in vain, exit status {self.process.poll()}: {self.log.read_text()[-3000:]}")
            time.sleep(0.2)


def recorded(url: str, number: int) -> Callable[[], bool]:
    return lambda: sum(path.endswith(".maps.arrow") for path in Store(url).list("staging")) >= number


def workers_of(url: str) -> dict[str, set[str]]:
    """By stage, the nodes on which shards were done."""
    store = Store(url)
    found: dict[str, set[str]] = {}
    for path in store.list("runs"):
        for event in read_events(store, path.split("/")[-1].removesuffix(".json")):
            if event["event"] == "shard_done":
                found.setdefault(event["stage"], set()).add(event["worker"].partition(" at ")[2])
    return found


def test_nodes_share_nothing_but_the_store_and_the_code_is_shipped(nodes, url, expected, tmp_path):
    with Driver(nodes, url, tmp_path / "driver", more=("cluster.workers=2",)) as driver:
        workers: list[psutil.Process] = []

        def see_workers() -> bool:
            family = [p for node in nodes.nodes for p in _family(node.process.pid)]
            workers[:] = [p for p in family if "ShardActor" in " ".join(p.cmdline())]
            return len(workers) == 2

        driver.until(see_workers)
        for worker in workers:
            assert "/runtime_resources/working_dir_files/" in worker.environ().get("PYTHONPATH", "") or (
                "/runtime_resources/working_dir_files/" in os.readlink(f"/proc/{worker.pid}/cwd")
            )
        code, log = driver.wait()
    assert code == 0, log
    assert published(url) == expected
    assert len(workers_of(url)["record"]) == 2
    assert [path.name for path in (tmp_path / "driver").iterdir()] == ["log"]


def test_workers_go_where_their_resources_are(nodes, url, expected, tmp_path):
    more = ("cluster.workers=1", "cluster.resources={ssd:0.5}")
    with Driver(nodes, url, tmp_path / "driver", more=more) as driver:
        code, log = driver.wait()
    assert code == 0, log
    assert published(url) == expected
    ssd = [node.host for node in nodes.nodes if node.process.poll() is None][:1]
    assert {frozenset(found) for found in workers_of(url).values()} == {frozenset(ssd)}


def test_a_node_that_is_killed_costs_nothing(nodes, url, expected, tmp_path):
    with Driver(nodes, url, tmp_path / "driver", more=("cluster.workers=2",)) as driver:
        driver.until(recorded(url, 3))
        nodes.nodes[-1].kill()
        code, log = driver.wait()
    assert code == 0, log
    assert published(url) == expected


def test_without_any_worker_the_run_fails_by_its_deadline_and_goes_on_later(nodes, url, expected, tmp_path):
    with Driver(nodes, url, tmp_path / "driver", more=("cluster.workers=2", "cluster.start_timeout=15")) as driver:
        driver.until(recorded(url, 3))
        for node in nodes.nodes:
            node.kill()
        start = time.monotonic()
        code, log = driver.wait()
    assert code == 1
    assert re.search(r"shards remain, and there was no worker for 15 s \(cluster\.start_timeout\)", log), log
    assert time.monotonic() - start < 50  # the cluster's own noticing of dead nodes included
    before = published(url)
    assert before.items() <= expected.items()
    assert not {stage for stage, *_ in before} & {"tally", "detectors"}
    nodes.add_node(1, {"ssd": 1})
    words = ["run", "--resume", "last"]
    with Driver(nodes, url, tmp_path / "driver", words, ("cluster.workers=1", "cluster.start_timeout=60")) as driver:
        code, log = driver.wait()
    assert code == 0, log
    assert published(url) == expected


def test_a_driver_that_is_killed_is_resumed_from_another_folder_with_other_workers(nodes, url, expected, tmp_path):
    with Driver(nodes, url, tmp_path / "first", more=("cluster.workers=2",)) as driver:
        driver.until(recorded(url, 5))
        driver.process.send_signal(signal.SIGKILL)
        driver.process.wait()
    assert not {stage for stage, *_ in published(url)} & {"tally", "detectors"}
    words = ["run", "--resume", "last"]
    with Driver(nodes, url, tmp_path / "second", words, ("cluster.workers=1",)) as driver:
        code, log = driver.wait()
    assert code == 0, log
    assert published(url) == expected


def test_prometheus_sees_a_running_job(nodes, url, tmp_path):
    """Every node is scraped while the worker holds on."""
    with Driver(nodes, url, tmp_path / "driver", more=("cluster.workers=1", "cluster.window=1")) as driver:
        driver.until(recorded(url, 4))
        (worker,) = [
            p for node in nodes.nodes for p in _family(node.process.pid) if "ShardActor" in " ".join(p.cmdline())
        ]
        found: dict[tuple[str, str], float] = {}

        def scraped() -> bool:
            found.clear()
            for node in [*nodes.nodes, nodes.head]:
                if node is not None and node.process.poll() is None:
                    found.update(_scrape(f"http://{node.host}:{node.metrics_port}/metrics"))
            there = all((name, "record") in found for name in ("shards_done_total", "images_total", "shards_left"))
            return there and found["shards_left", "record"] < 12  # the driver's are not scraped with the worker's

        driver.until(scraped)
        assert worker.is_running()
        assert driver.process.poll() is None
        done = found["shards_done_total", "record"]
        assert 0 < done <= 12
        assert found["images_total", "record"] == 8 * done
        assert found["shards_left", "record"] >= 0
        assert found["written_bytes_total", "record"] > 0
        assert found["seconds_total", "record"] > 0
        code, log = driver.wait()
    assert code == 0, log


def _scrape(address: str) -> dict[tuple[str, str], float]:
    """Our metrics by name and stage, summed over other tags."""
    with urlopen(address, timeout=10) as answer:
        lines = answer.read().decode().splitlines()
    found: dict[tuple[str, str], float] = {}
    for line in lines:
        if match := re.match(r'ray_raydissect_(\w+)\{.*\bstage="([^"]*)".*\} (\S+)$', line):
            found[match[1], match[2]] = found.get((match[1], match[2]), 0) + float(match[3])
    return found


def _family(process: int) -> list[psutil.Process]:
    try:
        return psutil.Process(process).children(recursive=True)
    except psutil.NoSuchProcess:
        return []

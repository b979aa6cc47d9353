"""The same files, byte for byte, whatever the executor, the workers, the order, the deaths and the resumes."""

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from pipeline.executor import InlineExecutor, make_executor
from pipeline.ingest import ingest
from pipeline.run import run
from pipeline.store import Store
from tests import dissect
from tests.dissect import published

OVERRIDES = (
    "data=mini",
    "data.num_images=96",
    "data.shard_size=8",
    "data.batch_size=4",
    "model=mininet",
    "model.weights=random",
    "layers=[features.4,features.11]",
    "min_images=16",
)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> Path:
    """A store with the data set alone; every run gets a copy."""
    store = tmp_path_factory.mktemp("dataset")
    chosen = dissect.settings(store, *OVERRIDES)
    ingest(chosen.data, Store(chosen.store))
    return store


@pytest.fixture(scope="module")
def expected(dataset, tmp_path_factory) -> dict:
    store = copy(dataset, tmp_path_factory.mktemp("inline"))
    dissect.run_only(store, *OVERRIDES)
    return published(store)


@pytest.fixture
def store(dataset, tmp_path) -> Path:
    return copy(dataset, tmp_path / "store")


def copy(source: Path, target: Path) -> Path:
    subprocess.run(
        ["cp", "-r", f"{source}/.", f"{target}/"] if target.exists() else ["cp", "-r", source, target], check=True
    )
    return target


def run_on(store: Path, *overrides: str, on_progress: Callable | None = None) -> dict:
    chosen = dissect.settings(store, *OVERRIDES, *overrides)
    with make_executor(chosen.cluster) as executor:
        run(chosen, executor, on_progress)
    return published(store)


def test_every_stage_published(expected):
    stages = {stage for stage, *_ in expected}
    assert stages == {"record", "thresholds", "tally", "detectors", "layer_summary", "exemplars"}
    assert all(rows > 0 for _, rows in expected.values())


def test_inline_twice(store, expected):
    assert run_on(store) == expected


def test_shuffled_shards(store, expected):
    class Shuffled(InlineExecutor):
        def run(self, build, shards, **options):
            return super().run(build, random.Random(7).sample(list(shards), len(shards)), **options)

    chosen = dissect.settings(store, *OVERRIDES)
    with Shuffled(chosen.cluster) as executor:
        run(chosen, executor)
    assert published(store) == expected


@pytest.mark.cluster
@pytest.mark.parametrize("workers", [1, 2, 3])
def test_ray(store, expected, workers):
    assert run_on(store, "cluster=ray", f"cluster.workers={workers}", "cluster.cpus_per_worker=0.5") == expected


@pytest.mark.cluster
def test_killed_worker(store, expected):
    killed = []

    def kill_one(title: str, done: int, total: int) -> None:
        if title in ("record", "tally") and done == 2 and title not in killed:
            actors = [p for p in psutil.Process().children(recursive=True) if "ShardActor" in " ".join(p.cmdline())]
            actors[0].send_signal(signal.SIGKILL)
            killed.append(title)

    assert run_on(store, "cluster=ray", "cluster.workers=2", on_progress=kill_one) == expected
    assert killed == ["record", "tally"]


@pytest.mark.cluster
@pytest.mark.parametrize("resume", ["cluster=ray", "cluster=inline"])
def test_killed_driver(store, expected, resume):
    command = [
        sys.executable,
        "-m",
        "pipeline.cli",
        "run",
        *OVERRIDES,
        f"store={store}",
        "cluster=ray",
        "cluster.workers=2",
    ]
    with subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    ) as driver:
        wait_for(lambda: len(list(store.glob("staging/*/*.maps.arrow"))) >= 4, driver)
        os.kill(driver.pid, signal.SIGKILL)
    done = {path.name for path in store.glob("staging/*/*.maps.arrow")}
    assert done
    assert not [stage for stage, *_ in published(store) if stage == "detectors"]
    time.sleep(1)  # what workers were writing when their driver died
    assert run_on(store, resume) == expected


def wait_for(condition: Callable[[], bool], process: subprocess.Popen, seconds: float = 90) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        if process.poll() is not None or time.monotonic() > deadline:
            pytest.fail(f"waited in vain; the driver's exit status is {process.poll()}")
        time.sleep(0.02)

"""What befalls workers in a real run: killed at every moment, hung, always fatal, short of memory.

Each ends in the very bytes of an undisturbed run, or in a named error with nothing of it published.
"""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from pipeline.errors import NoWorkersError, ShardsFailed
from pipeline.events import read_events
from pipeline.executor import make_executor
from pipeline.ingest import ingest
from pipeline.ray_executor import RayExecutor
from pipeline.results import list_results
from pipeline.run import run
from pipeline.settings import Cluster
from pipeline.store import Store
from tests import dissect
from tests.dissect import published
from workers.worker import Shard, Worker

CHOSEN = [
    "data=mini", "data.num_images=64", "data.shard_size=8", "data.batch_size=4", "model=mininet",
    "model.weights=random", "layers=[features.4,features.11]", "min_images=16",
]  # fmt: skip
VICTIM = "000003"


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> Path:
    store = tmp_path_factory.mktemp("dataset")
    ingest(dissect.settings(store, *CHOSEN).data, Store(str(store)))
    return store


@pytest.fixture(scope="module")
def expected(dataset, tmp_path_factory) -> dict:
    store = tmp_path_factory.mktemp("undisturbed") / "store"
    shutil.copytree(dataset, store)
    dissect.run_only(store, *CHOSEN)
    return published(store)


@pytest.fixture(scope="module")
def local_ray() -> Iterator[None]:
    """A Ray of this process, for executors that find one."""
    with RayExecutor(Cluster(workers=2)) as executor:
        executor.run(lambda: Worker(*[lambda *_: 0] * 3), [Shard("warm", 0)], title="warm")
        yield


@pytest.fixture
def store(dataset, tmp_path) -> Path:
    return shutil.copytree(dataset, tmp_path / "store")


class Saboteur(RayExecutor):
    """A Ray executor whose workers meet with an accident at one shard of one stage."""

    def __init__(self, cluster, stage: str, accident: Callable[[Worker, Path], Worker], folder: Path) -> None:
        super().__init__(cluster)
        self._stage, self._accident, self._folder = stage, accident, folder

    def run(self, build, shards, *, title, **options):
        if title == self._stage:
            build = partial(_sabotaged, build, self._accident, self._folder)
        return super().run(build, shards, title=title, **options)


def _sabotaged(build, accident, folder: Path) -> Worker:
    return accident(build(), folder)


def _once(folder: Path) -> bool:
    """Whether this is the first time, on any worker."""
    try:
        (folder / "accident").touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _at_victim(worker: Worker, write: Callable[[Shard, object], int]) -> Worker:
    return Worker(
        worker.read, worker.compute,
        lambda shard, value: write(shard, value) if shard.name == VICTIM else worker.write(shard, value),
        worker.alone,
    )  # fmt: skip


def before_its_write(worker: Worker, folder: Path) -> Worker:
    def write(shard, value):
        if _once(folder):
            _die()
        return worker.write(shard, value)

    return _at_victim(worker, write)


def after_its_write(worker: Worker, folder: Path) -> Worker:
    def write(shard, value):
        written = worker.write(shard, value)
        if _once(folder):
            _die()
        return written

    return _at_victim(worker, write)


def within_a_file(worker: Worker, folder: Path) -> Worker:
    """Killed between the file's bytes and its name: half a file by another name is left."""
    replace = os.replace

    def half(source, target):
        if VICTIM in str(target) and _once(folder):
            os.truncate(source, os.path.getsize(source) // 2)
            _die()
        replace(source, target)

    def write(shard, value):
        os.replace = half
        return worker.write(shard, value)

    return _at_victim(worker, write)


def between_its_files(worker: Worker, folder: Path) -> Worker:
    """Killed once some of the shard's files are there, and not the last."""
    replace = os.replace

    def then_die(source, target):
        replace(source, target)
        if VICTIM in str(target) and _once(folder):
            _die()

    def write(shard, value):
        os.replace = then_die
        return worker.write(shard, value)

    return _at_victim(worker, write)


def hung(worker: Worker, folder: Path) -> Worker:
    def write(shard, value):
        if _once(folder):
            time.sleep(600)
        return worker.write(shard, value)

    return _at_victim(worker, write)


def always_fatal(worker: Worker, folder: Path) -> Worker:
    return _at_victim(worker, lambda shard, value: _die() or 0)


def sabotaged_run(store: Path, stage: str, accident: Callable, *more: str) -> dict:
    chosen = dissect.settings(store, *CHOSEN, "cluster=ray", "cluster.workers=2", *more)
    with Saboteur(chosen.cluster, stage, accident, store) as executor:
        run(chosen, executor)
    return published(store)


def events_of(store: Path) -> list[dict]:
    (run_id,) = [path.name for path in (store / "events").iterdir()]
    return read_events(Store(str(store)), run_id)


@pytest.mark.cluster
def test_memory_that_ends_on_a_node_says_what_to_lower(store, monkeypatch):
    monkeypatch.setenv("RAY_memory_usage_threshold", "0.01")
    monkeypatch.setenv("RAY_memory_monitor_refresh_ms", "100")
    chosen = dissect.settings(store, *CHOSEN, "cluster=ray", "cluster.workers=1")
    with make_executor(chosen.cluster) as executor, pytest.raises((NoWorkersError, ShardsFailed)) as raised:
        run(chosen, executor)
    assert re.search(
        r"OutOfMemory: its (process|worker) died .* ran low on memory\. Lower cluster\.workers", str(raised.value)
    )
    assert raised.value.exit_code == 1
    assert published(store) == {}


_WITH_LITTLE_MEMORY = """
import re, resource, sys
from pathlib import Path
from pipeline.cli import main
from pipeline.subject import prepare
from tests import dissect

prepare(dissect.settings(*sys.argv[1:]))
size = int(re.search(r"VmSize:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) * 1024
resource.setrlimit(resource.RLIMIT_AS, (size + 2**29,) * 2)
sys.argv = ["raydissect", "run", f"store={sys.argv[1]}", *sys.argv[2:]]
main()
"""


def test_memory_that_ends_at_a_batch_says_what_to_lower(tmp_path):
    """In a process that may have half a GiB more than it has: the first layer's activation takes more."""
    chosen = [
        "data=mini", "data.num_images=256", "data.size=32", "data.shard_size=256", "data.batch_size=256",
        "model=squeezenet1_1", "model.weights=random", "layers=features.1", "cluster=inline",
    ]  # fmt: skip
    settings = dissect.settings(tmp_path, *chosen)
    ingest(settings.data, Store(settings.store))
    command = [sys.executable, "-c", _WITH_LITTLE_MEMORY, str(tmp_path), *chosen]
    ended = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True)
    assert ended.returncode == 1, ended.stderr
    assert re.search(r"000000: OutOfMemory: can't allocate memory: .*, data\.batch_size at ingest", ended.stderr)
    assert published(tmp_path) == {}


@pytest.mark.cluster
@pytest.mark.parametrize(
    ("stage", "accident"),
    [
        ("record", before_its_write), ("record", within_a_file), ("record", between_its_files),
        ("record", after_its_write), ("tally", within_a_file), ("tally", after_its_write),
    ],
)  # fmt: skip
def test_a_worker_killed_before_during_or_after_its_shards_write(local_ray, store, expected, stage, accident):
    assert sabotaged_run(store, stage, accident) == expected
    retried = [event for event in events_of(store) if event["event"] == "shard_retried"]
    assert VICTIM in {event["shard"] for event in retried}
    assert {event["stage"] for event in retried} == {stage}
    assert len([event for event in events_of(store) if event["event"] == "worker_lost"]) == 1
    if accident is within_a_file:
        assert Store(str(store)).partials()


@pytest.mark.cluster
def test_a_worker_that_hangs(local_ray, store, expected):
    assert sabotaged_run(store, "record", hung, "cluster.shard_timeout=4") == expected
    assert any("cluster.shard_timeout" in one.get("reason", "") for one in events_of(store))


@pytest.mark.cluster
def test_a_shard_that_kills_every_worker_is_named_and_nothing_of_its_stage_is_published(local_ray, store, expected):
    with pytest.raises(
        ShardsFailed, match=rf"record: 1 of 8 shards failed.*\n  {VICTIM}: Quarantined: .*3 times"
    ) as raised:
        sabotaged_run(store, "record", always_fatal)
    assert raised.value.exit_code == 1
    assert published(store).items() <= expected.items()
    assert {result.stage for result in list_results(Store(str(store)))} == {"pilot"}
    dissect.run_only(store, *CHOSEN)
    assert published(store) == expected

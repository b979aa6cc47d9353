"""Reprocessing: what is done is told from what is not, by the reason; retention, failures, leases, kills."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from pipeline import reprocess as module
from pipeline.errors import BAD_INPUT, DONE, FAILED, INTERRUPTED, LEASE_HELD, LeaseLostError
from pipeline.gc import collect
from pipeline.lease import Lease
from pipeline.records import RETIRED, retired
from pipeline.reprocess import Stop, make_schedule_plan, reprocess
from pipeline.results import list_results
from pipeline.schedule import read_schedule
from pipeline.store import Store
from tests import small
from tests.command import Ended, raydissect
from tests.pipeline.test_hook import Listener

ROOT = Path(__file__).parents[2]
LAYER = "features.4"
SETTINGS = {"cluster": "inline", "quantile": 0.1, "tail_quantile": 0.2, "cluster.decode_threads": 1}


class InThisProcess:
    """A child that runs its command here, which saves the seconds that a process takes to start."""

    def __init__(self, name, words, on_line, ended) -> None:
        did = raydissect(*words)
        self.code = did.code
        self.error = did.err.rpartition("raydissect: ")[2].strip()
        for line in did.out.splitlines():
            on_line(name, line)
        ended.put(self)

    def interrupt(self) -> None: ...

    def wait(self, deadline) -> None: ...


@dataclass(frozen=True)
class Place:
    """A folder with a store, a data set in it, checkpoints, and a schedule."""

    folder: Path

    @property
    def store(self) -> Store:
        return Store(str(self.folder / "store"))

    @property
    def schedule(self) -> Path:
        return self.folder / "nightly.yaml"

    def ingest(self, labels: int = 0) -> None:
        source = self.folder / f"source{labels}"
        small.write_source(source, labels=labels)
        settings = [f"data.root={source}", "data.shard_size=4", "data.batch_size=2", "data.threads=1"]
        assert raydissect("ingest", "data=broden", "data.name=tiny", *settings, f"store={self.store.url}").code == 0

    def checkpoint(self, name: str, value: float = 0.0) -> Path:
        (self.folder / "ck").mkdir(exist_ok=True)
        path = self.folder / "ck" / name
        made = small.write_weights(self.folder / "made.safetensors", {"features.0.weight": ((0, 0, 0, 0), value)})
        os.replace(made, path)
        return path

    def write(self, **values) -> None:
        job = {"models": "mininet", "checkpoints": f"{self.folder}/ck/*.safetensors", "data": "tiny", "layers": LAYER}
        given = {"store": self.store.url, "settings": SETTINGS, "jobs": [job], **values}
        given["jobs"] = [{**job, **one} for one in given["jobs"]]
        self.schedule.write_text(yaml.safe_dump(given))

    def run(self, *words) -> Ended:
        return raydissect("reprocess", self.schedule, *words)

    def plan(self) -> list[tuple[str, str]]:
        """Checkpoint and reason of every task."""
        steps = make_schedule_plan(read_schedule(self.schedule)).steps
        return [(Path(step.task.checkpoint).stem, step.reason) for step in steps]

    def files(self) -> dict[str, float]:
        return {path: self.store.modified(path) for path in self.store.list("")}


@pytest.fixture(scope="module")
def ingested(tmp_path_factory) -> Place:
    place = Place(tmp_path_factory.mktemp("ingested"))
    place.ingest()
    return place


@pytest.fixture
def place(ingested, tmp_path) -> Place:
    shutil.copytree(ingested.folder / "store", tmp_path / "store")
    place = Place(tmp_path)
    place.checkpoint("a.safetensors", 0.1)
    place.write()
    return place


@pytest.fixture
def here(monkeypatch):
    monkeypatch.setattr(module, "Child", InThisProcess)


def test_first_all_then_nothing_then_only_what_is_new_or_changed(place, here, monkeypatch):
    place.checkpoint("b.safetensors", 0.2)
    assert place.plan() == [("a", "new"), ("b", "new")]
    first = place.run()
    assert first.code == DONE, first.err
    assert "0 tasks found done, 2 computed, 0 failed" in first.out
    published = {result.path for result in list_results(place.store)}
    assert len({path.split("/")[1] for path in published}) == 2

    with monkeypatch.context() as unread:  # an unchanged checkpoint is neither read nor loaded
        unread.setattr(module, "prepare", None)
        unread.setattr(module, "read_anywhere", None)
        assert place.plan() == [("a", "done"), ("b", "done")]
        assert "2 tasks found done, 0 computed, 0 failed" in place.run().out

    place.checkpoint("c.safetensors", 0.3)
    place.checkpoint("b.safetensors", 0.4)
    os.utime(place.folder / "ck" / "a.safetensors")  # touched, not changed
    assert place.plan() == [("a", "done"), ("b", "changed weights"), ("c", "new")]
    assert "1 tasks found done, 2 computed, 0 failed" in place.run().out
    assert published < {result.path for result in list_results(place.store)}

    place.ingest(labels=1)
    assert place.plan() == [(name, "changed data") for name in "abc"]
    place.write(jobs=[{}, {"layers": "features.6"}, {"settings": {"quantile": 0.2}}])
    reasons = [reason for name, reason in place.plan() if name == "a"]
    assert reasons == ["changed data", *["new layers, stages or settings"] * 2]


def test_what_was_run_by_hand_is_found_done(place, here):
    path = place.folder / "ck" / "a.safetensors"
    by_hand = [f"{name}={value}" for name, value in SETTINGS.items()]
    words = ["model=mininet", f"model.weights={path}", "data=tiny", f"layers={LAYER}", f"store={place.store.url}"]
    assert raydissect("run", *by_hand, *words).code == 0
    place.checkpoint("b.safetensors", 0.2)
    assert place.plan() == [("a", "done"), ("b", "new")]
    shutil.copy(path, path.with_name("c.safetensors"))  # the same weights by another name
    assert place.plan() == [("a", "done"), ("b", "new"), ("c", "done")]


def test_a_dry_run_writes_nothing(place, here):
    for name in ("before", "after"):
        files = place.files()
        ended = place.run("--dry-run")
        assert ended.code == DONE
        assert place.files() == files
        assert ("run  new" in ended.out) == (name == "before")
        assert place.run().code == DONE


def test_what_cannot_be_run_fails_and_the_others_go_on(place, here):
    (place.folder / "ck" / "broken.safetensors").write_bytes(b"none")
    place.write(jobs=[{"data": ["tiny", "absent"]}, {"checkpoints": "/none/x.pth"}, {"checkpoints": "/none/*.pth"}])
    ended = place.run()
    assert ended.code == FAILED
    assert "0 tasks found done, 1 computed, 4 failed" in ended.out
    assert "jobs.2: /none/*.pth matches no weights file" in ended.out
    assert "failed: mininet a.safetensors absent: no data set 'absent'" in ended.err
    assert "failed: mininet x.pth tiny: there is no checkpoint /none/x.pth" in ended.err
    assert "is no safetensors file of 4 bytes" in ended.err
    reasons = [reason for _, reason in place.plan()]
    assert reasons == ["done", "failed before", *["cannot be run"] * 3]


def test_a_checkpoint_that_was_out_of_reach_for_a_night_is_still_done(place, here):
    place.run()
    path = place.folder / "ck" / "a.safetensors"
    place.write(jobs=[{"checkpoints": str(path)}])
    assert place.plan() == [("a", "done")]
    path.rename(place.folder / "away")
    assert place.run().code == FAILED
    (place.folder / "away").rename(path)
    assert place.plan() == [("a", "done")]


def test_results_that_somebody_removed_are_made_again(place, here):
    place.run()
    (result, *_) = [one for one in list_results(place.store) if one.stage == "detectors"]
    place.store.remove(result.path)
    assert place.plan() == [("a", "results are gone")]
    assert "1 computed" in place.run().out
    assert place.store.exists(result.path)


def test_what_retention_removed_is_not_made_again(place, here):
    place.write(retention={"older_than_days": 1e-9, "grace_hours": 0})
    ended = place.run()
    assert ended.code == DONE
    assert "1 computed" in ended.out
    assert "retention removed" in ended.out
    assert list_results(place.store) == []
    assert place.plan() == [("a", "done, removed by retention")]
    assert "1 tasks found done, 0 computed" in place.run().out
    place.checkpoint("a.safetensors", 0.7)
    assert place.plan() == [("a", "changed weights")]


def test_keep_newest_keeps_each_task_settled(place, here):
    jobs = [{}, {"settings": {"quantile": 0.2}}]
    place.write(retention={"keep_newest": 1}, jobs=jobs)
    assert "2 computed" in place.run().out
    assert [reason for _, reason in place.plan()] == ["done, removed by retention", "done"]
    assert "2 tasks found done, 0 computed" in place.run().out


def test_gc_by_hand_is_retention_too_and_killed_in_between_it_does_no_harm(place, here, monkeypatch):
    place.run()

    def killed(store, dry_run=False, **policy):
        if not dry_run:
            raise KeyboardInterrupt
        return collect(store, dry_run=True, **policy)

    with monkeypatch.context() as broken:
        broken.setattr("pipeline.records.collect", killed)
        assert raydissect("gc", f"store={place.store.url}", "--older-than", "0").code == INTERRUPTED
    assert retired(place.store)
    assert place.plan() == [("a", "done")]
    files = place.files()
    assert raydissect("gc", f"store={place.store.url}", "--older-than", "0", "--dry-run").code == DONE
    assert place.files() == files
    assert raydissect("gc", f"store={place.store.url}", "--older-than", "0").code == DONE
    assert len(place.store.list(f"{RETIRED}/results")) == 7
    assert place.plan() == [("a", "done, removed by retention")]


def test_a_held_lease_is_exit_code_3_and_bad_schedules_are_2(place, here):
    lease = Lease(place.store, "reprocess", 60)
    ended = place.run()
    assert ended.code == LEASE_HELD
    assert f"is held by process {os.getpid()} on" in ended.err
    assert place.run("--dry-run").code == DONE
    lease.release()
    place.write(concurrency=0)
    assert place.run().code == BAD_INPUT
    assert place.run("--dry-run", "--serve").code == BAD_INPUT


def test_other_versions_are_another_study(place, here, monkeypatch):
    place.run()
    monkeypatch.setattr("pipeline.study.torch.__version__", "3.0")
    assert place.plan() == [("a", "changed versions or machine")]


class Sleeper(InThisProcess):
    """A child that does not end until it is interrupted."""

    running = 0
    most = 0

    def __init__(self, name, words, on_line, ended) -> None:
        Sleeper.running += 1
        Sleeper.most = max(Sleeper.most, Sleeper.running)

    def wait(self, deadline) -> None:
        Sleeper.running -= 1


@pytest.mark.parametrize("how", ["stop", "lost"])
def test_a_lost_lease_or_a_wish_to_stop_ends_the_tasks(place, monkeypatch, how):
    monkeypatch.setattr(module, "Child", Sleeper)
    place.checkpoint("b.safetensors", 0.2)
    place.checkpoint("c.safetensors", 0.3)
    place.write(concurrency=2, lease_seconds=1, retention={"staging": True})
    stop = Stop()

    def interfere() -> None:
        time.sleep(0.7)
        if how == "stop":
            stop.asked = True
        else:
            text = place.store.read("leases/reprocess/00000001.json")
            place.store.write("leases/reprocess/00000002.json", text)

    threading.Thread(target=interfere).start()
    with pytest.raises(KeyboardInterrupt if how == "stop" else LeaseLostError):
        reprocess(read_schedule(place.schedule), stop, lambda plan: None, lambda name, line: None)
    assert Sleeper.running == 0
    assert Sleeper.most == 2
    Sleeper.most = 0
    assert place.plan() == [("a", "unfinished"), ("b", "unfinished"), ("c", "new")]


def spawn(place: Place, *words: str) -> subprocess.Popen:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "pipeline.cli", "reprocess", str(place.schedule), *words]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=place.folder, env=environment
    )


def wait_for(condition, limit: float = 60) -> None:
    deadline = time.monotonic() + limit
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def attended() -> set[int]:
    """Processes that run tasks, begun by these tests, whoever is their parent by now."""
    ours = f"RAYDISSECT_TESTS={os.getpid()}\0".encode()
    found = set()
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if b"pipeline.attended" in path.read_bytes() and ours in path.with_name("environ").read_bytes():
                found.add(int(path.parent.name))
        except OSError:
            continue
    return found


def test_killed_in_earnest_its_task_ends_too_and_the_next_takes_over_when_the_lease_expires(place):
    """Real processes throughout: the first is killed with -9, the second finds the lease, the third does the rest."""
    place.write(lease_seconds=6)
    before = attended()
    first = spawn(place)
    try:
        wait_for(lambda: attended() - before)
        first.send_signal(signal.SIGKILL)
        first.communicate()
        assert place.run().code == LEASE_HELD
        wait_for(lambda: not attended() - before)
        assert place.plan() in ([("a", "unfinished")], [("a", "done")])
        word = place.store.read_json("leases/reprocess/00000001.json")
        time.sleep(max(word["free"] - time.time(), 0))
        third = place.run()
    finally:
        first.kill()
    assert third.code == DONE, third.err
    assert "1 computed, 0 failed" in third.out
    assert "mininet a.safetensors tiny | " in third.err
    assert place.plan() == [("a", "done")]
    assert place.store.list("leases/reprocess") == ["leases/reprocess/00000002.json"]


def test_sigterm_ends_it_with_its_task_and_leaves_the_lease(place):
    before = attended()
    process = spawn(place)
    wait_for(lambda: attended() - before)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert process.returncode == INTERRUPTED, err
    assert "interrupted" in err
    assert not attended() - before
    assert place.plan() == [("a", "unfinished")]
    Lease(place.store, "reprocess", 60)


def test_a_failing_task_is_told_to_a_command_and_a_url(place, here, monkeypatch):
    monkeypatch.setattr("pipeline.hook.PAUSE", 0.01)
    kept = place.folder / "told.json"
    script = f"import sys; open({str(kept)!r}, 'a').write(sys.stdin.read())"
    with Listener(503, 200) as listener:
        hook = {"command": [sys.executable, "-c", script], "url": listener.url}
        place.write(jobs=[{"data": ["absent", "tiny"]}], on_failure=hook, settings={**SETTINGS, "cluster.workers": 2})
        assert place.run().code == FAILED
    (first, body) = listener.bodies
    assert first == body == json.loads(kept.read_text())
    assert body.pop("time").startswith("20")
    assert len(body.pop("task_id")) == 16
    assert "cluster.workers=2" in body.pop("settings")
    assert body.pop("error").startswith("no data set 'absent'")
    assert body == {
        "schedule": "nightly", "store": place.store.url, "task": "mininet a.safetensors absent", "exit_code": BAD_INPUT,
    }  # fmt: skip

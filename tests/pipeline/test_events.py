import json
import threading
from datetime import UTC, datetime, timedelta

import pytest

from pipeline import events, status
from pipeline.errors import StoreError
from pipeline.events import EventLog, alive_path, read_events
from pipeline.store import Store
from tests.command import raydissect
from tests.pipeline.conftest import Small


@pytest.fixture
def store(tmp_path) -> Store:
    return Store(str(tmp_path))


def kinds(found: list[dict]) -> list[str]:
    return [one["event"] for one in found]


def test_a_run_tells_what_it_did(small: Small):
    store = Store(str(small.store))
    (word,) = [store.read_json(path) for path in store.list("runs")]
    found = read_events(store, word["run_id"])
    assert kinds(found)[0] == "run_started"
    assert kinds(found)[-1] == "run_ended"
    assert (found[-1]["outcome"], found[-1]["error"]) == ("done", None)
    assert {one["run_id"] for one in found} == {word["run_id"]}
    assert [one["time"] for one in found] == sorted(one["time"] for one in found)
    recorded = [one for one in found if one["event"] == "shard_done" and one["stage"] == "record"]
    assert (len(recorded), sum(one["images"] for one in recorded)) == (10, 40)
    assert all(one["bytes_written"] > 0 and one["compute_seconds"] > 0 for one in recorded)
    published = [one for one in found if one["event"] == "result_published"]
    assert len(published) == 7
    started = {one["stage"]: one["shards"] for one in found if one["event"] == "stage_started"}
    done = {one["stage"]: one["shards"] for one in found if one["event"] == "stage_done"}
    assert started == done
    assert started["record"] == 10


def test_an_error_is_told(store):
    def fail() -> None:
        with EventLog(store, "r") as tell:
            tell("stage_started", stage="tally", shards=2)
            raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        fail()
    assert kinds(read_events(store, "r")) == ["stage_started", "run_ended"]
    assert read_events(store, "r")[-1]["error"] == "ValueError: no"


def test_lines_of_many_threads_are_all_there(store, monkeypatch):
    monkeypatch.setattr(events, "SHORTEST", 0.01)
    monkeypatch.setattr(events, "LONGEST", 0.01)

    def talk(who: int) -> None:
        for number in range(500):
            log("shard_done", stage="s", shard=f"{who}-{number}")

    with EventLog(store, "r") as log:
        log("stage_started", stage="s", shards=2000)
        threads = [threading.Thread(target=talk, args=(who,)) for who in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    shards = [one["shard"] for one in read_events(store, "r") if one["event"] == "shard_done"]
    assert sorted(shards) == sorted(f"{who}-{number}" for who in range(4) for number in range(500))
    assert store.read_json(alive_path("r"))["shards_done"] == 2000


def test_a_store_that_takes_no_events_is_no_reason_to_fail(store, monkeypatch, caplog):
    wrote = Store.write

    def refuse(self: Store, path: str, data: bytes) -> None:
        raise StoreError("disk full")

    with EventLog(store, "r") as log:
        monkeypatch.setattr(Store, "write", refuse)
        log("shard_done", stage="s", shard="0")
        log._write()
        log._write()
        monkeypatch.setattr(Store, "write", wrote)
    assert kinds(read_events(store, "r")) == ["shard_done", "run_ended"]
    assert caplog.text.count("cannot be written for now") == 1


@pytest.mark.parametrize(("silent", "told"), [(3, "running"), (1000, "killed? silent for 1000 s")])
def test_status_tells_a_living_run_from_a_dead_one(store, silent, told):
    now = datetime(2026, 1, 1, 12, tzinfo=UTC)
    heard = (now - timedelta(seconds=silent)).isoformat()
    alive = {"time": heard, "host": "node-7", "pid": 12, "stage": "tally", "shards": 40, "shards_done": 9}
    store.write_json(alive_path("r"), alive)
    row = status._signs_of_life(store, "r", now)
    assert row == {"outcome": told, "progress": "tally 9/40", "where": "node-7 12", "failed": 0, "retried": 0}


def test_status_as_json(small: Small):
    ended = raydissect("status", "--json", f"store={small.store}")
    found = json.loads(ended.out)
    assert ended.code == 0
    assert set(found) == {"studies", "runs", "unfinished", "passes"}
    assert found["studies"][0]["images"] == 40
    assert found["runs"][0]["outcome"] == "done"

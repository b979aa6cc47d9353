"""The service: it fires by cron, never twice at once, makes up for what it missed, and ends with its tasks."""

import json
import logging
import signal
import sys
import threading
import time
from datetime import UTC, datetime, timedelta

import pytest
from apscheduler.triggers.cron import CronTrigger

from pipeline import service as module
from pipeline.errors import BAD_INPUT, DONE, LeaseHeldError, SettingsError
from pipeline.reprocess import Outcome, Stop
from pipeline.service import Service
from tests.pipeline.test_reprocess import InThisProcess, Place, attended, spawn, wait_for

STATE = "reprocess/schedules/nightly.json"
CRON = "0 3 * * *"


@pytest.fixture
def place(tmp_path) -> Place:
    """A place where there is nothing to do: what is not tested here is not run."""
    place = Place(tmp_path)
    place.write(cron=CRON)
    place.store.write("x", b"")
    return place


@pytest.fixture
def told(caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("raydissect"), "propagate", True)
    caplog.set_level(logging.INFO)
    return caplog


class Firings:
    """In the place of `reprocess`: counts firings, takes its time, raises what it is told to."""

    def __init__(self, seconds: float = 0.0, raises: list[Exception] | None = None) -> None:
        self.seconds, self.raises = seconds, raises or []
        self.began: list[float] = []
        self.now = self.most = 0

    def __call__(self, schedule, stop, on_plan, on_line) -> Outcome:
        self.began.append(time.time())
        self.now += 1
        self.most = max(self.most, self.now)
        time.sleep(self.seconds)
        self.now -= 1
        if self.raises:
            raise self.raises.pop(0)
        return Outcome()


@pytest.fixture
def serve(place, monkeypatch):
    """Starts the service in a thread, with `reprocess` replaced; at the end all are stopped."""
    threads = []

    def start(firings: Firings) -> Service:
        monkeypatch.setattr(module, "reprocess", firings)
        stop = Stop()
        service = Service(place.schedule, stop, lambda plan: None, lambda name, line: None)
        thread = threading.Thread(target=service.run)
        thread.start()
        threads.append((stop, thread))
        return service

    yield start
    for stop, thread in threads:
        stop.asked = True
        thread.join()


def serve_until(place: Place, when: datetime) -> None:
    place.store.write_json(STATE, {"served_until": when.isoformat()})


def service_of(place: Place) -> Service:
    return Service(place.schedule, Stop(), lambda plan: None, lambda name, line: None)


def test_a_first_start_has_missed_nothing_and_is_remembered(place):
    now = datetime(2026, 11, 5, 12, tzinfo=UTC)
    service = service_of(place)
    assert service.missed(now) is None
    assert service.missed(now) is None
    assert service.missed(now + timedelta(hours=14)) is None
    assert service.missed(now + timedelta(days=3)) == datetime(2026, 11, 6, 3, tzinfo=UTC)


def test_what_was_served_at_its_time_is_not_missed(place):
    serve_until(place, datetime(2026, 11, 5, 3, 0, 0, 1, tzinfo=UTC))
    assert service_of(place).missed(datetime(2026, 11, 5, 4, tzinfo=UTC)) is None


def test_what_was_missed_runs_once_at_the_start_and_not_at_the_next(place, serve, told):
    serve_until(place, datetime.now(UTC) - timedelta(days=3))
    firings = Firings()
    serve(firings)
    wait_for(lambda: "0 failed" in told.text)
    assert "was missed and runs now" in told.text
    time.sleep(0.3)
    again = Firings()
    serve(again)
    time.sleep(0.5)
    assert (len(firings.began), len(again.began)) == (1, 0)


def test_firings_never_overlap_and_those_that_pass_meanwhile_are_one(place, serve, monkeypatch, told):
    monkeypatch.setattr(module, "cron_trigger", lambda *_: CronTrigger(second="*", timezone=UTC))
    serve_until(place, datetime.now(UTC) - timedelta(days=3))
    firings = Firings(seconds=1.6)
    serve(firings)
    wait_for(lambda: len(firings.began) == 3)
    assert firings.most == 1
    assert all(after - before >= 1.6 for before, after in zip(firings.began, firings.began[1:], strict=False))


def test_a_broken_file_fails_its_firing_and_is_told_and_the_next_is_of_the_mended_file(place, serve, told):
    kept = place.folder / "told.json"
    script = f"import sys; open({str(kept)!r}, 'w').write(sys.stdin.read())"
    good = {"cron": CRON, "on_failure": {"command": [sys.executable, "-c", script]}}
    place.write(**good)
    firings = Firings()
    service = serve(firings)
    place.write(**good, concurency=3)
    service.fire()
    assert firings.began == []
    body = json.loads(kept.read_text())
    assert "unknown setting 'concurency'" in body["error"]
    assert (body["schedule"], body["task"], body["exit_code"]) == ("nightly", None, BAD_INPUT)
    place.write(**{**good, "cron": "15 4 * * *"})
    service.fire()
    assert len(firings.began) == 1
    assert "hour='4'" in str(service._scheduler.get_job(module.CRON).trigger)


def test_a_held_lease_is_logged_and_taken_when_it_is_free(place, serve, told):
    firings = Firings(raises=[LeaseHeldError("the lease is held by another", time.time() + 1)])
    serve_until(place, datetime.now(UTC) - timedelta(days=3))
    serve(firings)
    wait_for(lambda: len(firings.began) == 2)
    assert "schedule nightly waits: the lease is held by another" in told.text
    wait_for(lambda: "0 failed" in told.text)


def test_an_unforeseen_error_is_told_and_does_not_end_the_service(place, serve, told):
    firings = Firings(raises=[RuntimeError("out of the blue")])
    service = serve(firings)
    service.fire()
    assert "this firing failed: out of the blue" in told.text
    service.fire()
    assert len(firings.began) == 2


def test_a_schedule_without_cron_cannot_be_served(place):
    place.write()
    with pytest.raises(SettingsError, match="has no cron"):
        service_of(place)
    assert place.run("--serve").code == BAD_INPUT


def test_in_earnest_it_is_ended_with_its_task_and_the_restarted_one_finishes_it(tmp_path, monkeypatch):
    """A real process: what a container sees that is stopped in the middle of a night and started again."""
    place = Place(tmp_path)
    place.ingest()
    place.checkpoint("a.safetensors", 0.1)
    place.write(cron=CRON)
    long_ago = datetime.now(UTC) - timedelta(days=3)
    serve_until(place, long_ago)
    before = attended()
    first = spawn(place, "--serve")
    wait_for(lambda: attended() - before)
    first.send_signal(signal.SIGTERM)
    _, err = first.communicate(timeout=60)
    assert first.returncode == DONE, err
    assert not attended() - before
    assert place.store.read_json(STATE)["served_until"] == long_ago.isoformat()
    monkeypatch.setattr("pipeline.reprocess.Child", InThisProcess)
    plans = []
    stop = Stop()
    second = threading.Thread(target=Service(place.schedule, stop, plans.append, lambda name, line: None).run)
    second.start()
    wait_for(lambda: place.store.read_json(STATE)["served_until"] != long_ago.isoformat())
    stop.asked = True
    second.join()
    assert [step.reason for step in plans[0].steps] == ["unfinished"]
    assert place.plan() == [("a", "done")]

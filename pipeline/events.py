"""What happens in a run, as JSON lines in the store, and a sign of life beside them: readable from any machine.

    events/<run_id>/000000.jsonl, 000001.jsonl, ...    one event a line, in order
    events/<run_id>/alive.json                         when the driver last wrote, where it runs, how far it is

Object stores cannot append, so lines are gathered and written as one more file, after ever longer whiles. Events are for
people: a store that does not take them is no reason for a run to fail.
"""

import json
import logging
import os
import socket
import threading
from collections import deque
from dataclasses import replace
from datetime import UTC, datetime
from time import monotonic
from typing import Any, Protocol, Self

from pipeline.errors import StoreError
from pipeline.redact import shown
from pipeline.store import Store

SHORTEST, LONGEST = 2.0, 30.0
"""Seconds from one file of events to the next, at the beginning of a run and later: a tenth of its age between these."""

PATIENCE = 10
"""Seconds for which a file of events is tried to be written; what could not be goes into the next."""

MOST_LINES = 50_000
"""Events that are held at the most where the store does not take them; then the oldest are lost."""

logger = logging.getLogger("raydissect")


class OnEvent(Protocol):
    """Told what happened; values are such as JSON has."""

    def __call__(self, event: str, /, **what: Any) -> None: ...


def ignore(event: str, /, **what: Any) -> None:
    """For those whom nobody listens to."""


class EventLog:
    """Writes a run's events into its store; a context manager, callable as `OnEvent` from any thread."""

    def __init__(self, store: Store, run_id: str) -> None:
        self._store = replace(store, options={**store.options, "retry_seconds": PATIENCE})
        self._run_id = run_id
        self._lines: deque[str] = deque(maxlen=MOST_LINES)
        self._changed, self._ended = threading.Lock(), threading.Event()
        self._files, self._begun, self._complained = 0, monotonic(), False
        self._alive: dict[str, Any] = {"host": socket.gethostname(), "pid": os.getpid()}
        self._thread = threading.Thread(target=self._write_on, name="events", daemon=True)

    def __enter__(self) -> Self:
        self._write()
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> None:
        told = None if error is None else f"{type(error).__name__}: {error}"
        self("run_ended", outcome=outcome_of(error), error=told)
        self._ended.set()
        self._thread.join()
        self._write()

    def __call__(self, event: str, /, **what: Any) -> None:
        what = {name: shown(value) if isinstance(value, str) else value for name, value in what.items()}
        line = json.dumps({"time": _now(), "run_id": self._run_id, "event": event, **what}, ensure_ascii=False)
        with self._changed:
            self._lines.append(line)
            if event == "stage_started":
                self._alive |= {"stage": what["stage"], "shards": what["shards"], "shards_done": 0}
            elif event == "shard_done":
                self._alive["shards_done"] = self._alive.get("shards_done", 0) + 1
            elif name := {"shard_failed": "shards_failed", "shard_retried": "shards_retried"}.get(event):
                self._alive[name] = self._alive.get(name, 0) + 1

    def _write_on(self) -> None:
        while not self._ended.wait(min(LONGEST, max(SHORTEST, (monotonic() - self._begun) / 10))):
            self._write()

    def _write(self) -> None:
        with self._changed:
            lines, alive = list(self._lines), {"time": _now(), **self._alive}
        try:
            if lines:
                data = "".join(f"{line}\n" for line in lines).encode()
                self._store.write(f"{events_folder(self._run_id)}/{self._files:06d}.jsonl", data)
                self._files += 1
                with self._changed:
                    for _ in range(min(len(lines), len(self._lines))):
                        self._lines.popleft()
            self._store.write_json(alive_path(self._run_id), alive)
        except StoreError as error:
            if not self._complained:
                logger.warning("events of this run cannot be written for now: %s", error)
            self._complained = True


def outcome_of(error: BaseException | None) -> str:
    """How a run ended that raised this, or nothing."""
    if error is None:
        return "done"
    return "interrupted" if isinstance(error, KeyboardInterrupt) else "failed"


def events_folder(run_id: str) -> str:
    return f"events/{run_id}"


def alive_path(run_id: str) -> str:
    return f"{events_folder(run_id)}/alive.json"


def read_events(store: Store, run_id: str) -> list[dict[str, Any]]:
    """A run's events so far, in order."""
    paths = [path for path in store.list(events_folder(run_id)) if path.endswith(".jsonl")]
    return [json.loads(line) for path in paths for line in store.read(path).splitlines()]


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")

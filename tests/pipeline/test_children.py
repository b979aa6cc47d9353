"""Commands in processes of their own: what they say is passed on, what they said last explains, none is left."""

import queue
import stat
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from pipeline import children
from pipeline.children import Child, end
from pipeline.errors import BAD_INPUT


@pytest.fixture
def program(tmp_path, monkeypatch):
    """Puts a shell script in the place of Python."""

    def put(script: str) -> None:
        path = tmp_path / "program"
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
        monkeypatch.setattr(children, "sys", SimpleNamespace(executable=str(path)))

    return put


def start(lines: list, *words: str) -> tuple[Child, "queue.SimpleQueue[Child]"]:
    ended: queue.SimpleQueue[Child] = queue.SimpleQueue()
    return Child("x", list(words), lambda name, line: lines.append((name, line)), ended), ended


def test_a_real_command_that_fails_says_why():
    lines = []
    child, ended = start(lines, "models", "alexnte")
    assert ended.get(timeout=60) is child
    assert child.code == BAD_INPUT
    assert child.error.startswith("no network's name holds 'alexnte'; did you mean 'alexnet'")
    assert lines == [("x", f"raydissect: {child.error}")]


def test_the_error_is_the_last_message_whole_or_the_last_line(program):
    for script, error in [
        ("echo 'raydissect: first'; echo; echo 'raydissect: one'; echo '  two' >&2; exit 1", "one\n  two"),
        ("echo Traceback; echo 'KeyError: 1'; exit 1", "KeyError: 1"),
        ("exit 7", "ended with 7 and said nothing"),
        ("kill -9 $$", "ended with -9 and said nothing"),
    ]:
        program(script)
        child, ended = start([])
        ended.get(timeout=10)
        assert child.error == error


def test_those_that_do_not_heed_an_interrupt_are_killed_with_what_they_started(program, tmp_path, monkeypatch):
    monkeypatch.setattr(children, "GRACE", 0.5)
    program(f"trap '' INT; sleep 60 & echo $! > {tmp_path}/pid; echo ready; wait; sleep 60")
    lines = []
    pair = [start(lines)[0] for _ in range(2)]
    while len(lines) < 2:
        time.sleep(0.01)
    began = time.monotonic()
    end(pair)
    assert time.monotonic() - began < 5
    assert [child.code for child in pair] == [-9, -9]
    while Path(f"/proc/{(tmp_path / 'pid').read_text().strip()}").exists():
        assert time.monotonic() - began < 10
        time.sleep(0.02)

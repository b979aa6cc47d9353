"""Commands in processes of their own: their lines are passed on, and they are ended with this process."""

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import TextIO, cast

from pipeline.attended import GRACE

OnLine = Callable[[str, str], None]
"""Called with a task's name and a line of what it says."""

KEPT_LINES, LONGEST = 40, 4000


class Child:
    """One `raydissect` command in a process of its own.

    Attributes:
        code: its exit code, once it ended.
    """

    def __init__(self, name: str, words: list[str], on_line: OnLine, ended: "queue.SimpleQueue[Child]") -> None:
        self.name, self.code = name, None
        self._on_line, self._ended, self._last = on_line, ended, deque[str](maxlen=KEPT_LINES)
        self._process = subprocess.Popen(
            [sys.executable, "-m", "pipeline.attended"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,  # Ctrl-C at a terminal is for this process, which passes it on
        )
        with contextlib.suppress(BrokenPipeError):  # it has ended already, and will be found so
            stdin = cast(TextIO, self._process.stdin)
            stdin.write(json.dumps(words) + "\n")
            stdin.flush()
        self._stdout = cast(TextIO, self._process.stdout)
        self._reader = threading.Thread(target=self._read, name=name, daemon=True)
        self._reader.start()

    @property
    def error(self) -> str:
        """What it said last: the command's own message, from its beginning, or else its last line."""
        lines = list(self._last)
        starts = [place for place, line in enumerate(lines) if line.startswith("raydissect: ")]
        said = "\n".join(lines[starts[-1] :] if starts else lines[-1:]).removeprefix("raydissect: ")
        return said[:LONGEST] or f"ended with {self.code} and said nothing"

    def _read(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as stdout:
            for line in stdout:
                self._last.append(line.rstrip("\n"))
                self._on_line(self.name, line.rstrip("\n"))
        self.code = self._process.wait()
        self._close()
        self._ended.put(self)

    def interrupt(self) -> None:
        """What Ctrl-C at its terminal would do."""
        if self._process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.send_signal(signal.SIGINT)

    def wait(self, deadline: float) -> None:
        """Wait for its end until then, and kill what is left of it."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(max(deadline - time.monotonic(), 0))
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._reader.join(GRACE)
        self._close()

    def _close(self) -> None:
        if self._process.stdin is not None:
            with contextlib.suppress(OSError):
                self._process.stdin.close()


def end(children: list[Child]) -> None:
    """End commands: at once all are asked, and those that do not heed it are killed."""
    for child in children:
        child.interrupt()
    deadline = time.monotonic() + GRACE
    for child in children:
        child.wait(deadline)

"""The command line as a person uses it: words in; exit code, standard output and standard error out."""

import contextlib
import io
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

from pipeline.cli import main

_WITH_SIGINT = (  # which a shell that starts the tests in the background would have it ignore
    "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); from pipeline.cli import main; main()"
)


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    code: int
    out: str
    err: str


def raydissect(*words: object) -> Ended:
    """Run the command in this process, neither stream a terminal; a traceback would be raised."""
    logger = logging.getLogger("raydissect")
    before = logger.handlers, logger.level, logger.propagate
    out, err = (io.TextIOWrapper(io.BytesIO(), "utf-8") for _ in range(2))
    argv = ["raydissect", *map(str, words)]
    code: object = 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), mock.patch.object(sys, "argv", argv):
        try:
            main()
        except SystemExit as ended:
            code = ended.code or 0
        finally:
            logger.handlers, logger.level, logger.propagate = before
    assert isinstance(code, int)
    return Ended(code, _text(out), _text(err))


def interrupt(*words: object, when: Callable[[], bool], limit: float = 120) -> Ended:
    """Run the command in a process of its own and, once `when` says so, do what Ctrl-C does at a terminal."""
    process = subprocess.Popen(
        [sys.executable, "-c", _WITH_SIGINT, *map(str, words)],
        cwd=Path(__file__).parents[1],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        deadline = time.monotonic() + limit
        while not when():
            if process.poll() is not None or time.monotonic() > deadline:
                raise AssertionError(f"ended too early or never began: {process.communicate(timeout=10)}")
            time.sleep(0.01)
        os.killpg(process.pid, signal.SIGINT)
        out, err = process.communicate(timeout=limit)
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            process.wait()
    return Ended(process.returncode, out, err)


def _text(stream: io.TextIOWrapper) -> str:
    stream.flush()
    stream.seek(0)
    return stream.read()

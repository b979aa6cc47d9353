"""`python -m pipeline.attended`: the command, ended when the process that started it is gone.

That process writes the command's words, a line of JSON, into standard input: a checkpoint's URL may be signed, and a
command line is for all users of a machine to see. Then it holds its end of the pipe. However it ends, kill -9 included, the pipe is then closed,
and this one stops as at Ctrl-C: what is finished is kept.
"""

import json
import os
import signal
import sys
import threading
import time

GRACE = 20.0
"""Seconds to stop in, before it is killed."""


def _attend() -> None:
    while os.read(0, 1024):  # not sys.stdin, whose lock a thread would hold while the interpreter ends
        pass
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(GRACE)
    os.kill(os.getpid(), signal.SIGKILL)


def _read_words() -> list[str]:
    """The line that comes first, and nothing beyond it."""
    line = b""
    while not line.endswith(b"\n"):
        if not (piece := os.read(0, 1)):
            sys.exit("the process that started this one is gone")
        line += piece
    return json.loads(line)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where the first of all was put in the background
    sys.argv[1:] = _read_words()
    threading.Thread(target=_attend, name="attended", daemon=True).start()
    from pipeline.cli import main

    main()

"""`python -m pipeline.attended WORDS...`: the command, ended when the process that started it is gone.

That process holds the other end of standard input. However it ends, kill -9 included, the pipe is then closed,
and this one stops as at Ctrl-C: what is finished is kept.
"""

import os
import signal
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


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where the first of all was put in the background
    threading.Thread(target=_attend, name="attended", daemon=True).start()
    from pipeline.cli import main

    main()

"""The failure hook: a command or a URL is told, as JSON, what failed."""

import logging
import subprocess
import time
import urllib.error
import urllib.request
from http.client import HTTPException
from typing import Any

from pipeline.schedule import OnFailure
from pipeline.store import to_json

logger = logging.getLogger("raydissect")

TRIES, PAUSE, URL_SECONDS, COMMAND_SECONDS = 3, 1.0, 10, 60


def tell(hook: OnFailure, body: dict[str, Any]) -> None:
    """Tell of a failure; that it could not be told is logged, and changes nothing else."""
    data = to_json(body)
    if hook.command:
        _run(hook.command, data)
    if hook.url:
        _post(hook.url, data)


def _run(command: tuple[str, ...], data: bytes) -> None:
    try:
        ended = subprocess.run(command, input=data, capture_output=True, timeout=COMMAND_SECONDS, check=False)
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        logger.error("on_failure: %s could not be run: %s", command[0], error)
        return
    if ended.returncode:
        said = (ended.stderr or ended.stdout).decode(errors="replace").strip()[-500:]
        logger.error("on_failure: %s ended with %d: %s", command[0], ended.returncode, said)


def _post(url: str, data: bytes) -> None:
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"}, method="POST")
    for attempt in range(1, TRIES + 1):
        try:
            with _opener.open(request, timeout=URL_SECONDS):
                return
        except urllib.error.HTTPError as error:
            error.close()
            problem, again = f"answers {error.code} {error.reason}", error.code >= 500 or error.code == 429
        except (OSError, ValueError, HTTPException) as error:
            problem, again = f"cannot be reached: {error}", not isinstance(error, ValueError)
        if not again or attempt == TRIES:
            break
        time.sleep(PAUSE * attempt)
    logger.error("on_failure: the URL %s, nobody was told", problem)  # without the URL: it may be a secret


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """A POST that is sent on arrives without its body, and anyone could send it anywhere: it is an error."""

    def redirect_request(self, *_: Any, **__: Any) -> None:
        return None


_opener = urllib.request.build_opener(_NoRedirects)

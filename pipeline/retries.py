"""What a store that is not a disk fails with: which errors pass, which stay, and what a person can do about them.

Only `Store` tries again, and only here is it said for how long: what fsspec's file systems and botocore try by
themselves is switched off where it would multiply.
"""

import errno
import http.client
import logging
import os
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import tenacity

from pipeline.errors import SettingsError

logger = logging.getLogger("raydissect")

RETRY_SECONDS = 120.0
"""How long an operation is tried again: longer than a gateway takes to restart, shorter than people wait for an error."""

LONGEST_WAIT = 10.0
"""Seconds between two attempts, at most."""

VARIABLE = "RAYDISSECT_RETRY_SECONDS"
"""The environment variable that sets another time; it stands beside the store's credentials, on every node."""

_STATUSES = {408, 425, 429, 500, 502, 503, 504}

_CODES = {  # of S3, whose status does not tell, or that come in a body without one
    "BadDigest", "ConditionalRequestConflict", "IncompleteBody", "InternalError", "OperationAborted", "RequestTimeout",
    "ServiceUnavailable", "SlowDown", "Throttling", "ThrottlingException", "TooManyRequests",
    "XAmzContentSHA256Mismatch",
}  # fmt: skip

_CLASSES = {  # by name, since s3fs is an extra
    "aiohttp.client_exceptions.ClientConnectionError",
    "aiohttp.client_exceptions.ClientPayloadError",
    "botocore.exceptions.ChecksumError",
    "botocore.exceptions.ConnectionError",
    "botocore.exceptions.FlexibleChecksumError",
    "botocore.exceptions.HTTPClientError",
    "botocore.exceptions.IncompleteReadError",
    "botocore.parsers.ResponseParserError",
    "s3fs.utils.FileExpired",  # replaced while it was read by ranges
}

_ERRNOS = {
    errno.ECONNABORTED, errno.ECONNREFUSED, errno.ECONNRESET, errno.EHOSTUNREACH, errno.ENETUNREACH, errno.EPIPE,
    errno.ETIMEDOUT,
}  # fmt: skip

_LASTING = (FileNotFoundError, FileExistsError, PermissionError, IsADirectoryError, NotADirectoryError)

Made = TypeVar("Made")


def retry_seconds(options: dict[str, Any]) -> float:
    """How long a store's operations are tried again: its option, else the environment, else `RETRY_SECONDS`.

    Raises:
        SettingsError: it is no number of seconds.
    """
    value = options.get("retry_seconds", os.environ.get(VARIABLE, RETRY_SECONDS))
    try:
        seconds = float(value)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds < float("inf"):
        raise SettingsError(f"{VARIABLE} is {value!r}: give the seconds, 0 or more, for which a store is tried again")
    return seconds


def retry(call: Callable[[], Made], what: str, seconds: float) -> Made:
    """Call until it succeeds, fails with an error that stays, or `seconds` are over; then raise its last error.

    Waits are drawn at random, up to twice as long each time: workers that failed together do not
    come back together.
    """

    def warn(state: tenacity.RetryCallState) -> None:
        error = state.outcome.exception() if state.outcome else None
        wait = state.next_action.sleep if state.next_action else 0.0
        logger.warning("%s: %s; trying again in %.1f s, for up to %g s", what, said(error), wait, seconds)

    attempts = tenacity.Retrying(
        retry=tenacity.retry_if_exception(is_transient),
        wait=tenacity.wait_random_exponential(multiplier=0.25, max=LONGEST_WAIT),
        stop=tenacity.stop_after_delay(seconds),
        before_sleep=warn,
        reraise=True,
    )
    return attempts(call)


def is_transient(error: BaseException) -> bool:
    """Whether the same request may succeed a moment later."""
    if isinstance(error, _LASTING):
        return False
    names = {f"{kind.__module__}.{kind.__qualname__}" for kind in type(error).__mro__}
    if "botocore.exceptions.SSLError" in names or "aiohttp.client_exceptions.ClientSSLError" in names:
        return "certificate" not in str(error).lower()
    if names & _CLASSES or codes(error) & _CODES:
        return True
    if isinstance(error, (ConnectionError, TimeoutError, http.client.IncompleteRead)):
        return True
    if (status := http_status(error)) is not None:
        return status in _STATUSES
    return isinstance(error, OSError) and error.errno in _ERRNOS


def is_taken(error: BaseException) -> bool:
    """Whether a create-only write was refused because there is a file."""
    return isinstance(error, FileExistsError) or http_status(error) == 412


def http_status(error: BaseException) -> int | None:
    """The status of the answer that an error, or what it came from, tells of."""
    for one in _chain(error):
        status = _response(one).get("ResponseMetadata", {}).get("HTTPStatusCode")
        for name in ("", "status", "code"):  # one after the other: aiohttp warns of its own `code`
            found = getattr(one, name, None) if name else status
            if isinstance(found, int) and 100 <= found < 600:
                return found
    return None


def codes(error: BaseException) -> set[str]:
    """What S3 calls an error, or what it came from."""
    return {str(_response(one).get("Error", {}).get("Code")) for one in _chain(error)} - {"None"}


def said(error: BaseException | None) -> str:
    """An error in words: the server's where it said something, since s3fs keeps only some of them."""
    for one in _chain(error):
        if told := _response(one).get("Error"):
            return ": ".join(str(part) for part in (told.get("Code"), told.get("Message")) if part)
    return str(error) or type(error).__name__


def explain(error: BaseException, seconds: float) -> str:
    """What went wrong, and the cure where one is known."""
    names, found = {kind.__name__ for kind in type(error).__mro__}, codes(error)
    if "NoSuchBucket" in found:
        return "there is no such bucket: create it, or correct the URL"
    if isinstance(error, FileNotFoundError):
        return "there is no such file"
    if names & {"NoCredentialsError", "PartialCredentialsError"}:
        return (
            f"{said(error)}: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE to a profile of "
            "~/.aws/credentials, here and on every worker"
        )
    if isinstance(error, PermissionError) and (found or http_status(error)):
        return f"{said(error)}: the store refuses this key, or the key may not do this; check the credentials"
    if is_transient(error):
        return (
            f"{said(error)}; gave up after {seconds:g} s ({VARIABLE} sets how long). "
            "What is finished is kept: once the store answers, the same command goes on from there"
        )
    return said(error)


def _response(error: BaseException) -> dict[str, Any]:
    response = getattr(error, "response", None)
    return response if isinstance(response, dict) else {}


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__

"""The named errors and the exit codes they end in."""

from typing import Any

DONE, FAILED, BAD_INPUT, LEASE_HELD, INTERRUPTED = 0, 1, 2, 3, 130


class RaydissectError(Exception):
    """An error with a message meant for the person who ran the command."""

    exit_code = FAILED


class SettingsError(RaydissectError, ValueError):
    """A setting is unknown, out of range, or contradicts another."""

    exit_code = BAD_INPUT


class InputError(RaydissectError, ValueError):
    """Input data cannot be used: says which file, row or image, and what to do."""

    exit_code = BAD_INPUT


class StoreError(RaydissectError, OSError):
    """The store cannot be read or written."""


class ShardsFailed(RaydissectError):
    """Some shards raised or were quarantined; the others are done and kept.

    Attributes:
        failures: all of them, as `workers.process.Failure`.
    """

    failures: tuple[Any, ...] = ()


class NoWorkersError(RaydissectError):
    """Work remains and no worker can be had."""

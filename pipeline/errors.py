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


class AlteredError(StoreError):
    """A file that was written is gone, or is not what was written.

    Attributes:
        altered: its path in the store.
    """

    def __init__(self, path: str, location: str, why: str) -> None:
        super().__init__(f"{location} is not what was written there: {why}")
        self.altered = path


class ShardsFailed(RaydissectError):
    """Some shards raised or were quarantined; the others are done and kept.

    Attributes:
        failures: all of them, as `workers.process.Failure`.
    """

    failures: tuple[Any, ...] = ()


class NoWorkersError(RaydissectError):
    """Work remains and no worker can be had.

    Attributes:
        failures: why none could be built, as `workers.process.Failure`.
    """

    failures: tuple[Any, ...] = ()


class LeaseHeldError(RaydissectError):
    """Another process holds the lease: the message says who, and until when.

    Attributes:
        free: when it may be taken unless it is renewed, in seconds since 1970; 0 if unknown.
    """

    exit_code = LEASE_HELD

    def __init__(self, message: str, free: float = 0.0) -> None:
        super().__init__(message)
        self.free = free


class LeaseLostError(RaydissectError):
    """The lease ran out before it was renewed, or another has it: what goes on under it must stop."""


class JobsError(RaydissectError):
    """A cluster's jobs cannot be reached: nobody answers, or the token is missing or refused."""

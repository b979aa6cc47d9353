"""A lease in the store, so that two never do the same work: one holds it, renews it, and leaves it or lets it expire.

Each taking is a generation, a file that is made only where there is none: of two takers one wins. The newest
generation counts, and may be followed by the next once it is released or expired; it is never removed before
there is a newer one. What a holder writes to its own file after it lost the lease is therefore of no effect.

Clocks: a holder counts its time from before it wrote, on both of its clocks (one stands still while a machine
sleeps, the other jumps when it is set), and holds no longer once either says so. It never renews a lease that has
run out, nor trusts a renewal that was written too late: else one that saw it expired could take it at the same
moment. Others wait `SKEW` of the lease's length longer than the holder, so that two machines' clocks may differ by
as much. Where they differ by more, two may hold; each renewal then looks for a newer generation, so the older one
stops within a third of the lease.
"""

import logging
import os
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Self

from pydantic import BaseModel, ConfigDict, ValidationError

from pipeline.errors import LeaseHeldError, LeaseLostError, StoreError
from pipeline.store import Store

logger = logging.getLogger("raydissect")

SKEW = 0.25
"""How much later than the holder others see a lease expire, as a share of its length."""

RENEWALS = 3
"""How often a lease is renewed in its length."""


@dataclass(frozen=True)
class Clock:
    """The time: of day, and one that is never set."""

    wall: Callable[[], float] = time.time
    steady: Callable[[], float] = time.monotonic


class Word(BaseModel):
    """What a generation's file says."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    host: str
    pid: int
    since: datetime
    expires: float  # seconds since 1970, by the holder's clock
    free: float  # when others may take it
    released: bool = False


class Lease:
    """A lease that this process took; `check` tells whether it has it still. A context that releases it.

    Raises:
        LeaseHeldError: another holds it; says who, and until when.
        StoreError: the store cannot be read or written.
    """

    def __init__(self, store: Store, name: str, seconds: float, clock: Clock | None = None) -> None:
        self._store, self._name, self._seconds, self._clock = store, name, seconds, clock or Clock()
        self._since = datetime.fromtimestamp(self._clock.wall(), UTC)
        self._lock, self._stop = threading.Lock(), threading.Event()
        self._lost: LeaseLostError | None = None
        self._thread: threading.Thread | None = None
        store.check_create_only()  # or two could hold it
        newest = self._newest()
        if newest:
            self._refuse_held(newest)
        self.generation = newest + 1
        word, self._deadlines = self._word()
        if not store.create(self._path(self.generation), _to_bytes(word)) or self._newest() != self.generation:
            # In the second case this generation was taken, left and removed before: a newer one counts.
            self._refuse_held(self._newest())
            raise LeaseHeldError(f"the lease {name} in {store.url} was taken by another at this moment")
        self.check()
        for generation in self._generations():
            if generation < self.generation:
                store.remove(self._path(generation))

    def __enter__(self) -> Self:
        self._thread = threading.Thread(target=self._keep, name=f"lease {self._name}", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join(timeout=self._seconds)
        try:
            self.release()
        except StoreError as error:
            logger.warning("the lease %s could not be released and will expire: %s", self._name, error)

    @property
    def held(self) -> bool:
        """Whether it is held, by what this process knows."""
        return self._lost is None and self._in_time()

    def check(self) -> None:
        """Do nothing if it is held.

        Raises:
            LeaseLostError: it is not.
        """
        if self._lost is None and not self._in_time():
            self._lost = LeaseLostError(
                f"the lease {self._name} in {self._store.url} could not be renewed within {self._seconds:g} s"
            )
        if self._lost is not None:
            raise self._lost

    def renew(self) -> None:
        """Hold it for its whole length from now on.

        Raises:
            LeaseLostError: it has run out, or another has it.
        """
        with self._lock:
            self.check()
            word, deadlines = self._word()
            self._store.write(self._path(self.generation), _to_bytes(word))
            self.check()
            newest = self._newest()
            if newest != self.generation:
                self._lost = LeaseLostError(
                    f"the lease {self._name} in {self._store.url} is lost to {self._holder(newest)}"
                )
                raise self._lost
            self._deadlines = deadlines

    def release(self) -> None:
        """Leave it to the next."""
        with self._lock:
            if self._lost is None:
                self._lost = LeaseLostError(f"the lease {self._name} in {self._store.url} was released")
                word = self._word()[0].model_copy(update={"released": True})
                self._store.write(self._path(self.generation), _to_bytes(word))

    def _keep(self) -> None:
        """Renew it until it is released or lost; a store that fails for a moment costs nothing."""
        while not self._stop.wait(self._seconds / RENEWALS):
            try:
                self.renew()
            except LeaseLostError:
                return
            except StoreError as error:
                logger.warning("the lease %s was not renewed, next try soon: %s", self._name, error)

    def _in_time(self) -> bool:
        wall, steady = self._deadlines
        return self._clock.wall() < wall and self._clock.steady() < steady

    def _word(self) -> tuple[Word, tuple[float, float]]:
        """What to write now, and until when it holds on both clocks."""
        wall, steady = self._clock.wall(), self._clock.steady()
        expires = wall + self._seconds
        word = Word(
            host=socket.gethostname(),
            pid=os.getpid(),
            since=self._since,
            expires=expires,
            free=expires + SKEW * self._seconds,
        )
        return word, (expires, steady + self._seconds)

    def _refuse_held(self, generation: int) -> None:
        word = self._read(generation)
        if word is not None and not word.released and self._clock.wall() < word.free:
            free = datetime.fromtimestamp(word.free, UTC)
            raise LeaseHeldError(
                f"the lease {self._name} in {self._store.url} is held by {_who(word)}; "
                f"unless it is renewed, it is free at {free:%Y-%m-%d %H:%M:%S} UTC",
                word.free,
            )

    def _holder(self, generation: int) -> str:
        word = self._read(generation)
        return _who(word) if word else "another"

    def _read(self, generation: int) -> Word | None:
        """What a generation's file says; None where a newer one has replaced it meanwhile."""
        path = self._path(generation)
        try:
            return Word.model_validate_json(self._store.read(path))
        except StoreError:
            if self._store.exists(path):
                raise
            return None
        except ValidationError as error:
            raise StoreError(f"{self._store.location(path)} is no lease; remove it if nothing runs") from error

    def _generations(self) -> list[int]:
        names = [path.rpartition("/")[2] for path in self._store.list(f"leases/{self._name}")]
        return sorted(int(name.removesuffix(".json")) for name in names if name.removesuffix(".json").isdecimal())

    def _newest(self) -> int:
        return max(self._generations(), default=0)

    def _path(self, generation: int) -> str:
        return f"leases/{self._name}/{generation:08d}.json"


def _who(word: Word) -> str:
    return f"process {word.pid} on {word.host} since {word.since:%Y-%m-%d %H:%M:%S} UTC"


def _to_bytes(word: Word) -> bytes:
    return word.model_dump_json(indent=1).encode()

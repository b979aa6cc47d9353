"""Which actor gets which shard, and what happens when an actor dies. No Ray here: see `Pool`.

An actor holds up to `window` shards: it computes one and reads the others. When it dies, all it held
are suspects: each is then given to an actor that holds nothing else, so that the next death has one
culprit. A shard that has seen `max_deaths` deaths, the last of them alone, is quarantined.
"""

import logging
from collections import deque
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field, replace
from time import monotonic
from typing import Any, Protocol

from pipeline.errors import NoWorkersError
from pipeline.ledger import Ledger, build_failed
from pipeline.settings import Cluster
from workers.process import BATCH_SIZE, OUT_OF_MEMORY, Failure
from workers.worker import Shard, ShardReport

MEMORY = "memory"
"""A word in the reason of a death that less work at a time would have prevented."""

_LESS_MEMORY = f"Lower cluster.workers, and if one worker is too many for a node, {BATCH_SIZE}"
_LONGEST_WAIT = 0.5  # seconds until deadlines are looked at again

logger = logging.getLogger("raydissect")


@dataclass(frozen=True)
class Death:
    """An actor is gone; it is nobody's fault where its node was preempted (`counts` is false)."""

    reason: str
    counts: bool = True


Ticket = Hashable  # stands for a call that an actor works on


class Pool(Protocol):
    """What the dispatcher needs of a cluster."""

    def open(self) -> Any:
        """A new actor; it need not have found a place yet."""
        ...

    def start(self, actor: Any, name: str) -> Ticket:
        """Have the actor build this run's worker."""
        ...

    def process(self, actor: Any, shard: Shard) -> Ticket: ...

    def wait(self, tickets: Sequence[Ticket], timeout: float) -> list[Ticket]:
        """Those whose outcome is known; waits up to `timeout` seconds for the first."""
        ...

    def outcome(self, ticket: Ticket) -> Any:
        """What became of a call: its `ShardReport` or hardware, a `Failure`, or the actor's `Death`."""
        ...

    def kill(self, actor: Any) -> None: ...

    def describe(self) -> str:
        """What a worker asks for and what the cluster has, for messages."""
        ...


@dataclass(eq=False)
class Seat:
    """A place for one actor; another takes it when that one dies. Seats outlive a run."""

    name: str
    actor: Any = None
    starting: Ticket | None = None
    started_for: "Dispatch | None" = None
    ready: bool = False
    failed_starts: int = 0
    running: dict[Ticket, Shard] = field(default_factory=dict)  # oldest first
    oldest_since: float = 0.0  # when the oldest of them can have begun

    @property
    def tickets(self) -> list[Ticket]:
        return [self.starting] if self.starting is not None else list(self.running)


class Dispatch:
    """One run: gives shards to seats until each is done, failed or quarantined.

    Args:
        pool: the cluster.
        cluster: window, max_deaths and timeouts.
        seats: where actors sit; those that could not be started leave the list.
        shards: the work.
        ledger: is told how each shard ended.
    """

    def __init__(
        self, pool: Pool, cluster: Cluster, seats: list[Seat], shards: Sequence[Shard], ledger: Ledger
    ) -> None:
        self._pool, self._cluster, self._seats, self._ledger = pool, cluster, seats, ledger
        self._pending = deque(shards)
        self._suspects: deque[Shard] = deque()
        self._deaths: dict[str, list[str]] = {}
        self._build_failures: list[Failure] = []
        self._unsettled = len(shards)
        self._last_ready = monotonic()

    def run(self) -> None:
        """Work until every shard is settled.

        Raises:
            NoWorkersError: shards remain and no actor can be had.
        """
        for seat in self._seats:
            seat.failed_starts = 0
            if seat.starting is None:
                seat.ready = False
        while self._unsettled:
            for seat in self._seats:
                self._keep_manned(seat)
            self._hand_out()
            by_ticket = {ticket: seat for seat in self._seats for ticket in seat.tickets}
            for ticket in self._pool.wait(list(by_ticket), self._patience()):
                seat = by_ticket[ticket]
                if ticket in seat.tickets:  # not lost with its actor a moment ago
                    self._settle(seat, ticket)
            for seat in self._seats:
                self._check_deadline(seat)
            self._check_workers()

    def _keep_manned(self, seat: Seat) -> None:
        if seat.ready or seat.starting is not None:
            return
        if seat.actor is None:
            seat.actor = self._pool.open()
        seat.starting, seat.started_for = self._pool.start(seat.actor, seat.name), self

    def _hand_out(self) -> None:
        """Give every actor its first shard before any gets its second."""
        for depth in range(self._cluster.window):
            for seat in self._seats:
                if not seat.ready or len(seat.running) != depth:
                    continue
                shard = self._next_shard(seat)
                if shard is not None:
                    if depth == 0:
                        seat.oldest_since = monotonic()
                    seat.running[self._pool.process(seat.actor, shard)] = shard

    def _next_shard(self, seat: Seat) -> Shard | None:
        if not seat.running:
            waiting = self._suspects or self._pending
            return waiting.popleft() if waiting else None
        if any(shard.name in self._deaths for shard in seat.running.values()):
            return None
        empty = sum(not other.running for other in self._seats)
        return self._pending.popleft() if len(self._pending) > empty else None

    def _patience(self) -> float:
        deadlines = [seat.oldest_since + self._cluster.shard_timeout for seat in self._seats if seat.running]
        return max(0.0, min([_LONGEST_WAIT, *(deadline - monotonic() for deadline in deadlines)]))

    def _settle(self, seat: Seat, ticket: Ticket) -> None:
        outcome = self._pool.outcome(ticket)
        if isinstance(outcome, Death):
            self._bury(seat, outcome)
        elif ticket == seat.starting:
            self._welcome(seat, outcome)
        else:
            self._take(seat, ticket, outcome)

    def _welcome(self, seat: Seat, outcome: Any) -> None:
        seat.starting = None
        if seat.started_for is not self:  # a start that the run before did not wait for
            return
        if isinstance(outcome, Failure):
            logger.error("%s: %s could not be built: %s", self._ledger.title, seat.name, outcome)
            self._dismiss(seat, outcome)
            return
        seat.ready, seat.failed_starts = True, 0
        logger.debug("%s: %s is ready on %s", self._ledger.title, seat.name, outcome)

    def _take(self, seat: Seat, ticket: Ticket, outcome: Any) -> None:
        if ticket == next(iter(seat.running)):
            seat.oldest_since = monotonic()
        self._conclude(seat.running.pop(ticket), outcome)

    def _conclude(self, shard: Shard, outcome: ShardReport | Failure) -> None:
        self._unsettled -= 1
        self._ledger.add(replace(outcome, shard=shard))

    def _check_deadline(self, seat: Seat) -> None:
        limit = self._cluster.shard_timeout
        if seat.running and monotonic() - seat.oldest_since >= limit:
            self._bury(seat, Death(f"killed: no shard done in {limit:g} s (cluster.shard_timeout)"))

    def _bury(self, seat: Seat, death: Death) -> None:
        """Empty a seat whose actor is dead or hangs, and requeue what it held."""
        done = set(self._pool.wait(list(seat.running), 0)) if seat.running else set()
        held = []
        for ticket, shard in seat.running.items():
            outcome = self._pool.outcome(ticket) if ticket in done else death
            if isinstance(outcome, Death):
                held.append(shard)
            else:
                self._conclude(shard, outcome)
        self._pool.kill(seat.actor)
        was_starting = seat.starting is not None
        seat.actor, seat.starting, seat.ready, seat.running = None, None, False, {}
        names = ", ".join(shard.name for shard in held) or "no shard"
        logger.warning("%s: %s died, holding %s: %s", self._ledger.title, seat.name, names, death.reason)
        self._ledger.lose(seat.name, death.reason)
        self._requeue(held, death)
        if was_starting and death.counts:
            seat.failed_starts += 1
            if seat.failed_starts >= self._cluster.max_deaths:
                message = f"its process died {seat.failed_starts} times while starting: {death.reason}"
                short = MEMORY in death.reason
                message += f". {_LESS_MEMORY}" if short else ""
                self._dismiss(seat, Failure(None, OUT_OF_MEMORY if short else "WorkerDied", message))

    def _requeue(self, held: list[Shard], death: Death) -> None:
        for shard in reversed(held):
            if not death.counts and shard.name not in self._deaths:
                self._pending.appendleft(shard)
                self._ledger.retry(shard, death.reason)
                continue
            reasons = self._deaths.setdefault(shard.name, [])
            if death.counts:
                reasons.append(death.reason)
            if len(held) == 1 and len(reasons) >= self._cluster.max_deaths:
                self._conclude(shard, _quarantined(shard, reasons))
            else:
                self._suspects.appendleft(shard)
                self._ledger.retry(shard, death.reason)

    def _dismiss(self, seat: Seat, failure: Failure) -> None:
        self._build_failures.append(failure)
        if seat.actor is not None:
            self._pool.kill(seat.actor)
        self._seats.remove(seat)

    def _check_workers(self) -> None:
        if not self._unsettled:
            return
        if any(seat.ready for seat in self._seats):
            self._last_ready = monotonic()
            return
        title, limit = self._ledger.title, self._cluster.start_timeout
        if self._build_failures and (not self._seats or monotonic() - self._last_ready > limit):
            raise build_failed(title, self._build_failures)
        if monotonic() - self._last_ready > limit:
            raise NoWorkersError(
                f"{title}: {self._unsettled} shards remain, and there was no worker for {limit:g} s "
                f"(cluster.start_timeout). {self._pool.describe()}"
            )


def _quarantined(shard: Shard, reasons: list[str]) -> Failure:
    times = f"{len(reasons)} times" if len(reasons) > 1 else "once"
    if MEMORY in reasons[-1]:
        return Failure(shard, OUT_OF_MEMORY, f"its worker died {times}, last: {reasons[-1]}. {_LESS_MEMORY}")
    return Failure(
        shard,
        "Quarantined",
        f"its worker died {times}, last: {reasons[-1]}. If memory is short, use fewer cluster.workers; "
        "to see where it dies, run again with cluster=inline",
    )

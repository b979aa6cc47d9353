"""The rules of dispatch, on a simulated cluster with a simulated clock."""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline import dispatch
from pipeline.dispatch import Death, Dispatch, Seat
from pipeline.errors import BAD_INPUT, NoWorkersError, ShardsFailed
from pipeline.ledger import Ledger
from pipeline.settings import Cluster
from workers.process import Failure
from workers.worker import Shard, ShardReport

FOREVER = float("inf")


@dataclass(eq=False)
class Actor:
    free_at: float = 0.0
    alive: bool = True


@dataclass
class SimulatedPool:
    """Actors work on shards one after another; `fates` says what befalls a shard the n-th time."""

    seconds: float = 1.0
    fates: dict[str, list[str]] = field(default_factory=dict)  # a shard's last fate is its fate ever after
    start_fates: list[Any] = field(default_factory=list)  # likewise, over all starts
    now: float = 0.0
    outcomes: dict[int, tuple[Actor, float, Any]] = field(default_factory=dict)
    handed_out: list[tuple[str, tuple[str, ...]]] = field(default_factory=list)
    held: dict[Actor, dict[int, Shard]] = field(default_factory=dict)
    computed: list[str] = field(default_factory=list)
    killed: list[Actor] = field(default_factory=list)

    def open(self) -> Actor:
        return Actor()

    def start(self, actor: Actor, name: str) -> int:
        fate = _next(self.start_fates, "cpu")
        delay = FOREVER if fate == "hang" else 1.0
        return self._call(actor, self.now + delay, Death("start") if fate == "die" else fate)

    def process(self, actor: Actor, shard: Shard) -> int:
        fate = _next(self.fates.get(shard.name, []), "done")
        self._settle()
        held = self.held.setdefault(actor, {})
        self.handed_out.append((shard.name, tuple(s.name for s in held.values())))
        actor.free_at = max(actor.free_at, self.now) + (FOREVER if fate == "hang" else self.seconds)
        outcome = {
            "done": ShardReport(shard, 0, 0, 0, 0),
            "raise": Failure(None, "InputError", "image 3 is no JPEG", exit_code=BAD_INPUT),
            "die": Death("killed"),
            "preempt": Death("node gone", counts=False),
            "hang": None,
        }[fate]
        ticket = self._call(actor, actor.free_at, outcome)
        held[ticket] = shard
        return ticket

    def wait(self, tickets: list[int], timeout: float) -> list[int]:
        moments = sorted(self._moment(ticket) for ticket in tickets)
        if timeout > 0:
            self.now = min([self.now + timeout, *(max(self.now, moment) for moment in moments[:1])])
        return [ticket for ticket in tickets if self._moment(ticket) <= self.now]

    def outcome(self, ticket: int) -> Any:
        actor, moment, outcome = self.outcomes[ticket]
        death = self._death(actor)
        if (death and death[0] < moment) or not actor.alive:
            return death[1] if death else Death("gone")
        if isinstance(outcome, ShardReport):
            self.computed.append(outcome.shard.name)
        return outcome

    def kill(self, actor: Actor) -> None:
        actor.alive = False
        self.killed.append(actor)

    def describe(self) -> str:
        return "A worker asks for much."

    def _call(self, actor: Actor, moment: float, outcome: Any) -> int:
        self.outcomes[len(self.outcomes)] = (actor, moment, outcome)
        return len(self.outcomes) - 1

    def _death(self, actor: Actor) -> tuple[float, Death] | None:
        deaths = [(m, o) for a, m, o in self.outcomes.values() if a is actor and isinstance(o, Death)]
        return min(deaths, key=lambda death: death[0]) if deaths else None

    def _moment(self, ticket: int) -> float:
        actor, moment, _ = self.outcomes[ticket]
        death = self._death(actor)
        return min(moment, death[0]) if death else moment

    def _settle(self) -> None:
        for held in self.held.values():
            for ticket in [ticket for ticket in held if self._moment(ticket) <= self.now]:
                del held[ticket]


def _next(fates: list[Any], default: Any) -> Any:
    if not fates:
        return default
    return fates.pop(0) if len(fates) > 1 else fates[0]


def _shards(number: int) -> list[Shard]:
    return [Shard(f"s{index}", index) for index in range(number)]


pytestmark = pytest.mark.timeout(60)


def _run(pool: SimulatedPool, number: int, workers: int = 2, **settings: Any) -> list[ShardReport]:
    seats = [Seat(f"worker {index}") for index in range(workers)]
    ledger = Ledger("test", None)
    cluster = Cluster(workers=workers, **settings)
    with mock.patch.object(dispatch, "monotonic", side_effect=lambda: pool.now):
        Dispatch(pool, cluster, seats, _shards(number), ledger).run()
    return ledger.close()


def _failures(pool: SimulatedPool, number: int, **settings: Any) -> dict[str, Failure]:
    with pytest.raises(ShardsFailed) as raised:
        _run(pool, number, **settings)
    return {failure.shard.name: failure for failure in raised.value.failures}


def test_reports_come_in_order_and_each_shard_is_handed_out_once():
    pool = SimulatedPool()
    assert [report.shard for report in _run(pool, 20, workers=3)] == _shards(20)
    assert sorted(name for name, _ in pool.handed_out) == sorted(shard.name for shard in _shards(20))


def test_an_actor_holds_at_most_the_window():
    pool = SimulatedPool()
    _run(pool, 30, workers=2, window=3)
    assert max(len(others) for _, others in pool.handed_out) == 2


def test_the_last_shards_are_shared_out_instead_of_queued_behind_one_another():
    pool = SimulatedPool(seconds=10)
    _run(pool, 2, workers=2)
    assert pool.now < 20


def test_a_killer_is_quarantined_after_max_deaths_and_its_neighbors_are_done():
    pool = SimulatedPool(fates={"s1": ["die"]})
    failures = _failures(pool, 6, workers=1)
    assert set(failures) == {"s1"}
    assert failures["s1"].message.startswith("its worker died 3 times")
    assert [name for name, _ in pool.handed_out].count("s1") == 3
    assert sorted(pool.computed) == ["s0", "s2", "s3", "s4", "s5"]


def test_a_suspect_runs_alone():
    pool = SimulatedPool(fates={"s0": ["die", "done"]})
    _run(pool, 6, workers=1)
    runs = Counter()
    for name, others in pool.handed_out:
        runs[name] += 1
        assert not others or all(runs[each] == 1 for each in (name, *others)), (name, others)
    assert runs == {"s0": 2, "s1": 2, "s2": 1, "s3": 1, "s4": 1, "s5": 1}


@given(
    killers=st.sets(st.integers(0, 11), max_size=4),
    workers=st.integers(1, 3),
    window=st.integers(1, 4),
    max_deaths=st.integers(1, 3),
)
def test_only_killers_are_quarantined(killers: set[int], workers: int, window: int, max_deaths: int):
    pool = SimulatedPool(fates={f"s{index}": ["die"] for index in killers})
    settings = {"workers": workers, "window": window, "max_deaths": max_deaths}
    failed = set(_failures(pool, 12, **settings)) if killers else set()
    if not killers:
        _run(pool, 12, **settings)
    assert failed == {f"s{index}" for index in killers}
    assert sorted(pool.computed) == sorted(f"s{index}" for index in range(12) if index not in killers)


def test_a_preempted_node_is_free():
    pool = SimulatedPool(fates={"s0": ["preempt"] * 9 + ["done"]})
    assert len(_run(pool, 3, max_deaths=1)) == 3


def test_a_hung_shard_is_killed_at_its_deadline():
    pool = SimulatedPool(fates={"s0": ["hang", "done"]})
    assert len(_run(pool, 4, workers=1, shard_timeout=50)) == 4
    assert 50 < pool.now < 70
    assert len(pool.killed) == 1


def test_waiting_behind_another_shard_is_not_hanging():
    pool = SimulatedPool(seconds=40)
    assert len(_run(pool, 12, workers=1, window=4, shard_timeout=50)) == 12
    assert pool.killed == []


def test_application_errors_are_not_retried_and_all_are_told():
    pool = SimulatedPool(fates={"s1": ["raise"], "s4": ["raise"]})
    failures = _failures(pool, 6)
    assert list(failures) == ["s1", "s4"]
    assert [name for name, _ in pool.handed_out].count("s1") == 1
    assert len(pool.computed) == 4


def test_what_an_actor_finished_before_it_died_is_not_done_again():
    pool = SimulatedPool(seconds=0.0, fates={"s1": ["die", "done"]})  # s0 done and s1 dead at one moment
    _run(pool, 2, workers=1)
    assert pool.computed.count("s0") == 1


def test_one_build_error_is_told_once_and_ends_the_run():
    pool = SimulatedPool(start_fates=[Failure(None, "InputError", "no weights", "Traceback", BAD_INPUT)])
    with pytest.raises(NoWorkersError, match=r"no worker could be built: InputError: no weights") as raised:
        _run(pool, 6, workers=3)
    assert raised.value.exit_code == BAD_INPUT
    assert str(raised.value).count("no weights") == 1
    assert pool.handed_out == []


def test_others_go_on_where_one_worker_cannot_be_built():
    pool = SimulatedPool(start_fates=[Failure(None, "OSError", "no such disk"), "cpu"])
    assert len(_run(pool, 6, workers=2)) == 6


def test_a_process_that_dies_while_starting_is_not_started_forever():
    pool = SimulatedPool(start_fates=["die"])
    with pytest.raises(NoWorkersError, match="died 3 times while starting: start"):
        _run(pool, 6, workers=2)


def test_no_worker_within_the_start_timeout_fails_the_run():
    pool = SimulatedPool(start_fates=["hang"])
    with pytest.raises(NoWorkersError, match=r"6 shards remain, and there was no worker for 30 s .*asks for much"):
        _run(pool, 6, start_timeout=30)
    assert 30 < pool.now < 32


def test_no_worker_within_the_start_timeout_after_the_last_one_died_fails_the_run():
    pool = SimulatedPool(start_fates=["cpu", "hang"], fates={"s2": ["die"]})
    with pytest.raises(NoWorkersError, match="4 shards remain"):
        _run(pool, 6, workers=1, start_timeout=30)

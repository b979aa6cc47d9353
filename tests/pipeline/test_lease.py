"""One holder at a time: under every interleaving of takers, with clocks that differ, stop and jump; and in earnest."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from pipeline.errors import LEASE_HELD, LeaseHeldError, LeaseLostError, StoreError
from pipeline.lease import SKEW, Clock, Lease
from pipeline.store import Store

SECONDS = 10.0


@dataclass
class World:
    """A clock of day for all, and a store of which every call takes two turns: before and after it has its effect."""

    now: float = 1000.0
    files: dict[str, bytes] = field(default_factory=dict)
    url: str = "memory://world"

    def __post_init__(self):
        self.actors: dict[int, Actor] = {}

    def _turns(self, effect):
        actor = self.actors[threading.get_ident()]
        actor.turn()
        done = effect()
        actor.turn()
        return done

    def check_create_only(self):
        """It is."""

    def list(self, folder):
        return self._turns(lambda: sorted(path for path in self.files if path.startswith(f"{folder}/")))

    def exists(self, path):
        return self._turns(lambda: path in self.files)

    def read(self, path):
        found = self._turns(lambda: self.files.get(path))
        if found is None:
            raise StoreError(f"no {path}")
        return found

    def write(self, path, data):
        self._turns(lambda: self.files.__setitem__(path, data))

    def create(self, path, data):
        return self._turns(lambda: self.files.setdefault(path, data) is data)

    def remove(self, path):
        self._turns(lambda: self.files.pop(path, None))

    def location(self, path):
        return f"{self.url}/{path}"


class Gone(BaseException):
    """The play is over."""


class Actor:
    """A process that takes the lease, renews it some times, and releases it or dies, over and over."""

    def __init__(self, world: World, ahead: float, asleep: bool, lives: list[tuple[int, bool]]) -> None:
        self.world, self.lives = world, lives
        self.clock = Clock(lambda: world.now + ahead, lambda: 0.0 if asleep else world.now)
        self.lease: Lease | None = None
        self.leases: list[Lease] = []
        self.over = False
        self._may, self._did = threading.Semaphore(0), threading.Semaphore(0)
        self.thread = threading.Thread(target=self._play, daemon=True)
        self.thread.start()

    def turn(self) -> None:
        self._did.release()
        self._may.acquire()
        if self.over:
            raise Gone

    def step(self) -> None:
        """Let it go on until its next turn."""
        self._may.release()
        self._did.acquire()

    def end(self) -> None:
        self.over = True
        while self.thread.is_alive():
            self._may.release()
            self.thread.join(0.01)

    def _play(self) -> None:
        self.world.actors[threading.get_ident()] = self
        self._may.acquire()
        try:
            for renewals, releases in self.lives:
                try:
                    lease = Lease(self.world, "x", SECONDS, self.clock)  # pyright: ignore[reportArgumentType]
                    self.leases.append(lease)
                    for _ in range(renewals):
                        self.turn()
                        lease.renew()
                    if releases:
                        lease.release()
                except (LeaseHeldError, LeaseLostError):
                    self.turn()
            while True:
                self.turn()
        except Gone:
            self._did.release()


lives = st.lists(st.tuples(st.integers(0, 3), st.booleans()), min_size=1, max_size=3)
actors = st.lists(st.tuples(st.floats(0, SKEW * SECONDS), st.booleans(), lives), min_size=2, max_size=3)
pauses = st.sampled_from([0.0, 0.0, 0.5, 2.4, 7.6, 9.9, 10.1, 12.6])
turns = st.lists(st.tuples(st.integers(0, 2), st.integers(1, 14), pauses), min_size=10, max_size=40)
"""Who goes on for how many turns, and how long nobody does after that."""


def play(cast, order) -> int:
    """Play it; how often the lease was taken. Fails where two hold it."""
    world = World()
    company = [Actor(world, *one) for one in cast]

    def check() -> None:
        holders = [lease for actor in company for lease in actor.leases if lease.held]
        assert len(holders) <= 1
        newest = max((int(path[-13:-5]) for path in world.files), default=0)
        assert all(lease.generation == newest for lease in holders)

    try:
        for who, steps, pause in order:
            for step in range(steps):
                company[who % len(company)].step()
                world.now += pause if step == steps - 1 else 0
                check()
        return sum(len(actor.leases) for actor in company)
    finally:
        for actor in company:
            actor.end()


@given(actors, turns)
@hypothesis_settings(max_examples=150, deadline=None)
def test_never_two_hold_it(cast, order):
    play(cast, order)


@pytest.mark.parametrize("turn", range(1, 12))
def test_one_that_was_held_up_while_taking_does_not_take_a_generation_that_was_left_and_removed(turn):
    twice = [(0, True), (0, True), (0, False)]
    play([(0.0, False, twice), (0.0, False, [(0, False)])], [(0, 11, 0.0), (1, turn, 0.0), (0, 60, 0.0), (1, 60, 0.0)])


@pytest.mark.parametrize("taken", range(7, 14))
@pytest.mark.parametrize("read", range(2, 6))
def test_a_renewal_that_is_written_late_does_not_count(taken, read):
    """One saw the lease expired just before the renewal came, and takes it just after."""
    for written in range(1, 7):
        order = [(0, taken, 9.9), (0, 1, 2.4), (1, read, 0.0), (0, written, 0.0), (1, 60, 0.0)]
        play([(0.0, False, [(3, False)]), (2.5, False, [(0, False)])], order)


def test_the_play_is_not_empty():
    """Three that take and release in turn all get it, and so does one after another died."""
    cast = [(0.0, False, [(1, True)])] * 3
    assert play(cast, [(who, 60, 0.0) for who in (0, 1, 2)]) == 3
    assert play([(0.0, False, [(0, False)])] * 2, [(0, 40, 13.0), (1, 40, 0.0)]) == 2


@pytest.fixture(params=["local", "memory"])
def store(request, tmp_path) -> Store:
    return Store(str(tmp_path) if request.param == "local" else f"memory://{tmp_path.name}")


class Time:
    def __init__(self) -> None:
        self.now = 1000.0
        self.clock = Clock(lambda: self.now, lambda: self.now)


def test_another_is_told_who_holds_it_and_until_when(store):
    when = Time()
    Lease(store, "x", 100, when.clock)
    with pytest.raises(LeaseHeldError, match=r"process \d+ on .* since .* free at 1970-01-01 00:18:45 UTC") as held:
        Lease(store, "x", 100, when.clock)
    assert held.value.exit_code == LEASE_HELD == 3
    assert held.value.free == 1125
    when.now = 1125.0
    assert Lease(store, "x", 100, when.clock).generation == 2
    assert store.list("leases/x") == ["leases/x/00000002.json"]


def test_a_released_lease_is_free_at_once_and_other_names_are_others(store):
    first = Lease(store, "x", 100)
    Lease(store, "y", 100)
    first.release()
    assert not first.held
    assert Lease(store, "x", 100).generation == 2


def test_renewing_keeps_it_and_a_late_renewal_is_refused(store):
    when = Time()
    lease = Lease(store, "x", 100, when.clock)
    for _ in range(5):
        when.now += 99
        lease.renew()
    with pytest.raises(LeaseHeldError):
        Lease(store, "x", 100, when.clock)
    when.now += 100
    assert not lease.held
    with pytest.raises(LeaseLostError, match="could not be renewed within 100 s"):
        lease.renew()


def test_a_holder_learns_that_a_newer_generation_is_there(store):
    when = Time()
    late = Time()
    lease = Lease(store, "x", 100, when.clock)
    late.now += 1000  # a clock that is off by more than is allowed for
    Lease(store, "x", 100, late.clock)
    with pytest.raises(LeaseLostError, match="is lost to process"):
        lease.renew()
    with pytest.raises(LeaseLostError):
        lease.check()


def test_what_is_no_lease_is_named(store):
    store.write("leases/x/00000003.json", b"{}")
    with pytest.raises(StoreError, match=r"leases/x/00000003\.json is no lease"):
        Lease(store, "x", 100)


def test_of_many_at_once_one_takes_it(tmp_path):
    begin = threading.Barrier(8)

    def take(_):
        begin.wait()
        try:
            return Lease(Store(str(tmp_path)), "x", 100).generation
        except LeaseHeldError:
            return 0

    for generation in (1, 2, 3):
        with ThreadPoolExecutor(8) as pool:
            taken = [one for one in pool.map(take, range(8)) if one]
        assert taken == [generation]
        path = tmp_path / f"leases/x/{generation:08d}.json"
        path.write_text(path.read_text().replace('"released": false', '"released": true'))


def test_a_thread_renews_it_and_its_end_releases_it(tmp_path):
    store = Store(str(tmp_path))
    with Lease(store, "x", 0.6) as lease:
        time.sleep(1.5)
        lease.check()
        with pytest.raises(LeaseHeldError):
            Lease(store, "x", 0.6)
    Lease(store, "x", 0.6)


def test_the_thread_outlives_a_store_that_fails_for_a_moment(tmp_path, monkeypatch, caplog):
    store = Store(str(tmp_path))
    with Lease(store, "x", 1.2) as lease:
        with monkeypatch.context() as broken:
            broken.setattr(Store, "write", lambda *_: (_ for _ in ()).throw(StoreError("the store is away")))
            time.sleep(0.6)
        time.sleep(1.2)
        lease.check()
    assert "was not renewed, next try soon: the store is away" in caplog.text

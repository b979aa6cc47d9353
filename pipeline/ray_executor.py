"""Shards on a Ray cluster: the given one, or a local one that only this process can reach.

A local cluster binds to loopback, asks for a token (a file of mode 0600 in a private folder), and goes
away with this process. With `cluster.address` the user's environment says how to authenticate.
"""

import logging
import math
import os
import secrets
import shutil
import socket
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from itertools import count
from pathlib import Path
from typing import Any, Self

import ray
import ray._private.ray_constants
import ray._raylet
from ray import cloudpickle
from ray.exceptions import ActorUnschedulableError, OutOfMemoryError, RayError, RayTaskError, RuntimeEnvSetupError
from ray.util.metrics import Counter, Gauge

from pipeline.dispatch import MEMORY, Death, Dispatch, Seat
from pipeline.errors import NoWorkersError
from pipeline.events import OnEvent, ignore
from pipeline.ledger import Build, Ledger, OnReport
from pipeline.settings import Cluster
from pipeline.shipping import code_folder
from workers.actor import ShardActor
from workers.process import Failure
from workers.worker import Shard, ShardReport

_OBJECT_STORE_BYTES = 100 * 2**20  # descriptors and reports need none; Ray insists on 75 MiB
_LONGEST_FOLDER = 20  # of temporary folders: Ray's socket paths below must stay within 107 bytes
_KNOCK_SECONDS = 10
_JOB_CONFIG = "RAY_JOB_CONFIG_JSON_ENV_VAR"  # which Ray sets for the driver of a submitted job
_LOCAL_ENVIRONMENT = {
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # the default of later Rays; 2.55 warns where it is unset
}

logger = logging.getLogger("raydissect")


class RayExecutor:
    """Runs shards on actors, which stay for the next run; see `pipeline.executor.Executor`."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._connection = ExitStack()
        self._connected = False
        self._seats: list[Seat] = []
        self._numbers = count()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: Any) -> None:
        self._dismiss_all()
        self._connected = False
        self._connection.close()

    def run(
        self,
        build: Build,
        shards: Sequence[Shard],
        *,
        title: str,
        on_report: OnReport | None = None,
        on_event: OnEvent = ignore,
    ) -> list[ShardReport]:
        """See `Executor.run`. Ray starts with the first run that has a shard."""
        if not shards:
            return []
        if not self._connected:
            self._connection.enter_context(_connect(self._cluster))
            self._connected = True
        pool = _RayPool(self._cluster, cloudpickle.dumps(build), title)  # pyright: ignore
        number = min(len(shards), _count_workers(self._cluster, title))
        while len(self._seats) < number:
            self._seats.append(Seat(f"worker {next(self._numbers)}"))
        seats, others = self._seats[:number], self._seats[number:]
        metrics = _Metrics(title, len(shards))

        def tell(event: str, /, **what: Any) -> None:
            metrics.count(event)
            on_event(event, **what)

        ledger = Ledger(title, on_report, tell)
        try:
            Dispatch(pool, self._cluster, seats, shards, ledger).run()
        except BaseException:
            self._dismiss_all()
            raise
        self._seats = seats + others
        return ledger.close()

    def _dismiss_all(self) -> None:
        for seat in self._seats:
            if seat.actor is not None:
                _kill(seat.actor)
        self._seats = []


class _Metrics:
    """What only the driver knows, for Prometheus, by stage; workers count what they do: see `workers.actor`."""

    def __init__(self, stage: str, shards: int) -> None:
        tags = {"stage": stage}
        self._left, self._gauge = shards, Gauge("raydissect_shards_left", "Shards to be done", tag_keys=("stage",))
        self._counters = {
            "shard_failed": Counter("raydissect_shards_failed", "Shards given up", tag_keys=("stage",)),
            "shard_retried": Counter("raydissect_shards_retried", "Shards given to another", tag_keys=("stage",)),
            "worker_lost": Counter("raydissect_workers_lost", "Workers that died", tag_keys=("stage",)),
        }
        for metric in (self._gauge, *self._counters.values()):
            metric.set_default_tags(tags)
        self._gauge.set(shards)

    def count(self, event: str) -> None:
        if event in self._counters:
            self._counters[event].inc(1)
        if event in ("shard_done", "shard_failed"):
            self._left -= 1
            self._gauge.set(self._left)


class _RayPool:
    """What a dispatcher needs, done by Ray; see `pipeline.dispatch.Pool`."""

    def __init__(self, cluster: Cluster, build: bytes, title: str) -> None:
        self._cluster, self._build, self._title = cluster, build, title
        request = _request(cluster)
        self._actor_class = ray.remote(ShardActor).options(
            num_cpus=request.pop("CPU"),
            num_gpus=request.pop("GPU", 0),
            resources=request,
            max_concurrency=cluster.window,
            max_restarts=0,
            max_task_retries=0,
        )

    def open(self) -> Any:
        return self._actor_class.remote()

    def start(self, actor: Any, name: str) -> Any:
        threads = self._cluster.threads
        lanes = max(1, math.floor(self._cluster.cpus_per_worker / threads))
        return actor.start.remote(self._build, self._title, name, threads, lanes)

    def process(self, actor: Any, shard: Shard) -> Any:
        return actor.process.remote(shard)

    def wait(self, tickets: Sequence[Any], timeout: float) -> list[Any]:
        if not tickets:
            return []
        first, rest = ray.wait(list(tickets), num_returns=1, timeout=timeout)
        if not first or not rest:
            return first
        return first + ray.wait(rest, num_returns=len(rest), timeout=0)[0]

    def outcome(self, ticket: Any) -> ShardReport | Failure | Death | str:
        try:
            return ray.get(ticket)
        except RayTaskError as error:  # the actor itself is at fault, such as other code on that node
            cause = error.cause
            return Failure(None, type(cause).__name__, str(cause), error.traceback_str)
        except (RuntimeEnvSetupError, ActorUnschedulableError) as error:
            return Failure.of(error)
        except OutOfMemoryError:
            return Death(f"killed by Ray, as its node ran low on {MEMORY}")
        except RayError as error:
            return Death(_reason(error), counts=not getattr(error, "preempted", False))

    def kill(self, actor: Any) -> None:
        _kill(actor)

    def describe(self) -> str:
        return _describe(self._cluster)


def _kill(actor: Any) -> None:
    with suppress(Exception):  # it may be gone, and so may Ray
        ray.kill(actor, no_restart=True)


def _reason(error: RayError) -> str:
    """The one telling sentence of Ray's long message."""
    last = (str(error).strip() or type(error).__name__).splitlines()[-1]
    for chatter in ("The actor is dead because ", "Worker exit type: SYSTEM_ERROR Worker exit detail: "):
        last = last.replace(chatter, "")
    return last.partition(" Some common causes")[0].partition(" There are some potential")[0].rstrip(".")


def _request(cluster: Cluster) -> dict[str, float]:
    """What one worker asks Ray for; a worker on a GPU asks for one unless told how much of it."""
    gpus = cluster.gpus_per_worker or (1 if cluster.device == "cuda" else 0)
    asked = {"CPU": cluster.cpus_per_worker, "GPU": gpus, **cluster.resources}
    return {name: amount for name, amount in asked.items() if amount}


def _nodes() -> list[dict[str, float]]:
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def _fit(node: Mapping[str, float], request: Mapping[str, float]) -> int:
    """How many workers a node has room for when it is empty."""
    return min(math.floor(node.get(name, 0) / amount + 1e-9) for name, amount in request.items())


def _count_workers(cluster: Cluster, title: str) -> int:
    room = sum(_fit(node, _request(cluster)) for node in _nodes())
    if room:
        return cluster.workers or room
    message = f"{title}: no node has what a worker asks for. {_describe(cluster)}"
    if cluster.address is None:
        raise NoWorkersError(message)
    logger.warning("%s. Waiting %g s for one (cluster.start_timeout)", message, cluster.start_timeout)
    return cluster.workers or 1


def _describe(cluster: Cluster) -> str:
    nodes = [
        {name: amount for name, amount in sorted(node.items()) if "memory" not in name and ":" not in name}
        for node in _nodes()
    ]
    return (
        f"A worker asks for {_request(cluster)} (cluster.cpus_per_worker, gpus_per_worker, device, "
        f"resources); the cluster's nodes have {nodes}"
    )


@contextmanager
def _connect(cluster: Cluster) -> Iterator[None]:
    """Connect to the cluster, or start one; a Ray that this process has already started is used as it is."""
    if cluster.address is None and ray.is_initialized():
        yield
        return
    with ExitStack() as stack:
        options: dict[str, Any] = {"address": cluster.address}
        if cluster.address is None:
            options = stack.enter_context(_local_options(cluster))
        if not ray.is_initialized():  # by someone else, to another cluster: `init` refuses
            stack.callback(ray.shutdown)  # also where `init` is interrupted, and before the token is gone
        try:
            _knock(cluster.address)
            ray.init(
                **options,
                runtime_env=stack.enter_context(_runtime_env(cluster)) or None,
                log_to_driver=False,
                logging_level=logging.ERROR,
            )
        except (OSError, RuntimeError, ValueError, RayError) as error:
            raise _no_connection(cluster, error) from error
        yield


@contextmanager
def _runtime_env(cluster: Cluster) -> Iterator[dict[str, Any]]:
    """What workers run in: on a cluster elsewhere this process's own code, unless a job has brought it there."""
    wanted = cluster.ship_code and cluster.address is not None and _JOB_CONFIG not in os.environ
    if not wanted or "working_dir" in cluster.runtime_env:
        yield cluster.runtime_env
        return
    with code_folder() as folder:
        yield {"working_dir": str(folder), **cluster.runtime_env}


def _knock(address: str | None) -> None:
    """Notice in a moment that nobody listens at `host:port`, which takes Ray two minutes."""
    host, _, port = (address or "").rpartition(":")
    if "/" not in host and port.isdigit():
        socket.create_connection((host.strip("[]"), int(port)), timeout=_KNOCK_SECONDS).close()


def _no_connection(cluster: Cluster, error: Exception) -> NoWorkersError:
    if cluster.address is None:
        return NoWorkersError(f"cannot start Ray here: {error}. cluster=inline runs without it")
    cure = "is it running, and may this machine reach it?"
    if "AuthToken" in f"{error} {error.__cause__}":
        cure = "it refuses the token: set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH to the cluster's own"
    return NoWorkersError(f"cannot reach the Ray cluster at cluster.address={cluster.address}: {error}; {cure}")


@contextmanager
def _local_options(cluster: Cluster) -> Iterator[dict[str, Any]]:
    """Arguments that start a private cluster; what it needs around it is undone at the end."""
    short = len(tempfile.gettempdir()) <= _LONGEST_FOLDER
    folder = Path(tempfile.mkdtemp(prefix="raydissect-", dir=None if short else "/tmp"))
    cpus = math.ceil(cluster.workers * cluster.cpus_per_worker) if cluster.workers else None
    try:
        with _loopback_only(), _authentication(folder / "token"):
            yield {
                "address": "local",
                "_node_ip_address": "127.0.0.1",
                "_temp_dir": str(folder / "ray"),
                "include_dashboard": False,
                "num_cpus": cpus,
                "object_store_memory": _OBJECT_STORE_BYTES,
            }
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _loopback_only() -> Iterator[None]:
    """Keep Ray from turning 127.0.0.1 into the machine's own address and listening on every interface.

    This is what Ray does by itself on macOS and Windows, where it is a switch read at import.
    """
    constants = ray._private.ray_constants
    before = constants.ENABLE_RAY_CLUSTER
    constants.ENABLE_RAY_CLUSTER = False
    try:
        with _environment(_LOCAL_ENVIRONMENT):
            yield
    finally:
        constants.ENABLE_RAY_CLUSTER = before


@contextmanager
def _authentication(token: Path) -> Iterator[None]:
    """A token of our own, unless RAY_AUTH_MODE=disabled; Ray's would be world-readable in the home folder."""
    if os.environ.get("RAY_AUTH_MODE", "").lower() == "disabled":
        yield
        return
    token.touch(mode=0o600)
    token.write_text(secrets.token_hex(32))
    settings = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token), "RAY_AUTH_TOKEN": None}
    try:
        with _environment(settings):
            _reload_authentication()
            yield
    finally:
        _reload_authentication()


def _reload_authentication() -> None:
    """Have Ray read mode and token again, which it remembers for the life of the process.

    In this order: a thread that is still at work must not miss a token in token mode.
    """
    ray._raylet.Config.initialize("")  # pyright: ignore
    ray._raylet.AuthenticationTokenLoader.instance().reset_cache()  # pyright: ignore


@contextmanager
def _environment(changes: Mapping[str, str | None]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in changes}

    def apply(values: Mapping[str, str | None]) -> None:
        for name, value in values.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value

    apply(changes)
    try:
        yield
    finally:
        apply(before)

"""What the Ray executor does around Ray: resources, messages, the private cluster's surroundings."""

import os
import socket
import stat
import time
from pathlib import Path

import pytest
from ray.exceptions import ActorDiedError, RayError

from pipeline import ray_executor
from pipeline.errors import NoWorkersError
from pipeline.executor import make_executor
from pipeline.settings import Cluster
from workers.worker import Shard, Worker


@pytest.mark.parametrize(
    ("settings", "request_"),
    [
        ({}, {"CPU": 1}),
        ({"cpus_per_worker": 4, "gpus_per_worker": 0.5, "device": "cuda"}, {"CPU": 4, "GPU": 0.5}),
        ({"device": "cuda"}, {"CPU": 1, "GPU": 1}),
        ({"resources": {"ssd": 2}}, {"CPU": 1, "ssd": 2}),
    ],
)
def test_what_a_worker_asks_for(settings: dict, request_: dict):
    assert ray_executor._request(Cluster(**settings)) == request_


@pytest.mark.parametrize(
    ("request_", "workers"),
    [({"CPU": 1}, 8), ({"CPU": 3}, 2), ({"CPU": 1, "GPU": 1}, 2), ({"CPU": 0.1}, 80), ({"CPU": 1, "ssd": 1}, 0)],
)
def test_how_many_workers_a_node_has_room_for(request_: dict, workers: int):
    assert ray_executor._fit({"CPU": 8.0, "GPU": 2.0}, request_) == workers


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        (
            "The actor died.\nThe actor is dead because its worker process has died. Worker exit type: "
            "SYSTEM_ERROR Worker exit detail: Worker exits with an exit code 3. Some common causes include: (1)",
            "its worker process has died. Worker exits with an exit code 3",
        ),
        ("", "RayError"),
    ],
)
def test_a_reason_is_one_sentence(message: str, reason: str):
    assert ray_executor._reason(RayError(message)) == reason


def test_the_reason_of_an_unknown_death():
    assert ray_executor._reason(ActorDiedError()) == "The actor died unexpectedly before finishing this task"


def test_a_local_cluster_leaves_no_trace(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    monkeypatch.setenv("RAY_AUTH_TOKEN", "another cluster's")
    before = dict(os.environ)
    with ray_executor._local_options(Cluster(workers=3, cpus_per_worker=0.5)) as options:
        token = Path(os.environ["RAY_AUTH_TOKEN_PATH"])
        assert options["num_cpus"] == 2
        assert os.environ["RAY_AUTH_MODE"] == "token"
        assert "RAY_AUTH_TOKEN" not in os.environ
        assert len(token.read_text()) == 64
        assert stat.S_IMODE(token.stat().st_mode) == 0o600
    assert dict(os.environ) == before
    assert not token.parent.exists()


def test_who_disables_authentication_is_obeyed(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    with ray_executor._local_options(Cluster()):
        assert os.environ["RAY_AUTH_MODE"] == "disabled"


def test_an_address_where_nobody_listens_fails_at_once():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    start = time.monotonic()
    with make_executor(Cluster(address=address)) as executor, pytest.raises(NoWorkersError, match=address):
        executor.run(lambda: Worker(*[lambda *_: 0] * 3), [Shard("s0", 0)], title="lost")
    assert time.monotonic() - start < 2

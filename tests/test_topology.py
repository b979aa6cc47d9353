"""What docker-compose.yml starts, started by hand: its commands, environments and health checks, on loopback addresses.

Only names, ports and paths are replaced, and to each node is added what lets several share a machine. In the place of
the S3 image is moto.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest
from moto.server import ThreadedMotoServer
from s3fs import S3FileSystem

from pipeline.results import list_results
from pipeline.store import Store
from tests.cluster import QUICK_TO_NOTICE, Node, free_ports
from tests.test_deployment import ROOT, read_compose

STORE = "s3://raydissect/store"
DATA = ["data=mini", "data.num_images=16", "data.size=64", "data.shard_size=8", "data.batch_size=8"]
RUN = ["data=mini", "model=mininet", "model.weights=random", "layers=features.11"]

pytestmark = [pytest.mark.cluster, pytest.mark.filterwarnings("ignore::ResourceWarning")]


@dataclass
class Topology:
    """The services of docker-compose.yml on this machine."""

    services: dict[str, dict]
    folder: Path
    replaced: dict[str, str]
    nodes: dict[str, Node] = field(default_factory=dict)
    agents: dict[str, str] = field(default_factory=dict)

    def start(self, service: str) -> Node:
        """Start a service that has a node of Ray, and wait until its health check says that it is healthy."""
        host = f"127.0.0.{2 + len(self.nodes)}"
        agent, metrics, grpc, environment, client = map(str, free_ports(5))
        self.agents[service] = agent
        more = (
            f" --node-ip-address={host} --metrics-export-port={metrics} --dashboard-agent-grpc-port={grpc}"
            f" --runtime-env-agent-port={environment}"
        )
        if service == "head":
            more += f" --ray-client-server-port={client}"
        words = self.command(service)
        if words[:2] == ["ray", "start"]:
            words += more.split()
        else:
            words = [word.replace("ray start --block", f"ray start --block{more}") for word in words]
        log = self.folder / f"{service}.log"
        with log.open("w") as output:
            process = subprocess.Popen(
                words, cwd=self.folder, env=self.environment(service), stdout=output, stderr=subprocess.STDOUT,
                start_new_session=True,
            )  # fmt: skip
        node = self.nodes[service] = Node(process, host, int(metrics), log)
        wait_until(lambda: self.is_healthy(service), 90, log.read_text)
        assert process.poll() is None, log.read_text()
        return node

    def run(self, service: str, *words: str) -> subprocess.CompletedProcess:
        """Run a service that ends by itself; words stand in for its command, as with `docker compose run`."""
        entrypoint = self.services[service].get("entrypoint") or []
        command = [*self.replace(entrypoint), *words] if words else self.command(service)
        return subprocess.run(
            command, cwd=self.folder, env=self.environment(service), capture_output=True, text=True, timeout=120
        )

    def is_healthy(self, service: str) -> bool:
        kind, *words = self.services[service]["healthcheck"]["test"]
        assert kind == "CMD"
        words = [word.replace(":52365/", f":{self.agents[service]}/") for word in self.replace(words)]
        ran = subprocess.run(words, env=self.environment(service), capture_output=True, timeout=60)
        return ran.returncode == 0

    def command(self, service: str) -> list[str]:
        words = [*(self.services[service].get("entrypoint") or []), *self.services[service]["command"]]
        agent = self.agents.get(service, "")
        return [word.replace("port=52365", f"port={agent}") for word in self.replace(words)]

    def environment(self, service: str) -> dict[str, str]:
        own = self.services[service]["environment"]
        replaced = dict(zip(own, self.replace([*own.values()]), strict=True))
        base = {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}", "HOME": str(self.folder)}
        return {**base, "RAY_TMPDIR": str(self.folder), **QUICK_TO_NOTICE, **replaced}

    def replace(self, words: list[str]) -> list[str]:
        replaced = []
        for word in words:
            for name, stand_in in self.replaced.items():
                word = word.replace(name, stand_in)
            replaced.append(word)
        return replaced


def wait_until(happened: Callable[[], bool], seconds: float, explain: Callable[[], str]) -> None:
    deadline = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < deadline, explain()
        time.sleep(0.2)


@pytest.fixture(scope="module")
def topology() -> Iterator[Topology]:
    compose = read_compose()
    folder = Path(tempfile.mkdtemp(prefix="rt-", dir="/tmp"))
    (folder / "secrets").mkdir(mode=0o700)
    (folder / "secrets" / "ray_token").write_text(secrets.token_hex(32) + "\n")
    (folder / "secrets" / "s3_credentials").write_text(
        "[default]\naws_access_key_id = raydissect\naws_secret_access_key = secret\n"
    )
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    gcs, dashboard = free_ports(2)
    replaced = {
        "http://s3:9000": f"http://{host}:{port}",
        "http://head:8265": f"http://127.0.0.1:{dashboard}",
        "head:6379": f"127.0.0.2:{gcs}",
        "--port=6379": f"--port={gcs}",
        "--dashboard-port=8265": f"--dashboard-port={dashboard}",
        "--dashboard-host=0.0.0.0": "--dashboard-host=127.0.0.1",
        "/run/secrets": str(folder / "secrets"),
        "/tmp/ray/": f"{folder}/ray/",
        "/cache": f"{folder}/cache",
        "/etc/raydissect": str(folder),
        "$$": "$",
    }
    found = Topology(compose["services"], folder, replaced)
    try:
        with pytest.MonkeyPatch.context() as patch:
            for name, value in found.environment("head").items():
                if name.startswith("AWS_"):
                    patch.setenv(name, value)
            S3FileSystem.clear_instance_cache()
            yield found
    finally:
        for node in reversed(found.nodes.values()):
            node.stop()
        server.stop()
        S3FileSystem.clear_instance_cache()
        shutil.rmtree(folder, ignore_errors=True)


def test_services_start_after_what_they_need(topology: Topology):
    """The order in which this test starts them is the one that `depends_on` gives."""
    order = ["volumes", "s3", "bucket", "head", "worker", "scheduler", "job"]
    for service in order[1:]:
        needed = topology.services[service].get("depends_on", {})
        assert needed, service
        assert all(order.index(one) < order.index(service) for one in needed)


def test_bucket_head_and_worker_come_up_and_do_a_job(topology: Topology):
    for _ in range(2):  # on a second start it is there
        made = topology.run("bucket")
        assert made.returncode == 0, made.stderr
    for service in ("head", "worker"):
        topology.start(service)
    ingested = topology.run("job", "ingest", *DATA, f"store={STORE}")
    assert ingested.returncode == 0, ingested.stdout + ingested.stderr
    ran = topology.run("job", "run", *RUN, f"store={STORE}")
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "7 results computed" in ran.stdout
    assert len(list_results(Store(STORE))) == 7
    token = (topology.folder / "secrets" / "ray_token").read_text().strip()
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            assert token not in " ".join(process.cmdline())


def test_the_scheduler_does_its_schedule_on_the_cluster_and_stops(topology: Topology):
    schedule = (ROOT / "conf" / "schedule" / "compose.yaml").read_text()
    (written,) = topology.replace([schedule.replace("trained", "random").replace("auto", "features.8")])
    (topology.folder / "schedule.yaml").write_text(written)
    store = Store(STORE)
    long_ago = {"served_until": "2026-01-01T00:00:00+00:00"}  # so that a firing was missed, which is made up for
    store.write_json("reprocess/schedules/compose.json", long_ago)
    node = topology.start("scheduler")
    wait_until(lambda: len(list_results(store)) == 14, 90, node.log.read_text)
    wait_until(lambda: "1 computed, 0 failed" in node.log.read_text(), 30, node.log.read_text)
    family = psutil.Process(node.process.pid).children(recursive=True)
    node.process.send_signal(signal.SIGTERM)
    node.process.wait(60)
    _, alive = psutil.wait_procs(family, 20)
    assert alive == []


def test_a_scheduler_without_its_node_ends_to_be_started_again(topology: Topology):
    node = topology.start("scheduler")
    (ray,) = [one for one in psutil.Process(node.process.pid).children() if "--block" in one.cmdline()]
    ray.kill()
    assert node.process.wait(60) == 1


def test_a_worker_that_lost_its_node_is_not_healthy(topology: Topology):
    assert topology.is_healthy("worker")
    topology.nodes["worker"].kill()
    assert not topology.is_healthy("worker")
    assert topology.is_healthy("head")

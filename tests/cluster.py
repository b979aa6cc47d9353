"""A real Ray cluster of several nodes on this machine, each with a loopback address of its own, and a token.

Every node is `ray start --block` in a session of its own, as the container of a deployment would run it, in an empty
working folder: what a node has of the driver's is what came through Ray or the store.
"""

import contextlib
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil

RAY = Path(sys.executable).with_name("ray")
QUICK_TO_NOTICE = {
    "RAY_health_check_initial_delay_ms": "2000",
    "RAY_health_check_period_ms": "500",
    "RAY_health_check_timeout_ms": "2000",
    "RAY_health_check_failure_threshold": "3",
}


@dataclass
class Node:
    """One node: the process that keeps it, and where it can be found."""

    process: subprocess.Popen
    host: str
    metrics_port: int
    log: Path

    def kill(self) -> None:
        """What a power cut does: every process of the node at once, with no word to anyone."""
        with contextlib.suppress(psutil.NoSuchProcess):
            mother = psutil.Process(self.process.pid)
            for process in [mother, *mother.children(recursive=True)]:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
        self.process.wait()

    def stop(self) -> None:
        """What the orchestrator does: SIGTERM, and after a while no more patience."""
        family = []
        with contextlib.suppress(psutil.NoSuchProcess):
            family = psutil.Process(self.process.pid).children(recursive=True)
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(15)
        _, alive = psutil.wait_procs(family, 5)
        for process in alive:
            process.kill()
        self.kill()


@dataclass
class RayCluster:
    """A head without CPUs, and nodes that can be added and killed."""

    folder: Path
    token: Path
    environment: dict[str, str]
    port: int = 0
    dashboard_port: int = 0
    client_port: int = 0
    head: Node | None = None
    nodes: list[Node] = field(default_factory=list)

    @property
    def address(self) -> str:
        """What `cluster.address` takes."""
        return f"127.0.0.2:{self.port}"

    @property
    def dashboard(self) -> str:
        """What `submit --address` takes."""
        return f"http://127.0.0.1:{self.dashboard_port}"

    def start_head(self, num_cpus: int = 0) -> Node:
        self.port, self.dashboard_port, self.client_port = free_ports(3)
        self.head = self._start(
            "127.0.0.2",
            "--head",
            f"--port={self.port}",
            f"--num-cpus={num_cpus}",
            f"--temp-dir={self.folder / 'ray'}",
            "--dashboard-host=127.0.0.1",
            f"--dashboard-port={self.dashboard_port}",
            f"--ray-client-server-port={self.client_port}",
        )
        self._wait_for(self.head)
        return self.head

    def add_node(self, num_cpus: int = 1, resources: dict[str, float] | None = None) -> Node:
        host = f"127.0.0.{3 + len(self.nodes)}"
        node = self._start(
            host,
            f"--address={self.address}",
            f"--num-cpus={num_cpus}",
            f"--resources={json.dumps(resources or {})}",
        )
        self.nodes.append(node)
        self._wait_for(node)
        return node

    def stop(self) -> None:
        for node in reversed([*([self.head] if self.head else []), *self.nodes]):
            node.stop()

    def _start(self, host: str, *arguments: str) -> Node:
        empty = self.folder / f"node-{host}"
        empty.mkdir(exist_ok=True)
        metrics, agent, grpc, environment = free_ports(4)
        log = self.folder / f"{host}.log"
        command = [
            str(RAY),
            "start",
            "--block",
            f"--node-ip-address={host}",
            f"--object-store-memory={80 * 2**20}",
            f"--metrics-export-port={metrics}",
            f"--dashboard-agent-listen-port={agent}",
            f"--dashboard-agent-grpc-port={grpc}",
            f"--runtime-env-agent-port={environment}",
            *arguments,
        ]
        with log.open("w") as output:
            process = subprocess.Popen(
                command,
                cwd=empty,
                env={**os.environ, **self.environment, **QUICK_TO_NOTICE},
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        return Node(process, host, metrics, log)

    def _wait_for(self, node: Node, seconds: float = 60) -> None:
        deadline = time.monotonic() + seconds
        while "Ray runtime started" not in node.log.read_text():
            if node.process.poll() is not None or time.monotonic() > deadline:
                raise AssertionError(f"{node.host} did not start: {node.log.read_text()[-2000:]}")
            time.sleep(0.05)


@contextlib.contextmanager
def ray_cluster(nodes: int = 0, num_cpus: int = 1) -> Iterator[RayCluster]:
    """A head and so many nodes; its folder is short, as Ray's socket paths must be, and its token private."""
    folder = Path(tempfile.mkdtemp(prefix="rc-", dir="/tmp"))
    token = folder / "token"
    token.touch(mode=0o600)
    token.write_text(secrets.token_hex(32))
    environment = {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token),
        "RAY_USAGE_STATS_ENABLED": "0",
        "PYTHONPATH": "",
    }
    cluster = RayCluster(folder, token, environment)
    try:
        cluster.start_head()
        for _ in range(nodes):
            cluster.add_node(num_cpus)
        yield cluster
    finally:
        cluster.stop()
        shutil.rmtree(folder, ignore_errors=True)


def free_ports(number: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(number)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]

"""S3 servers on loopback: moto's, and a Ceph gateway where its packages are installed."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import boto3
import pytest
from botocore.config import Config
from moto.server import ThreadedMotoServer

from tests.cluster import free_ports


@dataclass(frozen=True)
class Server:
    """Where a server answers, and the key it knows."""

    name: str
    endpoint: str
    key: str
    secret: str
    folder: Path | None = None  # of Ceph's files

    @property
    def environment(self) -> dict[str, str]:
        """What a user of it sets."""
        return {
            "AWS_ACCESS_KEY_ID": self.key, "AWS_SECRET_ACCESS_KEY": self.secret, "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_ENDPOINT_URL": self.endpoint, "AWS_REQUEST_CHECKSUM_CALCULATION": "when_required",
        }  # fmt: skip

    def client(self):
        """A client that goes to it by the direct way."""
        return boto3.client(
            "s3", endpoint_url=self.endpoint, aws_access_key_id=self.key, aws_secret_access_key=self.secret,
            region_name="us-east-1", config=Config(request_checksum_calculation="when_required"),
        )  # fmt: skip


@contextmanager
def moto() -> Iterator[Server]:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    yield Server("moto", "http://{}:{}".format(*server.get_host_and_port()), "test", "test")
    server.stop()


@contextmanager
def ceph(folder: Path) -> Iterator[Server]:
    """A monitor, a disk in memory and a gateway, as `tools/ceph-s3.sh` of RAYDISSECT_SHARED starts them."""
    script = Path(os.environ.get("RAYDISSECT_SHARED", "/nowhere"), "tools", "ceph-s3.sh")
    missing = [name for name in ("ceph-mon", "ceph-osd", "radosgw", "curl") if shutil.which(name) is None]
    if missing or not script.exists() or os.geteuid() != 0:
        pytest.skip(f"a Ceph gateway needs {script}, root, and the programs {', '.join(missing) or '(all there)'}")
    port, monitor = free_ports(2)
    # Several processes of pytest may have one each.
    commands = script.read_text().replace("mon=16789", f"mon={monitor}")
    assert f"mon={monitor}" in commands
    with open(folder / "start.log", "wb") as log:  # not a pipe: the servers would hold it open
        words = ["bash", "-c", commands, "ceph-s3", folder / "ceph", "memstore", str(port)]
        started = subprocess.run(words, stdout=log, stderr=log, timeout=120)
    try:
        if started.returncode:
            pytest.fail(f"Ceph did not start: {(folder / 'start.log').read_text()}")
        yield Server("ceph", f"http://127.0.0.1:{port}", "testkey", "testsecret123", folder / "ceph")
    finally:
        for name in ("rgw", "osd", "mon"):
            with suppress(FileNotFoundError, ProcessLookupError):
                os.kill(int((folder / "ceph" / f"{name}.pid").read_text()), signal.SIGKILL)


@contextmanager
def gateway_down(server: Server) -> Iterator[None]:
    """With Ceph's gateway killed; it is started again afterwards."""
    assert server.folder is not None
    pid = int((server.folder / "rgw.pid").read_text())
    os.kill(pid, signal.SIGKILL)
    yield
    with open(server.folder / "log" / "rgw.again", "wb") as log:
        process = subprocess.Popen(
            ["radosgw", "-c", server.folder / "ceph.conf", "-f", "-n", "client.admin"], stdout=log, stderr=log
        )
    (server.folder / "rgw.pid").write_text(str(process.pid))
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        with suppress(OSError), socket.create_connection(("127.0.0.1", int(server.endpoint.rpartition(":")[2])), 1):
            return
        time.sleep(0.1)
    raise AssertionError("the gateway did not come back")

"""A proxy on loopback before an S3 server that fails as networks and gateways do, when and as often as it is told."""

from __future__ import annotations

import contextlib
import http.client
import random
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Literal
from urllib.parse import urlsplit

Kind = Literal["status", "cut_request", "cut_response", "lose_answer", "delay", "hang", "action"]

_HOP = {"connection", "expect", "keep-alive", "transfer-encoding"}


@dataclass
class Fault:
    """What goes wrong, with which requests, and how often.

    Args:
        kind: `status` answers without asking the server; `cut_request` passes on `after` bytes of the body and closes;
            `cut_response` likewise on the way back; `lose_answer` lets the server do the work, then closes; `delay`
            answers `seconds` later; `hang` takes the request and says nothing for `seconds`, then closes; `action`
            does something and closes.
        method, path: requests of this method whose path holds this text.
        skip: the first so many of these pass.
        times: as many requests of these; all without it.
        share: of these, so many at random, by `seed`.
    """

    kind: Kind
    method: str = ""
    path: str = ""
    skip: int = 0
    times: int | None = None
    share: float = 1.0
    seed: int = 0
    status: int = 503
    code: str = "SlowDown"
    after: int = 0
    seconds: float = 0.0
    action: Callable[[], object] = lambda: None
    hits: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        self._random, self._passed = random.Random(self.seed), 0

    def strikes(self, method: str, path: str) -> bool:
        if not method.startswith(self.method) or self.path not in path:
            return False
        if self._passed < self.skip:
            self._passed += 1
            return False
        if self.times is not None and self.hits >= self.times:
            return False
        struck = self._random.random() < self.share
        self.hits += struck
        return struck


class FaultyS3:
    """The proxy; `url` is the endpoint to give to clients."""

    def __init__(self, upstream: str) -> None:
        address = urlsplit(upstream)
        self.upstream = address.hostname or "", address.port or 80
        self.faults: list[Fault] = []
        self.requests: Counter[str] = Counter()
        self.connections: set[socket.socket] = set()
        self.lock = threading.Lock()
        self._port = 0
        self._server: _Server | None = None
        self.up()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    def up(self) -> None:
        """Take connections."""
        self._server = _Server(("127.0.0.1", self._port), _Handler)
        self._server.proxy = self
        self._port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def down(self) -> None:
        """Refuse connections, and cut those there are."""
        server, self._server = self._server, None
        if server is not None:
            server.shutdown()
            server.server_close()
        with self.lock:
            for connection in self.connections:
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)

    def down_for(self, seconds: float) -> None:
        """Be down from now on, and up again `seconds` later."""
        self.down()
        time.sleep(seconds)
        self.up()

    @contextlib.contextmanager
    def failing(self, *faults: Fault) -> Iterator[tuple[Fault, ...]]:
        """With these faults, every one of which must have struck."""
        self.faults = list(faults)
        try:
            yield faults
        finally:
            self.faults = []
        for fault in faults:
            assert fault.hits, f"never struck: {fault}"

    def struck(self, method: str, path: str) -> Fault | None:
        with self.lock:
            self.requests[method] += 1
            return next((fault for fault in self.faults if fault.strikes(method, path)), None)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    proxy: FaultyS3

    def handle_error(self, request: object, client_address: object) -> None:
        """Connections that break are what this is for."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def setup(self) -> None:
        super().setup()
        with self.server.proxy.lock:
            self.server.proxy.connections.add(self.connection)

    def finish(self) -> None:
        with self.server.proxy.lock:
            self.server.proxy.connections.discard(self.connection)
        super().finish()

    def log_message(self, format: str, *args: object) -> None:
        pass

    def relay(self) -> None:
        fault = self.server.proxy.struck(self.command, self.path)
        kind = fault.kind if fault else ""
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if fault and kind in ("hang", "delay"):
            time.sleep(fault.seconds)
        if kind == "hang":
            self._close()
        elif fault and kind == "action":
            threading.Thread(target=fault.action).start()
            self._close()
        elif fault and kind == "status":
            told = (
                ""
                if self.command == "HEAD" or fault.status < 400
                else f"<Error><Code>{fault.code}</Code><Message>no</Message></Error>"
            )
            self._answer(fault.status, [("Content-Type", "application/xml")], told.encode(), len(told))
        elif fault and kind == "cut_request":
            self._ask(body, cut=fault.after)
            self._close()
        else:
            status, headers, data, length = self._ask(body)
            if kind == "lose_answer":
                self._close()
            elif fault and kind == "cut_response":
                self._answer(status, headers, data[: fault.after], length)
                self._close()
            else:
                self._answer(status, headers, data, length)

    do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = relay  # noqa: N815

    def _ask(self, body: bytes, cut: int | None = None) -> tuple[int, list[tuple[str, str]], bytes, int]:
        """The server's answer: status, head, body and the length the head tells; nothing where the request is cut."""
        connection = http.client.HTTPConnection(*self.server.proxy.upstream, timeout=60)
        try:
            connection.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in self.headers.items():
                if name.lower() not in _HOP:
                    connection.putheader(name, value)
            connection.endheaders()
            if cut is not None:
                connection.send(body[:cut])
                return 0, [], b"", 0
            connection.send(body)
            answer = connection.getresponse()
            data = answer.read()
            headers = [(name, value) for name, value in answer.getheaders() if name.lower() not in _HOP]
            told = answer.getheader("Content-Length")
            return answer.status, headers, data, len(data) if told is None else int(told)
        finally:
            connection.close()

    def _answer(self, status: int, headers: list[tuple[str, str]], data: bytes, length: int) -> None:
        self.send_response_only(status)
        for name, value in headers:
            if name.lower() != "content-length":
                self.send_header(name, value)
        if status != 204:
            self.send_header("Content-Length", str(length))
        self.end_headers()
        self.wfile.write(data)
        self.wfile.flush()

    def _close(self) -> None:
        self.close_connection = True
        with contextlib.suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)

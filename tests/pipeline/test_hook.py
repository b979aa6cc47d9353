"""The failure hook: a real command and a real web server are told, and what goes wrong there is logged, no more."""

import json
import logging
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from pipeline.hook import tell
from pipeline.schedule import OnFailure


class Listener:
    """A real web server that answers as it is told and keeps what it was sent."""

    def __init__(self, *answers: int) -> None:
        self.bodies: list[dict] = []
        self.paths: list[str] = []
        left = list(answers)
        listener = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                listener.paths.append(self.path)
                listener.bodies.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
                self.send_response(left.pop(0) if left else 200)
                self.send_header("Location", "file:///etc/passwd")
                self.send_header("Content-Length", "0")
                self.end_headers()

            def do_GET(self):
                raise AssertionError("a hook is POSTed")

            def log_message(self, *_): ...

        self.server = HTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/hook?token=secret"
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.05})

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()


@pytest.fixture
def told(caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("raydissect"), "propagate", True)
    monkeypatch.setattr("pipeline.hook.PAUSE", 0.01)
    return caplog


def test_the_body_is_the_same_on_standard_input_and_in_the_post(tmp_path, told):
    script = f"import sys; open({str(tmp_path / 'told')!r}, 'wb').write(sys.stdin.buffer.read())"
    body = {"task": "a ü", "exit_code": 2, "settings": ["x=$(reboot)"]}
    with Listener(503, 200) as listener:
        tell(OnFailure(command=(sys.executable, "-c", script), url=listener.url), body)
    assert listener.bodies == [body, body]
    assert json.loads((tmp_path / "told").read_text()) == body
    assert told.text == ""


@pytest.mark.parametrize(("answers", "tries"), [((503, 500, 429), 3), ((404,), 1), ((302,), 1), ((307,), 1)])
def test_a_url_that_does_not_take_it_is_logged_without_its_secret(told, answers, tries):
    with Listener(*answers) as listener:
        tell(OnFailure(url=listener.url), {"a": 1})
    assert len(listener.paths) == tries
    assert f"the URL answers {answers[tries - 1]}" in told.text
    assert "secret" not in told.text


def test_a_hook_that_cannot_be_reached_or_fails_is_logged_and_no_more(told):
    tell(OnFailure(url="http://127.0.0.1:9/x"), {})
    assert "the URL cannot be reached" in told.text
    tell(OnFailure(command=("/none/program",)), {})
    assert "/none/program could not be run" in told.text
    tell(OnFailure(command=(sys.executable, "-c", "raise SystemExit('no; $(reboot)')")), {})
    assert "ended with 1: no; $(reboot)" in told.text

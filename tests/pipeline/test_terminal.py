import json
import logging

import pytest
from rich.console import Console

from pipeline import terminal
from pipeline.terminal import log_to_stderr, print_json, print_rows, progress, say, show_value

ROWS = [
    {"concept": "sky-c [bold]:cat:", "iou": 0.123456789, "image": None},
    {"concept": "x" * 120, "iou": 1 / 3, "image": {"bytes": b"12345", "path": "a.jpg"}},
]


def on_terminal(monkeypatch: pytest.MonkeyPatch, width: int, name: str = "console") -> None:
    console = Console(markup=False, emoji=False, highlight=False, force_terminal=True, width=width, color_system=None)
    console.stderr = name == "errors"
    monkeypatch.setattr(terminal, name, console)


def test_a_piped_table_is_whole_and_aligned(capsys):
    print_rows(["concept", "iou", "image"], ROWS)
    header, first, second = capsys.readouterr().out.splitlines()
    assert header.split() == ["concept", "iou", "image"]
    assert first.startswith("sky-c [bold]:cat:  ")
    assert second.split() == ["x" * 120, "0.333333", "<5", "bytes>"]
    assert header.index("iou") == first.index("0.123457") == second.index("0.333333")


def test_a_table_too_wide_for_the_terminal_is_not_cut(capsys, monkeypatch):
    on_terminal(monkeypatch, 80)
    print_rows(["concept", "iou", "image"], ROWS)
    out = capsys.readouterr().out
    assert "x" * 120 in out
    assert "…" not in out


def test_a_table_that_fits_the_terminal_is_framed(capsys, monkeypatch):
    on_terminal(monkeypatch, 80)
    print_rows(["concept", "iou"], ROWS[:1])
    out = capsys.readouterr().out
    assert "┃ concept" in out
    assert "sky-c [bold]:cat:" in out


def test_a_table_without_rows_is_its_header(capsys):
    print_rows(["run", "error"], [])
    assert capsys.readouterr().out == "run  error\n"


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (None, ""),
        (2.0, "2"),
        (b"123", "<3 bytes>"),
        ([1, b"12", None], "[1, <2 bytes>, ]"),
        ({"a": {"bytes": b"1", "path": "p"}}, "{a: <1 bytes>}"),
        ("two\nlines\t\x1b[31mred", "two\\nlines\\t\\x1b[31mred"),
        ("é 漢", "é 漢"),
    ],
)
def test_values_are_shown_on_one_line(value, shown):
    assert show_value(value) == shown


def test_control_characters_are_shown_not_obeyed(capsys):
    say("first\nsecond \x1b]0;title\x07")
    assert capsys.readouterr().out == "first\nsecond \\x1b]0;title\\x07\n"


@pytest.mark.parametrize("terminal", [False, True])
def test_names_of_columns_and_keys_are_shown_not_obeyed(capsys, monkeypatch, terminal):
    if terminal:
        on_terminal(monkeypatch, 200)
    print_rows(["a\x1b[31m"], [{"a\x1b[31m": {"b\x9b31m": "c\x07"}}])
    out = capsys.readouterr().out
    assert "a\\x1b[31m" in out
    assert "{b\\x9b31m: c\\x07}" in out
    assert not set(out) & set("\x1b\x9b\x07")


def test_json_is_ascii(capsys):
    print_json({"a": "\x9b31m é", "b": [1, None]})
    out = capsys.readouterr().out
    assert out.isascii()
    assert json.loads(out) == {"a": "\x9b31m é", "b": [1, None]}


@pytest.fixture
def logger():
    logger = logging.getLogger("raydissect")
    before = logger.handlers, logger.level, logger.propagate
    yield logger
    logger.handlers, logger.level, logger.propagate = before


def test_a_log_line_without_a_terminal_is_one_line(capsys, logger):
    log_to_stderr(verbose=False)
    logger.info("shard %s: %s", "000001", "y" * 200)
    logger.error("two\n  lines")
    first, second = capsys.readouterr().err.splitlines()
    assert first.endswith("INFO shard 000001: " + "y" * 200)
    assert second.endswith("ERROR two lines")


def test_a_terminal_has_the_bar_and_log_lines_only_on_request(capsys, logger, monkeypatch):
    on_terminal(monkeypatch, 100, "errors")
    log_to_stderr(verbose=False)
    with progress() as bar:
        bar("tally", 0, 2)
        logger.info("shard 000000")
        logger.warning("odd")
        bar("tally", 2, 2)
    shown = capsys.readouterr().err
    assert "tally" in shown
    assert "2/2" in shown
    assert "odd" in shown
    assert "shard 000000" not in shown
    log_to_stderr(verbose=True)
    logger.info("shard 000000")
    assert "shard 000000" in capsys.readouterr().err


@pytest.mark.parametrize("terminal", [False, True])
def test_a_log_line_obeys_nothing_and_keeps_secrets(capsys, logger, monkeypatch, terminal):
    if terminal:
        on_terminal(monkeypatch, 200, "errors")
    log_to_stderr(verbose=False)
    logger.error("image %s of https://there/a.zip?sig=secret is broken", "\x1b]0;title\x07\x9b31m")
    shown = capsys.readouterr().err
    assert "image \\x1b]0;title\\x07\\x9b31m of https://there/a.zip is broken" in shown
    assert not set(shown) & set("\x1b\x9b\x07")


def test_there_is_no_bar_without_a_terminal(capsys):
    with progress() as bar:
        bar("tally", 1, 2)
    assert capsys.readouterr() == ("", "")

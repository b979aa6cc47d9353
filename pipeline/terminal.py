"""What a person sees: tables, progress bars, log lines. Piped, all of it is plain, whole, and one line each."""

import json
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from rich.cells import cell_len
from rich.console import Console
from rich.logging import RichHandler
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from pipeline.redact import shown

console = Console(markup=False, emoji=False, highlight=False)
errors = Console(markup=False, emoji=False, highlight=False, stderr=True)


def say(text: str, to: Console = console, style: str | None = None) -> None:
    """Print text that is never wrapped and whose control characters are shown, not obeyed."""
    for line in text.split("\n"):
        to.print(_printable(line), soft_wrap=True, style=style)


def print_rows(names: Sequence[str], rows: Sequence[dict[str, Any]]) -> None:
    """Print a table: framed where it fits the terminal, else in columns as wide as they need to be."""
    cells = [[show_value(row.get(name)) for name in names] for row in rows]
    names = [_printable(name) for name in names]
    widths = [max(map(cell_len, column)) for column in zip(names, *cells, strict=True)]
    if console.is_terminal and sum(widths) + 3 * len(widths) + 1 <= console.width:
        table = Table(*names)
        for row in cells:
            table.add_row(*row)
        console.print(table)
        return
    for row in (names, *cells):
        padded = [cell + " " * (width - cell_len(cell)) for cell, width in zip(row, widths, strict=True)]
        say("  ".join(padded).rstrip())


def print_json(value: Any) -> None:
    """Print JSON for other programs, in ASCII: what a terminal could obey is escaped."""
    say(json.dumps(value, indent=2))


def show_value(value: Any) -> str:
    """A value as the cell of a table, on one line; a picture as its size."""
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, bytes):
        return f"<{len(value)} bytes>"
    if isinstance(value, dict) and "bytes" in value:
        return show_value(value["bytes"])
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_printable(str(name))}: {show_value(part)}" for name, part in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(show_value, value)) + "]"
    return _printable(str(value))


@contextmanager
def progress() -> Iterator[Callable[[str, int, int], None]]:
    """A progress bar on a terminal, nothing elsewhere: a function of title, done and total."""
    if not errors.is_terminal:
        yield lambda title, done, total: None
        return
    columns = (
        TextColumn("{task.description:>22}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=errors) as bars:
        tasks: dict[str, Any] = {}

        def show(title: str, done: int, total: int) -> None:
            if title not in tasks:
                tasks[title] = bars.add_task(title, total=total)
            bars.update(tasks[title], completed=done, total=total)

        yield show


def log_to_stderr(verbose: bool) -> None:
    """One line a shard where there is no progress bar, or where it is asked for; else only what went wrong."""
    if errors.is_terminal:
        handler: logging.Handler = RichHandler(console=errors, show_path=False, log_time_format="%H:%M:%S")
        handler.setFormatter(_Told("%(message)s"))
    else:
        handler = logging.StreamHandler()
        handler.setFormatter(_OneLine("%(asctime)s %(levelname)s %(message)s"))
    logger = logging.getLogger("raydissect")
    logger.handlers = [handler]
    logger.setLevel(logging.INFO if verbose or not errors.is_terminal else logging.WARNING)
    logger.propagate = False


class _Told(logging.Formatter):
    """A message without the secrets of URLs, its control characters shown."""

    def format(self, record: logging.LogRecord) -> str:
        return "\n".join(map(_printable, shown(super().format(record)).split("\n")))


class _OneLine(_Told):
    """Joins the lines of a message, so that a line of the log is a message."""

    def format(self, record: logging.LogRecord) -> str:
        return " ".join(super().format(record).split())


def _printable(text: str) -> str:
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode() for one in text)

"""The table that people read, on the terminal and as Markdown, with the machine it was measured on."""

import os
import platform
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.bench import Bench
from benchmarks.figure import COLUMNS, Figure


def describe(bench: Bench) -> list[str]:
    """Where, when and on what the figures are measured, a line each."""
    device = torch.cuda.get_device_name() if bench.device == "cuda" else "CPU"
    data = bench.photographs.name if bench.photographs else "scenes of the mini source (no photographs were found)"
    return [
        f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        f"{_processor()}, {len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()} cores, "
        f"on {device}, torch threads: {bench.threads}",
        f"Python {platform.python_version()}, torch {torch.__version__}",
        f"{bench.images} images of {data}; rounds: {bench.rounds}",
    ]


def print_table(figures: Sequence[Figure], console: Console) -> None:
    table = Table(*COLUMNS)
    for figure in figures:
        table.add_row(*figure.cells(), style={"misses": "bold red", "holds": "green"}.get(figure.verdict))
    console.print(table)


def to_markdown(heading: Sequence[str], figures: Iterable[Figure]) -> str:
    """A section of its own, to be appended to a file that has others."""
    rows = [COLUMNS, ("---",) * len(COLUMNS), *(figure.cells() for figure in figures)]
    table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    return f"### {heading[0]}\n\n{'. '.join(heading[1:])}.\n\n{table}\n"


def append(path: Path, section: str) -> None:
    """Add a section at a file's end; earlier ones stay, so that runs can be compared."""
    path.parent.mkdir(parents=True, exist_ok=True)
    before = path.read_text() if path.exists() else ""
    path.write_text(before + ("\n" if before else "") + section)


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()

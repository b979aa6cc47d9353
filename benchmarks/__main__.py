"""The command line: `python -m benchmarks [NAME...]`; all of them without a name."""

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from time import perf_counter
from typing import Annotated

import torch
import typer
from rich.console import Console

from benchmarks.activation_maximization import activation_maximization
from benchmarks.all_layers import all_layers
from benchmarks.bench import Bench
from benchmarks.concepts import concepts
from benchmarks.data import find_photographs
from benchmarks.deconvnet import deconvnet
from benchmarks.figure import Figure
from benchmarks.forward_share import forward_share
from benchmarks.images import images
from benchmarks.memory import memory
from benchmarks.null import null
from benchmarks.staged import staged
from benchmarks.table import append, describe, print_table, to_markdown
from benchmarks.units import units
from benchmarks.workers import workers
from pipeline.errors import InputError, SettingsError

BENCHMARKS: dict[str, Callable[[Bench], Iterator[Figure]]] = {
    function.__name__: function
    for function in (
        *(forward_share, all_layers, images, concepts, units, workers, null, memory, staged),
        *(activation_maximization, deconvnet),
    )
}
WITH_BARS = (
    "forward_share",
    "all_layers",
    "concepts",
    "workers",
    "null",
    "memory",
    "activation_maximization",
    "deconvnet",
)
ON_GPU = ("forward_share", "all_layers", "concepts", "units", "null", "activation_maximization", "deconvnet")

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def main(
    names: Annotated[list[str] | None, typer.Argument(help=f"of {', '.join(BENCHMARKS)}; all without one")] = None,
    rounds: Annotated[int, typer.Option(min=1, help="how often each side of a comparison is measured")] = 3,
    number: Annotated[int, typer.Option("--images", min=4, help="where a benchmark has no number of its own")] = 768,
    data: Annotated[Path | None, typer.Option(help="folder in Broden's format; without one, see BENCHMARKS.md")] = None,
    threads: Annotated[int, typer.Option(min=1, help="of torch, on all sides")] = 1,
    out: Annotated[Path | None, typer.Option(help="file to which the table is appended as Markdown")] = None,
    bars: Annotated[bool, typer.Option("--bars", help="only what the bars are about")] = False,
    devices: Annotated[list[str] | None, typer.Option("--device", help="cpu, cuda; all there are without one")] = None,
) -> None:
    """Measure, and print a table; what is measured is said in BENCHMARKS.md."""
    if unknown := sorted(set(names or ()) - set(BENCHMARKS)):
        raise typer.BadParameter(f"unknown benchmarks {unknown}, there are {list(BENCHMARKS)}")
    console = Console(highlight=False, width=None if Console().is_terminal else 160)
    with tempfile.TemporaryDirectory(prefix="raydissect-bench-") as folder:
        bench = Bench(Path(folder), rounds, number, threads, photographs=data or find_photographs(), only_bars=bars)
        for device in devices or ["cpu", *["cuda"] * torch.cuda.is_available()]:
            chosen = names or [
                name for name in BENCHMARKS if (device == "cpu" or name in ON_GPU) and (not bars or name in WITH_BARS)
            ]
            try:
                measure(replace(bench, device=device), chosen, console, out)
            except (InputError, SettingsError) as error:  # a source that is not there, a device that is none
                raise typer.BadParameter(str(error)) from error


def measure(bench: Bench, names: list[str], console: Console, out: Path | None) -> list[Figure]:
    """Run benchmarks one after another; what was measured is shown and written even if one fails."""
    figures: list[Figure] = []
    heading = describe(bench)
    console.print(*heading, sep="\n")
    try:
        for name in names:
            start = perf_counter()
            for figure in BENCHMARKS[name](bench):
                figures.append(figure)
                console.print(f"  {figure.name}: {figure.cells()[2]} {figure.verdict}", soft_wrap=True)
            console.print(f"{name}: {perf_counter() - start:.0f} s", soft_wrap=True)
    finally:
        if figures:
            print_table(figures, console)
            if out is not None:
                append(out, to_markdown(heading, figures))
    return figures


if __name__ == "__main__":
    app()

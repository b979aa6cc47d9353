"""The command `raydissect`: parses words, calls the pipeline, prints what came of it.

Exit codes: 0 done or nothing to do, 1 failed, 2 bad settings or input, 130 interrupted.
"""

import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.logging import RichHandler
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from pipeline.errors import INTERRUPTED, RaydissectError, SettingsError

app = typer.Typer(
    name="raydissect",
    help="Network dissection and its sibling methods as one distributed batch pipeline.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
console = Console()
errors = Console(stderr=True)

Overrides = Annotated[list[str] | None, typer.Argument(metavar="[NAME=VALUE]...", help="settings, as `model=alexnet`")]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="one log line a shard")]


@app.command()
def ingest(overrides: Overrides = None, verbose: Verbose = False) -> None:
    """Turn images and labels into a data set: data=broden|folder|mini data.root=DIR_or_ZIP_or_URL store=URL."""
    from pipeline import datasets
    from pipeline import ingest as ingesting
    from pipeline.compose import compose_settings
    from pipeline.store import Store

    _log(verbose)
    settings = compose_settings(overrides or [])
    store = Store(settings.store)
    with progress() as bar:
        manifest = ingesting.ingest(settings.data, store, on_progress=lambda done, total: bar("images", done, total))
    found = datasets.summary(manifest, store)
    console.print(f"data set [bold]{found.name}[/] ({found.dataset_id}) in {settings.store}", highlight=False)
    table = Table("", "", show_header=False)
    table.add_row("images", f"{found.images:,} in {found.shards} shards, {found.bytes / 1e6:,.1f} MB")
    for category, concepts in found.concepts.items():
        table.add_row(f"{category} concepts", str(concepts))
    if found.absent:
        table.add_row("listed, but nowhere in an image", str(found.absent))
    table.add_row("rejected images", ", ".join(f"{n} {kind}" for kind, n in found.rejects.items()) or "none")
    console.print(table)
    for message in found.first_rejects:
        console.print(f"  rejected: {message}", markup=False, highlight=False)
    if found.rejects:
        console.print(f"  all of them: {found.rejects_path}", markup=False, highlight=False)


@app.command()
def run(
    overrides: Overrides = None,
    settings: Annotated[
        bool, typer.Option("--settings", help="print all settings and their values, run nothing")
    ] = False,
    verbose: Verbose = False,
) -> None:
    """Dissect a network, as far as it is not done: model=NAME data=NAME store=URL stages=[dissect] layers=auto."""
    from pipeline.compose import compose_settings
    from pipeline.executor import make_executor
    from pipeline.run import run as run_pipeline

    _log(verbose)
    composed = compose_settings(overrides or [])
    if settings:
        stages = {name: stage.model_dump(mode="json") for name, stage in composed.stages_by_name().items()}
        console.print_json(data={**composed.model_dump(mode="json"), "stage": stages})
        return
    with make_executor(composed.cluster) as executor, progress() as bar:
        outcome = run_pipeline(composed, executor, bar)
    console.print(
        f"study [bold]{outcome.study_id}[/]: {len(outcome.layers)} layers, {len(outcome.computed)} results computed, "
        f"{len(outcome.found)} found done",
        highlight=False,
    )
    _print_summary(composed.store, outcome.study_id)


@app.command()
def report(
    arguments: Annotated[list[str] | None, typer.Argument(metavar="[STUDY]... [NAME=VALUE]...")] = None,
    folder: Annotated[Path, typer.Option("--folder", "-o", help="where the pages go")] = Path("raydissect-report"),
    all_units: Annotated[bool, typer.Option(help="exemplars of every unit, not only of detectors")] = False,
) -> None:
    """Write a study's report as HTML pages; without a study, of the only one there is."""
    from pipeline.compose import compose_settings
    from pipeline.report import write_report
    from pipeline.report.collect import collect
    from pipeline.store import Store
    from pipeline.study import find_study

    names, overrides = _split(arguments)
    store = Store(compose_settings(overrides).store)
    for name in names or [""]:
        study = find_study(store, name)
        place = folder / study.study_id if len(names) > 1 else folder
        page = write_report(place, collect(store, study), all_units=all_units)
        console.print(f"report: {page.resolve()}", markup=False, highlight=False, soft_wrap=True)


@app.command()
def query(
    sql: Annotated[str, typer.Argument(help="one SQL statement (DuckDB); tables are listed in the README")],
    overrides: Overrides = None,
    csv: Annotated[Path | None, typer.Option(help="write the answer to this file")] = None,
    json: Annotated[Path | None, typer.Option(help="write the answer to this file")] = None,
    parquet: Annotated[Path | None, typer.Option(help="write the answer to this file")] = None,
) -> None:
    """Ask the tables a question in SQL."""
    from pipeline.compose import compose_settings
    from pipeline.query import query as run_query
    from pipeline.query import write_answer
    from pipeline.store import Store

    answer = run_query(Store(compose_settings(overrides or []).store), sql)
    for kind, path in (("csv", csv), ("json", json), ("parquet", parquet)):
        if path is not None:
            write_answer(answer, path, kind)
    if csv is json is parquet is None:
        _print_rows(answer.column_names, answer.slice(0, 200).to_pylist())
        if answer.num_rows > 200:
            errors.print(f"{answer.num_rows:,} rows, 200 shown: write them with --csv, --json or --parquet FILE")


@app.command()
def status(overrides: Overrides = None) -> None:
    """What the store holds, and how far running work is, from the store alone."""
    from pipeline.compose import compose_settings
    from pipeline.status import read_status
    from pipeline.store import Store

    found = read_status(Store(compose_settings(overrides or []).store))
    _print_rows(["study", "model", "dataset", "images", "layers", "results"], found.studies)
    if found.runs:
        _print_rows(["run", "study", "started", "outcome", "computed", "error"], found.runs)
    if found.unfinished:
        console.print("unfinished work:")
        _print_rows(["run", "stage", "layer", "shards done", "shards"], found.unfinished)


@app.command()
def studies(overrides: Overrides = None) -> None:
    """The studies of a store."""
    from pipeline.compose import compose_settings
    from pipeline.store import Store
    from pipeline.study import list_studies

    rows = [
        {"study": study_id, "model": s.model, "weights": s.weights, "dataset": s.dataset, "images": s.num_images,
         "device": s.numerics.device, "threads": s.numerics.threads, "torch": s.numerics.torch}
        for study_id, s in sorted(list_studies(Store(compose_settings(overrides or []).store)).items())
    ]  # fmt: skip
    _print_rows(["study", "model", "weights", "dataset", "images", "device", "threads", "torch"], rows)


@app.command()
def gc(
    overrides: Overrides = None,
    staging: Annotated[bool, typer.Option(help="also tail maps and partial counts of published results")] = False,
    older_than: Annotated[float | None, typer.Option(min=0, help="also results older than so many days")] = None,
    keep_newest: Annotated[
        int | None, typer.Option(min=1, help="also all but the newest so many of a stage and layer")
    ] = None,
    grace: Annotated[
        float, typer.Option(min=0, help="hours a file nobody names is kept, as a run may be writing it")
    ] = 24,
    dry_run: Annotated[bool, typer.Option(help="say what would go, remove nothing")] = False,
) -> None:
    """Remove what no manifest names, and old results on request."""
    from pipeline.compose import compose_settings
    from pipeline.gc import collect
    from pipeline.store import Store

    store = Store(compose_settings(overrides or []).store)
    removed = collect(
        store, staging=staging, older_than_days=older_than, keep_newest=keep_newest, grace_hours=grace, dry_run=dry_run
    )
    verb = "would remove" if dry_run else "removed"
    console.print(f"{verb} {len(removed.files):,} files, {removed.bytes / 1e6:,.1f} MB, {len(removed.results)} results")


@app.command()
def models(
    search: Annotated[str, typer.Argument(help="only names that hold this")] = "",
) -> None:
    """The networks that can be dissected by name."""
    from workers.models import available

    for name in available():
        if search in name:
            console.print(name, markup=False, highlight=False)


@app.command()
def layers(overrides: Overrides = None) -> None:
    """The layers of a network: name, channels, grid, receptive field. Layers that `layers=` names, or all."""
    from pipeline.compose import compose_settings
    from pipeline.inspect import inspect_layers

    settings = compose_settings(overrides or [])
    chosen = any(one.startswith("layers=") for one in overrides or [])
    rows = inspect_layers(settings, everything=not chosen)
    _print_rows(["layer", "units", "grid", "stride", "receptive field"], rows)


def main() -> None:
    """Run the command and turn every foreseen error into its message and exit code."""
    from workers.models import ModelError

    try:
        app(standalone_mode=False)
    except RaydissectError as error:
        _fail(str(error), error.exit_code)
    except ModelError as error:
        _fail(str(error), SettingsError.exit_code)
    except typer.Exit as ended:
        sys.exit(ended.exit_code)
    except typer.Abort:
        sys.exit(INTERRUPTED)
    except KeyboardInterrupt:
        _fail("interrupted: what is finished is kept, and the same command goes on from there", INTERRUPTED)
    except Exception as error:
        if isinstance(error, _usage_error()):
            error.show()
            sys.exit(SettingsError.exit_code)
        raise


def _usage_error() -> type[Exception]:
    import click

    return click.ClickException


@contextmanager
def progress() -> Iterator[Callable[[str, int, int], None]]:
    """A progress bar on a terminal, nothing elsewhere: a function of title, done and total."""
    if not console.is_terminal:
        yield lambda title, done, total: None
        return
    columns = (
        TextColumn("{task.description:>22}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as bars:
        tasks: dict[str, Any] = {}

        def show(title: str, done: int, total: int) -> None:
            if title not in tasks:
                tasks[title] = bars.add_task(title, total=total)
            bars.update(tasks[title], completed=done, total=total)

        yield show


def _log(verbose: bool) -> None:
    handler = RichHandler(console=errors, show_path=False, log_time_format="%H:%M:%S")
    logger = logging.getLogger("raydissect")
    logger.handlers = [handler]
    logger.setLevel(logging.INFO if verbose or not console.is_terminal else logging.WARNING)
    logger.propagate = False


def _fail(message: str, code: int) -> None:
    errors.print(f"raydissect: {message}", style="red", markup=False, highlight=False, soft_wrap=True)
    sys.exit(code)


def _split(arguments: list[str] | None) -> tuple[list[str], list[str]]:
    names = [one for one in arguments or [] if "=" not in one]
    return names, [one for one in arguments or [] if "=" in one]


def _print_rows(names: list[str], rows: list[dict[str, Any]]) -> None:
    table = Table(*names)
    for row in rows:
        table.add_row(*(_cell(row.get(name)) for name in names))
    console.print(table)


def _cell(value: Any) -> str:
    from rich.markup import escape

    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, dict) and "bytes" in value:
        return f"<{len(value['bytes'] or b'')} bytes>"
    return escape(str(value))


def _print_summary(store_url: str, study_id: str) -> None:
    """Detectors and unique concepts of every layer of a study."""
    from pipeline.status import layer_counts
    from pipeline.store import Store

    if rows := layer_counts(Store(store_url), study_id):
        _print_rows(["layer", "units", "detectors", "unique concepts", "dead units"], rows)


if __name__ == "__main__":
    main()

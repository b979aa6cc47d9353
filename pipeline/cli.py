"""The command `raydissect`: parses words, calls the pipeline, prints what came of it.

Exit codes: 0 done or nothing to do, 1 failed, 2 bad settings or input, 3 another holds the lease, 130 interrupted.
"""

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from pipeline.errors import FAILED, INTERRUPTED, AlteredError, InputError, RaydissectError, SettingsError, StoreError
from pipeline.redact import shown
from pipeline.terminal import errors, log_to_stderr, print_json, print_rows, progress, say

if TYPE_CHECKING:
    from pipeline.reprocess import SchedulePlan, Stop
    from pipeline.store import Store

app = typer.Typer(
    name="raydissect",
    help="Network dissection and its sibling methods as one distributed batch pipeline.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Overrides = Annotated[list[str] | None, typer.Argument(metavar="[NAME=VALUE]...", help="settings, as `model=alexnet`")]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="one log line a shard, and where a failed shard raised")]


@app.command()
def ingest(overrides: Overrides = None, verbose: Verbose = False) -> None:
    """Turn images and labels into a data set: data=broden|folder|mini data.root=DIR_or_ZIP_or_URL store=URL."""
    from pipeline import datasets
    from pipeline import ingest as ingesting
    from pipeline.compose import compose_settings
    from pipeline.store import Store

    log_to_stderr(verbose)
    settings = compose_settings(overrides or [])
    store = Store(settings.store)
    with progress() as bar:
        manifest = ingesting.ingest(settings.data, store, on_progress=lambda done, total: bar("images", done, total))
    found = datasets.summary(manifest, store)
    say(f"data set {found.name} ({found.dataset_id}) in {settings.store}")
    say(f"  images: {found.images:,} in {found.shards} shards, {found.bytes / 1e6:,.1f} MB")
    for category, concepts in found.concepts.items():
        say(f"  {category} concepts: {concepts}")
    if found.absent:
        say(f"  listed, but nowhere in an image: {found.absent}")
    say("  rejected images: " + (", ".join(f"{n} {kind}" for kind, n in found.rejects.items()) or "none"))
    for message in found.first_rejects:
        say(f"    {message}")
    if found.rejects:
        say(f"    all of them: {found.rejects_path}")


@app.command()
def run(
    overrides: Overrides = None,
    settings: Annotated[
        bool, typer.Option("--settings", help="print all settings and their values, run nothing")
    ] = False,
    resume: Annotated[
        str | None,
        typer.Option(
            metavar="RUN", help="go on with this run (or `last`), refuse if weights, data or settings changed"
        ),
    ] = None,
    verify: Annotated[
        bool, typer.Option("--verify", help="hash every file of results found done, make altered ones again")
    ] = False,
    verbose: Verbose = False,
) -> None:
    """Look at a network, as far as it is not done: model=NAME data=NAME store=URL stages=[dissect] layers=auto."""
    from pipeline.compose import compose_settings
    from pipeline.executor import make_executor
    from pipeline.resume import read_run
    from pipeline.run import run as run_pipeline
    from pipeline.subject import resolve_device

    log_to_stderr(verbose)
    resumed = read_run(_open_store(overrides), resume, overrides or []) if resume is not None else None
    composed = resumed.settings if resumed else compose_settings(overrides or [])
    if settings:
        stages = {name: stage.model_dump(mode="json") for name, stage in composed.stages_by_name().items()}
        print_json({**composed.model_dump(mode="json"), "stage": stages})
        return
    device = resolve_device(composed.cluster)
    composed = composed.model_copy(update={"cluster": composed.cluster.model_copy(update={"device": device})})
    with make_executor(composed.cluster) as executor, progress() as bar:
        outcome = run_pipeline(composed, executor, bar, verify=verify, resumed=resumed)
    say(
        f"study {outcome.study_id}: {len(outcome.layers)} layers, {len(outcome.computed)} results computed, "
        f"{len(outcome.found)} found done"
    )
    _print_summary(composed.store, outcome.study_id, composed.stages, [*outcome.computed, *outcome.found])


@app.command()
def submit(
    words: Annotated[
        list[str], typer.Argument(metavar="-- run|ingest|reprocess ...", help="what is to be done, after two dashes")
    ],
    address: Annotated[
        str, typer.Option(envvar="RAY_API_SERVER_ADDRESS", help="the cluster's dashboard, as http://HOST:8265")
    ],
    wait: Annotated[bool, typer.Option("--wait", help="follow the job's log, and end with its exit code")] = False,
    cancel: Annotated[bool, typer.Option("--cancel", help="stop the job that does this work")] = False,
    installed: Annotated[
        bool, typer.Option("--installed", help="use the code that the cluster has, do not send this machine's")
    ] = False,
    env: Annotated[
        list[str] | None,
        typer.Option(help="environment variable to send along; its value shows on the cluster's dashboard"),
    ] = None,
) -> None:
    """Have a Ray cluster do it: the same work is one job, whoever submits it, and goes on where it stood."""
    from pipeline.jobs import Jobs, check_work

    work = check_work(words)
    jobs = Jobs(address)
    if cancel:
        job_id = jobs.cancel(work)
        say(f"{job_id}: stopped" if job_id else f"{work.name}: no job is at this work")
        return
    job = jobs.submit(work, installed=installed, env=env or [])
    say(f"{job.job_id}: {'at work already' if job.attached else 'submitted'} at {jobs.address}")
    say(f"  raydissect status store={work.store} tells how far it is; submit with --wait follows it, --cancel stops it")
    if not wait:
        return
    try:
        ended = jobs.follow(job.job_id, say)
    except KeyboardInterrupt:
        say(f"{job.job_id} goes on: submit it again with --wait to follow it, with --cancel to stop it", errors)
        sys.exit(INTERRUPTED)
    if ended.code:
        say(f"{job.job_id} failed with exit code {ended.code}: {ended.message or 'see above'}", errors, style="red")
        sys.exit(ended.code)


@app.command()
def report(
    arguments: Annotated[list[str] | None, typer.Argument(metavar="[STUDY|last]... [NAME=VALUE]...")] = None,
    folder: Annotated[Path, typer.Option("--folder", "-o", help="where the pages go")] = Path("raydissect-report"),
    all_units: Annotated[bool, typer.Option(help="exemplars of every unit, not only of detectors")] = False,
) -> None:
    """Write a study's report as HTML pages; without a study, of the only one there is; `last` is that of the last run.

    Of several results of a layer the newest is shown; settings such as union=all choose among those that have them.
    """
    from pipeline.compose import compose_settings
    from pipeline.report import write_report
    from pipeline.report.collect import collect
    from pipeline.study import find_study

    names, overrides = _split(arguments)
    store = _open_store(overrides)
    asked = compose_settings(overrides).asked_of_stages()
    for name in names or [""]:
        study = find_study(store, name)
        place = folder / study.study_id if len(names) > 1 else folder
        try:
            page = write_report(place, collect(store, study, asked), all_units=all_units)
        except AlteredError as error:
            raise StoreError(f"{error}; the run that made it, with --verify, makes it again") from error
        say(f"report: {page.resolve()}")


@app.command()
def query(
    sql: Annotated[str, typer.Argument(help="one SQL statement (DuckDB); tables are listed in the README")],
    overrides: Overrides = None,
    csv: Annotated[Path | None, typer.Option(help="write the answer to this file; pictures as their size")] = None,
    json: Annotated[Path | None, typer.Option(help="write the answer to this file; pictures as their size")] = None,
    parquet: Annotated[Path | None, typer.Option(help="write the answer to this file, pictures and all")] = None,
) -> None:
    """Ask the tables a question in SQL."""
    from pipeline.query import query as run_query
    from pipeline.query import write_answer

    answer = run_query(_open_store(overrides), sql)
    for kind, path in (("csv", csv), ("json", json), ("parquet", parquet)):
        if path is not None:
            write_answer(answer, path, kind)
    if csv is json is parquet is None:
        print_rows(answer.column_names, answer.slice(0, 200).to_pylist())
        if answer.num_rows > 200:
            say(f"{answer.num_rows:,} rows, 200 shown: write them with --csv, --json or --parquet FILE", errors)


@app.command()
def status(
    overrides: Overrides = None,
    json: Annotated[bool, typer.Option("--json", help="all of it as JSON, for other programs")] = False,
) -> None:
    """What the store holds, and how far running work is, from the store alone."""
    from dataclasses import asdict

    from pipeline.status import read_status

    found = read_status(_open_store(overrides))
    if json:
        print_json(asdict(found))
        return
    print_rows(["study", "model", "dataset", "images", "layers", "results"], found.studies)
    if found.runs:
        say("\nlast runs:")
        names = ["run", "study", "started", "outcome", "computed", "error"]
        running = [
            name for name in ("progress", "failed", "retried", "where") if any(name in row for row in found.runs)
        ]
        print_rows([*names[:4], *running, *names[4:]], found.runs)
    if found.unfinished:
        say("\nunfinished work:")
        print_rows(["run", "stage", "layer", "shards done", "shards"], found.unfinished)
    if found.passes:
        say("\nforward passes a layer:")
        print_rows(["layer", "passes", "staged", "why"], found.passes)


@app.command()
def studies(overrides: Overrides = None) -> None:
    """The studies of a store."""
    from pipeline.study import list_studies

    rows = [
        {"study": study_id, "model": s.model, "weights": s.weights, "dataset": s.dataset, "images": s.num_images,
         "device": s.numerics.device, "threads": s.numerics.threads, "torch": s.numerics.torch}
        for study_id, s in sorted(list_studies(_open_store(overrides)).items())
    ]  # fmt: skip
    print_rows(["study", "model", "weights", "dataset", "images", "device", "threads", "torch"], rows)


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
    from pipeline.records import retire

    store = _open_store(overrides)
    removed = retire(
        store, staging=staging, older_than_days=older_than, keep_newest=keep_newest, grace_hours=grace, dry_run=dry_run
    )
    verb = "would remove" if dry_run else "removed"
    say(f"{verb} {len(removed.files):,} files, {removed.bytes / 1e6:,.1f} MB, {len(removed.results)} results")


@app.command()
def reprocess(
    schedule: Annotated[Path, typer.Argument(metavar="SCHEDULE.yaml", help="see conf/schedule/nightly.yaml")],
    dry_run: Annotated[bool, typer.Option(help="print the plan and its reasons, run and write nothing")] = False,
    serve: Annotated[bool, typer.Option(help="run it by its cron expression until stopped")] = False,
    verbose: Verbose = False,
) -> None:
    """Dissect what a schedule lists, models x checkpoints x data sets, as far as it is not done."""
    from pipeline.reprocess import make_schedule_plan
    from pipeline.reprocess import reprocess as run_schedule
    from pipeline.schedule import read_schedule

    if dry_run and serve:
        raise SettingsError("--dry-run and --serve exclude one another")
    log_to_stderr(verbose or serve)
    if dry_run:
        _print_schedule_plan(make_schedule_plan(read_schedule(schedule)))
        return
    with _stop_on_signals() as stop:
        from pipeline.service import Service, summary

        if serve:
            Service(schedule, stop, _print_schedule_plan, _pass_on).run()
            return
        outcome = run_schedule(read_schedule(schedule), stop, _print_schedule_plan, _pass_on)
    say(summary(outcome))
    for name, error in outcome.failed.items():
        say(f"failed: {name}: {error}", errors, style="red")
    if outcome.failed:
        raise typer.Exit(FAILED)


@app.command()
def models(
    search: Annotated[str, typer.Argument(help="only names that hold this")] = "",
) -> None:
    """The networks that can be dissected by name."""
    from pipeline.settings import nearest
    from workers.models import available

    found = [name for name in available() if search in name]
    if not found:
        raise SettingsError(f"no network's name holds {search!r}{nearest(search, available())}")
    say("\n".join(found))


@app.command()
def layers(overrides: Overrides = None) -> None:
    """The layers of a network: name, channels, grid, receptive field. Layers that `layers=` names, or all."""
    from pipeline.compose import compose_settings
    from pipeline.inspect import inspect_layers

    settings = compose_settings(overrides or [])
    chosen = any(one.lstrip("+").startswith("layers=") for one in overrides or [])
    rows = inspect_layers(settings, everything=not chosen)
    print_rows(["layer", "units", "grid", "stride", "receptive field"], rows)


def main() -> None:
    """Run the command and turn every foreseen error into its message and exit code."""
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")  # pyright: ignore[reportAttributeAccessIssue]
    try:
        code = app(standalone_mode=False, prog_name="raydissect")
    except RaydissectError as error:
        _fail(error, error.exit_code)
    except _USAGE_ERROR as error:
        error.show()
        sys.exit(SettingsError.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        code = INTERRUPTED
    except ValueError as error:
        from workers.models import ModelError

        if not isinstance(error, ModelError):
            raise
        _fail(error, SettingsError.exit_code)
    if code == INTERRUPTED:  # so does typer tell of a KeyboardInterrupt
        _fail("interrupted: what is finished is kept, and the same command goes on from there", INTERRUPTED)
    if code:
        sys.exit(code)


_USAGE_ERROR: Any = next(kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "ClickException")
"""Of the click that typer uses: its own copy in new versions, the package in old ones."""


def _fail(error: Exception | str, code: int) -> NoReturn:
    say(shown(f"raydissect: {error}"), errors, style="red")
    if "-v" in sys.argv or "--verbose" in sys.argv:
        for note in getattr(error, "__notes__", ()):
            say(shown(note), errors)
    sys.exit(code)


def _open_store(overrides: list[str] | None) -> "Store":
    """The store to read from.

    Raises:
        InputError: there is none.
    """
    from pipeline.compose import compose_settings
    from pipeline.store import Store

    store = Store(compose_settings(overrides or []).store)
    if not store.exists(""):
        raise InputError(f"there is no store at {store.url}: give store=URL, or fill it with `raydissect ingest`")
    return store


@contextmanager
def _stop_on_signals() -> Iterator["Stop"]:
    """Ctrl-C and SIGTERM ask to stop, for as long as this lasts."""
    from pipeline.reprocess import Stop

    stop = Stop()

    def ask(*_: object) -> None:
        stop.asked = True

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _print_schedule_plan(plan: "SchedulePlan") -> None:
    rows = [
        {
            "do": "run" if step.run else "",
            "because": step.reason,
            "task": step.task.task_id[:6],
            "model": step.task.model,
            "checkpoint": shown(step.task.checkpoint),
            "data": step.task.data,
            "layers": ",".join(step.task.settings.layers),
            "stages": ",".join(step.task.settings.stages),
        }
        for step in plan.steps
    ]
    print_rows(["do", "because", "task", "model", "checkpoint", "data", "layers", "stages"], rows)
    for remark in plan.remarks:
        say(remark)
    for step in plan.steps:
        if step.problem:
            say(f"{step.task.name}: {step.problem}")


def _pass_on(name: str, line: str) -> None:
    """A line that a task says, with whose it is."""
    say(f"{name} | {line}", errors)


def _split(arguments: list[str] | None) -> tuple[list[str], list[str]]:
    names = [one for one in arguments or [] if "=" not in one]
    return names, [one for one in arguments or [] if "=" in one]


def _print_summary(store_url: str, study_id: str, stages: tuple[str, ...], results: list[str]) -> None:
    """Detectors and unique concepts of every layer of a study, and what came of other stages that were asked for."""
    from pipeline.closing import closing_tables
    from pipeline.status import layer_counts
    from pipeline.store import Store

    store = Store(store_url)
    if rows := layer_counts(store, study_id):
        print_rows(["layer", "units", "detectors", "unique concepts", "dead units"], rows)
    for rows in closing_tables(store, study_id, stages, results):
        print_rows(list(rows[0]), rows)


if __name__ == "__main__":
    main()

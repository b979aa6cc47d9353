"""`raydissect reprocess`: plan the tasks of a schedule, run those that are not done, remove what is old.

A task is done when the manifests of all its results are in the store, for the weights, the data set and the
versions there are now. Results that retention removed count as there: they were made, and their absence is wanted.
"""

import hashlib
import logging
import queue
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from typing import Any

from pipeline.children import Child, OnLine, end
from pipeline.datasets import load_manifest
from pipeline.errors import BAD_INPUT, FAILED, InputError, RaydissectError, SettingsError
from pipeline.follow import TRAINED, follow, list_checkpoints
from pipeline.gc import Removed
from pipeline.hook import tell
from pipeline.lease import Lease
from pipeline.plan import make_plan
from pipeline.records import Record, new_record, read_records, retire, retired, write_record
from pipeline.redact import shown
from pipeline.results import result_path
from pipeline.schedule import Schedule
from pipeline.stage import read_anywhere
from pipeline.stages.evolution import Evolution
from pipeline.store import Store, digest
from pipeline.study import Study, list_studies
from pipeline.subject import prepare
from pipeline.tasks import Task, checkpoint_key, expand
from workers.weights import is_file

logger = logging.getLogger("raydissect")

LEASE = "reprocess"
"""One lease a store, whatever the schedule: retention must not run while another's tasks do."""

NEW, NEW_SETTINGS = "new", "new layers, stages or settings"
CHANGED_DATA, CHANGED_WEIGHTS, CHANGED_VERSIONS = "changed data", "changed weights", "changed versions or machine"
CHANGED_CHECKPOINTS = "new or changed checkpoints"
FAILED_BEFORE, UNFINISHED, GONE = "failed before", "unfinished", "results are gone"
DONE, RETIRED, IMPOSSIBLE = "done", "done, removed by retention", "cannot be run"

POLL = 0.2
"""Seconds after which a wish to stop, or a lost lease, is noticed."""


@dataclass(frozen=True)
class Step:
    """A task, and what is to be done about it.

    Attributes:
        run: whether it is not done.
        reason: why.
        found: what to remember of it: now, if it is done; once it is done, otherwise.
        problem: why it cannot be run, which makes it fail.
    """

    task: Task
    run: bool
    reason: str
    found: Record
    problem: str | None = None


@dataclass
class SchedulePlan:
    """The steps of a schedule, and remarks on globs that match nothing."""

    steps: list[Step]
    remarks: list[str]


@dataclass
class Stop:
    """A wish to stop that a signal handler can leave; a flag, since a lock could be held by what it interrupts."""

    asked: bool = False


@dataclass
class Outcome:
    """What came of a schedule."""

    found: list[str] = field(default_factory=list)
    computed: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)  # task -> error
    removed: Removed | None = None


OnPlan = Callable[[SchedulePlan], None]


def reprocess(schedule: Schedule, stop: Stop, on_plan: OnPlan, on_line: OnLine) -> Outcome:
    """Do what a schedule asks for, as far as it is not done, and then apply its retention.

    Args:
        schedule: what to do.
        stop: asks to end: tasks that run are interrupted.
        on_plan: told the plan, before anything runs.
        on_line: told every line that tasks say.

    Raises:
        LeaseHeldError: another reprocesses this store.
        LeaseLostError: another took over; what ran here was ended.
        KeyboardInterrupt: it was asked to stop.
        SettingsError: the schedule names what is not there.
    """
    expansion = expand(schedule)  # before the lease: what is wrong is told first
    store = Store(schedule.store)
    with Lease(store, LEASE, schedule.lease_seconds) as lease:
        planner = Planner(store)

        def go_on() -> None:
            lease.check()
            if stop.asked:
                raise KeyboardInterrupt

        plan = SchedulePlan(planner.steps(expansion.tasks, go_on), expansion.remarks)
        on_plan(plan)
        outcome = _carry_out(schedule, plan.steps, planner, go_on, on_line)
        if schedule.retention.wanted:
            lease.renew()
            outcome.removed = _apply_retention(store, schedule, outcome)
    return outcome


def make_schedule_plan(schedule: Schedule) -> SchedulePlan:
    """Plan and write nothing."""
    expansion = expand(schedule)
    return SchedulePlan(Planner(Store(schedule.store)).steps(expansion.tasks), expansion.remarks)


class Planner:
    """Finds what is done. Reads a checkpoint only where its file changed, and loads it only where that may help."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._datasets: dict[str, str] = {}
        self._results: dict[str, set[str]] = {}

    def steps(self, tasks: list[Task], go_on: Callable[[], None] = lambda: None) -> list[Step]:
        """The steps of tasks, in order; `go_on` is called before each and may raise."""
        records, places = read_records(self._store, tasks)
        steps = []
        for task in tasks:
            go_on()
            steps.append(self._step(task, records.get(task.task_id), task.place in places))
        return steps

    def look(self, task: Task) -> tuple[str, tuple[str, ...], bool]:
        """Load a task's network and see: its study, its manifests, whether all are there or were retired."""
        subject, stages = prepare(task.settings), task.settings.stages_by_name()
        if Evolution.name in task.stages:
            stages = {**stages, Evolution.name: follow(task.settings, subject, stages).stage}
        study = subject.study
        plan = make_plan(self._store, study, list(subject.layers), task.stages, stages)
        wanted = [(stage, layer) for stage in task.stages for layer in plan.layers]
        paths = tuple(result_path(study.study_id, *key, plan.ids[key]) for key in wanted)
        missing = {path for key, path in zip(wanted, paths, strict=True) if key not in plan.published}
        return study.study_id, paths, missing <= self._retired

    def _step(self, task: Task, record: Record | None, known_place: bool) -> Step:
        found: dict[str, Any] = {"dataset_id": None, "checkpoint_key": None}
        if task.problem:
            return self._impossible(task, record, task.problem)
        try:
            found["dataset_id"] = self._dataset_id(task.data)
            found["checkpoint_key"] = self._checkpoint_key(task)
            found["file_sha256"] = self._file_sha256(task, record, found["checkpoint_key"])
        except (InputError, SettingsError) as error:
            return self._impossible(task, record, str(error))
        reason = _reason(task, record, known_place, **found)
        if record is not None and reason == DONE:
            missing = set(record.results) - self._published(record.study_id or "")
            if missing <= self._retired:
                kept = record.model_copy(update={**found, "outcome": "done", "error": None})
                return Step(task, False, RETIRED if missing else DONE, kept)
            reason = GONE
        if reason != GONE and self._may_be_known(task, **found) and self._are_known(task):
            try:
                study_id, results, whole = self.look(task)
            except (RaydissectError, ValueError, RuntimeError, OSError) as error:
                logger.info("%s: planned to run, where it will fail if this is so: %s", task.name, error)
            else:
                if whole:
                    done = new_record(task, "done", study_id=study_id, results=results, **found)
                    return Step(task, False, DONE, done)
        return Step(task, True, reason, new_record(task, "running", **found))

    @staticmethod
    def _impossible(task: Task, record: Record | None, problem: str) -> Step:
        """What was known of it stays known: the same checkpoint may be there again tomorrow."""
        known = record or new_record(task, "failed", dataset_id=None, checkpoint_key=None)
        return Step(task, True, IMPOSSIBLE, known, problem)

    def _dataset_id(self, name: str) -> str:
        if name not in self._datasets:
            self._datasets[name] = load_manifest(self._store, name).dataset_id
        return self._datasets[name]

    def _checkpoint_key(self, task: Task) -> str | None:
        """That of a task's checkpoint, and of those that it follows."""
        own = checkpoint_key(task.checkpoint, self._store)
        if Evolution.name not in task.stages:
            return own
        keys = {one: checkpoint_key(one, self._store) for one in self._followed(task)}
        return None if None in (own, *keys.values()) else digest([own, *keys.items()])

    def _followed(self, task: Task) -> list[str]:
        """The checkpoints that a task lists for its evolution; none where they are those of its own training."""
        stage = task.settings.stages_by_name()[Evolution.name]
        assert isinstance(stage, Evolution)
        if Evolution.name not in task.stages or (task.checkpoint == TRAINED and not stage.checkpoints):
            return []
        return list_checkpoints(stage, self._store, task.checkpoint, "")

    def _are_known(self, task: Task) -> bool:
        """Whether a look at the checkpoints that a task follows copies none into the store, and trains none."""
        followed = self._followed(task)
        try:
            files = {self._sha256(one)[:16] for one in filter(is_file, followed)}
        except InputError:
            return False
        return TRAINED not in followed and files <= self._weights

    def _file_sha256(self, task: Task, record: Record | None, key: str | None) -> str | None:
        if not is_file(task.checkpoint):
            return None
        if record is not None and key is not None and record.checkpoint_key == key:
            return record.file_sha256
        return self._sha256(task.checkpoint)

    def _sha256(self, checkpoint: str) -> str:
        try:
            return hashlib.sha256(read_anywhere(self._store)(checkpoint)).hexdigest()
        except RaydissectError as error:
            raise InputError(str(error)) from error

    def _may_be_known(self, task: Task, dataset_id: str, checkpoint_key: str | None, file_sha256: str | None) -> bool:
        """Whether the store may hold results of these weights on this data set, as far as can be told unloaded.

        Never of `trained` ones: to look at these is to train them.
        """
        del checkpoint_key
        weights = task.checkpoint
        if weights == "trained" or not any(
            study.model == task.model and study.dataset_id == dataset_id and (file_sha256 or study.weights == weights)
            for study in self._studies.values()
        ):
            return False
        if file_sha256 is not None:
            return file_sha256[:16] in self._weights
        # For a cluster elsewhere, a plan would copy named weights into the store: it looks only where they are.
        copied = any(name.startswith(f"{task.model.replace(':', '-')}-{weights}-") for name in self._weights)
        return weights == "random" or task.settings.cluster.address is None or copied

    def _published(self, study_id: str) -> set[str]:
        if study_id not in self._results:
            self._results[study_id] = set(self._store.list(f"results/{study_id}"))
        return self._results[study_id]

    @cached_property
    def _retired(self) -> set[str]:
        return retired(self._store)

    @cached_property
    def _studies(self) -> dict[str, Study]:
        return list_studies(self._store)

    @cached_property
    def _weights(self) -> set[str]:
        """Names of the weights files that runs copied into the store: what their bytes hash to."""
        return {path.rpartition("/")[2].partition(".")[0] for path in self._store.list("weights")}


def _reason(
    task: Task,
    record: Record | None,
    known_place: bool,
    dataset_id: str | None,
    checkpoint_key: str | None,
    file_sha256: str | None,
) -> str:
    """What a task's record says; `DONE` where nothing changed since it was done."""
    if record is None:
        return NEW_SETTINGS if known_place else NEW
    if record.dataset_id not in (None, dataset_id):
        return CHANGED_DATA
    if record.file_sha256 not in (None, file_sha256):
        return CHANGED_WEIGHTS
    if not record.results:  # else it was done before it could, for once, not be run
        return UNFINISHED if record.outcome == "running" else FAILED_BEFORE
    if record.environment != task.environment:
        return CHANGED_VERSIONS
    if Evolution.name in task.stages and (checkpoint_key is None or checkpoint_key != record.checkpoint_key):
        return CHANGED_CHECKPOINTS
    return DONE


def _carry_out(
    schedule: Schedule, steps: list[Step], planner: Planner, go_on: Callable[[], None], on_line: OnLine
) -> Outcome:
    """Run what is to be run, so many at once; all of them are ended when this one ends, as when `go_on` raises."""
    store, outcome = Store(schedule.store), Outcome()
    for step in steps:
        if not step.run:
            write_record(store, step.task, step.found)
            outcome.found.append(step.task.name)
    waiting = deque(step for step in steps if step.run)
    running: dict[Child, tuple[Step, Record]] = {}
    ended: queue.SimpleQueue[Child] = queue.SimpleQueue()
    try:
        while waiting or running:
            go_on()
            while waiting and len(running) < schedule.concurrency:
                step = waiting.popleft()
                if step.problem:
                    _fail(schedule, outcome, step.task, step.found, BAD_INPUT, step.problem)
                    continue
                record = step.found.model_copy(update={"started": datetime.now(UTC)})
                write_record(store, step.task, record)
                logger.info("%s: begins (%s)", step.task.name, step.reason)
                running[Child(step.task.name, ["run", *step.task.words], on_line, ended)] = (step, record)
            try:
                child = ended.get(timeout=POLL if running else 0)
            except queue.Empty:
                continue
            step, record = running.pop(child)
            _conclude(schedule, outcome, step.task, record, child, planner)
    finally:
        end(list(running))
    return outcome


def _conclude(schedule: Schedule, outcome: Outcome, task: Task, record: Record, child: Child, planner: Planner) -> None:
    """Believe that a task is done only if its results are there."""
    if child.code:
        _fail(schedule, outcome, task, record, child.code, child.error)
        return
    try:
        study_id, results, whole = planner.look(task)
    except (RaydissectError, ValueError, RuntimeError, OSError) as error:
        _fail(schedule, outcome, task, record, FAILED, f"it ran, but what came of it cannot be looked up: {error}")
        return
    if not whole:
        _fail(
            schedule, outcome, task, record, FAILED,
            "it ran, but results are missing: the checkpoint or the data set changed meanwhile",
        )  # fmt: skip
        return
    done = {"outcome": "done", "study_id": study_id, "results": results, "exit_code": 0, "finished": datetime.now(UTC)}
    write_record(Store(schedule.store), task, record.model_copy(update=done))
    outcome.computed.append(task.name)
    logger.info("%s: done", task.name)


def _fail(schedule: Schedule, outcome: Outcome, task: Task, record: Record, code: int, error: str) -> None:
    now, error = datetime.now(UTC), shown(error)
    failed = {"outcome": "failed", "exit_code": code, "error": error, "finished": now}
    write_record(Store(schedule.store), task, record.model_copy(update=failed))
    outcome.failed[task.name] = error
    logger.error("%s: failed with exit code %d: %s", task.name, code, error)
    tell(schedule.on_failure, failure_body(schedule, code, error, task))


def failure_body(schedule: Schedule, code: int, error: str, task: Task | None = None) -> dict[str, Any]:
    """What a failure hook is told; without a task, it is the schedule that failed."""
    return {
        "schedule": schedule.name,
        "store": shown(schedule.store),
        "task": task and task.name,
        "task_id": task and task.task_id,
        "settings": task and [shown_word(word) for word in task.words],
        "exit_code": code,
        "error": error,
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def shown_word(word: str) -> str:
    """A setting without what may be secret in its value."""
    name, _, value = word.partition("=")
    return f"{name}={shown(value)}"


def _apply_retention(store: Store, schedule: Schedule, outcome: Outcome) -> Removed:
    """Remove what the schedule says; no task runs now."""
    keep = schedule.retention
    removed = retire(
        store,
        staging=keep.staging,
        older_than_days=keep.older_than_days,
        keep_newest=keep.keep_newest,
        grace_hours=keep.grace_hours,
    )
    if outcome.computed and removed.results:
        logger.info("retention removed %d results; they are not made again", len(removed.results))
    return removed

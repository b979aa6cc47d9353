"""What reprocessing remembers in the store: how each task ended, and which results retention removed."""

from datetime import UTC, datetime
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from pipeline.errors import StoreError
from pipeline.gc import Removed, collect
from pipeline.redact import shown
from pipeline.store import Store, to_json
from pipeline.tasks import Task
from pipeline.threads import at_once

TASKS = "reprocess/tasks"
RETIRED = "reprocess/retired"


class Record(BaseModel):
    """A task as it was found or done last: enough to tell, without reading a checkpoint, that nothing changed."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    task_id: str
    task: str
    outcome: Literal["running", "done", "failed"]
    checkpoint: str
    checkpoint_key: str | None
    file_sha256: str | None = None
    dataset_id: str | None
    environment: str
    study_id: str | None = None
    results: tuple[str, ...] = ()  # paths of manifests
    exit_code: int | None = None
    error: str | None = None
    started: datetime | None = None
    finished: datetime | None = None


def record_path(task: Task) -> str:
    return f"{TASKS}/{task.place}/{task.task_id}.json"


def read_records(store: Store, tasks: list[Task]) -> tuple[dict[str, Record], set[str]]:
    """The records of tasks by their ids, and the places of which there is any record."""
    there = set(store.list(TASKS))
    known = [task for task in tasks if record_path(task) in there]
    records = zip(known, at_once(lambda task: _read(store, record_path(task)), known), strict=True)
    return {task.task_id: record for task, record in records if record}, {path.split("/")[2] for path in there}


def write_record(store: Store, task: Task, record: Record) -> None:
    store.write(record_path(task), record.model_dump_json(indent=1).encode())


def new_record(task: Task, outcome: Literal["running", "done", "failed"], **found: Any) -> Record:
    return Record(
        task_id=task.task_id,
        task=task.name,
        checkpoint=shown(task.checkpoint),
        environment=task.environment,
        outcome=outcome,
        **found,
    )


def retired(store: Store) -> set[str]:
    """Paths of the manifests that retention removed."""
    return {path.removeprefix(f"{RETIRED}/") for path in store.list(RETIRED)}


def retire(store: Store, *, dry_run: bool = False, **policy: Any) -> Removed:
    """`gc.collect`, which leaves word of every result that goes by age or number, so that none is made again.

    The word comes first: a result that still exists counts as there, so one killed in between does no harm.
    """
    removed = collect(store, dry_run=True, **policy)
    if dry_run:
        return removed
    _leave_word(store, removed)
    removed = collect(store, **policy)
    _leave_word(store, removed)  # of those that were published in between
    return removed


def _leave_word(store: Store, removed: Removed) -> None:
    word = to_json({"removed": datetime.now(UTC).isoformat(timespec="seconds")})
    manifests = [path for path in removed.files if path.startswith("results/")]
    at_once(lambda path: store.create(f"{RETIRED}/{path}", word), manifests)


def _read(store: Store, path: str) -> Record | None:
    """None where it is no record that this version reads, which is then as if there were none."""
    try:
        return Record.model_validate_json(store.read(path))
    except ValidationError:
        return None
    except StoreError:
        if store.exists(path):
            raise
        return None

"""A run: from settings to published results, doing only what is missing."""

import json
import logging
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import pyarrow as pa
import torch

from pipeline.compose import RunSettings
from pipeline.errors import RaydissectError, StoreError
from pipeline.events import EventLog, OnEvent, outcome_of
from pipeline.executor import Executor
from pipeline.follow import follow
from pipeline.mend import altered_paths, find_altered, find_missing, forget
from pipeline.plan import Key, Plan, expand_stages, make_plan
from pipeline.redact import shown, shown_settings
from pipeline.resume import Resumed
from pipeline.runner import Outcome, Runner
from pipeline.settings import OnProgress
from pipeline.stage import Job, LayerJob, Stage
from pipeline.stages.evolution import Evolution
from pipeline.subject import Subject, prepare
from pipeline.views import write_views
from schemas import RUNS

logger = logging.getLogger("raydissect")

MOST_MENDS = 10
"""How often a run makes altered files again before it takes the store for broken; each time, all it has met are."""


def run(
    settings: RunSettings,
    executor: Executor,
    on_progress: OnProgress | None = None,
    *,
    verify: bool = False,
    resumed: Resumed | None = None,
) -> Outcome:
    """Do what the settings ask for, as far as it is not done yet.

    Args:
        settings: what to look at, how, and where to.
        executor: where shards are worked on; entered by the caller.
        on_progress: told about every shard.
        resumed: the run that this one goes on with; another study is refused.
        verify: read and hash every file of the results that are found done, and make again what is altered.

    Raises:
        SettingsError: the settings name something that is not there.
        RaydissectError: some shards failed; what is done is kept.
    """
    stages, wanted = settings.stages_by_name(), expand_stages(list(settings.stages))
    subject = prepare(settings, on_progress)
    if resumed is not None:
        resumed.check(subject.study)
    if Evolution.name in wanted:
        following = follow(settings, subject, stages, on_progress)
        stages = {**stages, Evolution.name: following.stage}
        if _is_evolution_missing(subject, wanted, stages):
            for place, (other, found) in enumerate(following.others):
                logger.info("checkpoint %d of %d: %s", place + 1, len(following.others), found.study.weights)
                dissect = expand_stages(list(other.stages))
                execute(other, found, dissect, stages, executor, on_progress, verify=verify, asked=(settings, subject))
    return execute(settings, subject, wanted, stages, executor, on_progress, verify=verify)


def _is_evolution_missing(subject: Subject, wanted: list[str], stages: dict[str, Stage]) -> bool:
    """Whether checkpoints must be dissected; if so, the run's own settings are looked at before.

    Raises:
        SettingsError: they do not fit a layer or the data set.
    """
    plan = make_plan(subject.store, subject.study, list(subject.layers), wanted, stages)
    if not any(stage == Evolution.name for stage, _ in plan.todo):
        return False
    bare = Job(subject.store, subject.study, subject.manifest, subject.model, subject.device, {})
    for stage in plan.stages:
        for name, layer in subject.layers.items():
            if (stage.name, name) in plan.todo:
                stage.check(layer, bare)
    return True


def execute(
    settings: RunSettings,
    subject: Subject,
    wanted: list[str],
    stages: dict[str, Stage],
    executor: Executor,
    on_progress: OnProgress | None = None,
    *,
    verify: bool = False,
    asked: tuple[RunSettings, Subject] | None = None,
) -> Outcome:
    """Run the missing stages and keep a record of it, however it ends.

    Args:
        asked: what to resume where this is only part of it, as a checkpoint's dissection is of an evolution.
    """
    started = datetime.now(UTC)
    run_id = f"{started:%Y%m%dT%H%M%S}-{secrets.token_hex(3)}"
    outcome = Outcome(run_id, subject.study.study_id, list(subject.layers))
    raised: BaseException | None = None
    try:
        subject.store.check_create_only()
        with EventLog(subject.store, run_id) as tell:
            tell("run_started", study_id=outcome.study_id, stages=wanted, layers=outcome.layers)
            subject.study.publish(subject.store)
            plan = partial(make_plan, subject.store, subject.study, outcome.layers, wanted, stages)
            work = _Work(asked or (settings, subject), subject, plan, executor, outcome, on_progress, tell)
            work.run(started, verify)
    except BaseException as error:
        raised = error
        raise
    finally:
        row = _run_row(settings, subject, outcome, started, raised)
        try:
            subject.store.write_table(
                f"tables/runs/{run_id}.parquet", RUNS.cast(pa.Table.from_pylist([row], RUNS.schema))
            )
            write_views(subject.store)
        except StoreError as unwritten:
            logger.error("the run's own record could not be written: %s", unwritten)
    return outcome


@dataclass(frozen=True)
class _Work:
    """A run's plan, and who works through it."""

    asked: tuple[RunSettings, Subject]
    subject: Subject
    plan: Callable[..., Plan]
    executor: Executor
    outcome: Outcome
    on_progress: OnProgress | None
    on_event: OnEvent

    def run(self, started: datetime, verify: bool) -> None:
        """Do what is missing; where stored files turn out altered, forget them and plan again."""
        look = find_altered if verify else find_missing
        withdrawn = self._forget(look(self.subject.store, self.plan().published.values()))
        for mends_left in reversed(range(MOST_MENDS + 1)):
            current = self.plan(again=withdrawn)
            _announce(self.asked, self.subject, current, self.outcome.run_id, started)
            self.outcome.found.clear()
            try:
                Runner(self.subject, current, self.executor, self.outcome, self.on_progress, self.on_event).run()
                return
            except RaydissectError as error:
                paths = altered_paths(error)
                if not paths or not mends_left:
                    raise
                logger.warning("%s", error)
                withdrawn |= self._forget(paths)

    def _forget(self, paths: list[str]) -> set[Key]:
        if paths:
            self.on_event("files_altered", paths=paths)
        return forget(self.subject.store, self.outcome.study_id, paths)


def _announce(asked: tuple[RunSettings, Subject], subject: Subject, plan: Plan, run_id: str, started: datetime) -> None:
    """Leave word of what is being worked on, for `status`, and from what, for `--resume`: the store alone tells it."""
    todo = []
    for stage in plan.stages:
        for layer in plan.layers:
            if (stage.name, layer) in plan.todo:
                result_id = plan.ids[stage.name, layer]
                jobs = {layer: LayerJob(subject.layers[layer], result_id, {})}
                job = Job(subject.store, subject.study, subject.manifest, subject.model, subject.device, jobs)
                shards = len(stage.shards(job))
                todo.append({"stage": stage.name, "layer": layer, "result_id": result_id, "shards": shards})
    word = {"run_id": run_id, "study_id": subject.study.study_id, "started": started.isoformat()}
    settings, whole = asked
    kept, withheld = shown_settings(settings.model_dump(mode="json"))
    origin = {"settings": kept, "withheld": withheld, "study": whole.study.model_dump(mode="json")}
    subject.store.write_json(f"runs/{run_id}.json", {**word, **origin, "todo": todo})


def _run_row(
    settings: RunSettings, subject: Subject, outcome: Outcome, started: datetime, raised: BaseException | None
) -> dict[str, Any]:
    versions = {name: _version(name) for name in ("raydissect", "torch", "torchvision", "ray", "pyarrow")}
    return {
        "run_id": outcome.run_id,
        "study_id": outcome.study_id,
        "settings": json.dumps(shown_settings(settings.model_dump(mode="json"))[0], ensure_ascii=False),
        "versions": json.dumps(versions, sort_keys=True),
        "device": torch.cuda.get_device_name()
        if subject.device == "cuda" and torch.cuda.is_available()
        else subject.device,
        "started": started,
        "finished": datetime.now(UTC),
        "seconds": json.dumps({name: round(value, 3) for name, value in outcome.seconds.items()}),
        "computed": outcome.computed,
        "found": outcome.found,
        "hardware": sorted(outcome.hardware),
        "outcome": outcome_of(raised),
        "error": shown(f"{type(raised).__name__}: {raised}") if isinstance(raised, Exception) else None,
    }


def _version(name: str) -> str | None:
    """None where the package is not installed: `cluster=inline` does without Ray."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None

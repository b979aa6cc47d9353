"""Works through a plan: stage by stage, all missing layers of a stage in one pass over the shards."""

import logging
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from time import perf_counter
from typing import Any

from pipeline.errors import StoreError
from pipeline.events import OnEvent, ignore
from pipeline.executor import Executor
from pipeline.plan import Key, Plan, is_staged
from pipeline.results import Result, find_result, staging_path
from pipeline.settings import OnProgress
from pipeline.stage import Job, LayerJob, Stage
from pipeline.stages.record import RecordAgain
from pipeline.stages.tails import SUPPLEMENT
from pipeline.subject import Subject
from workers.worker import Shard, ShardReport

logger = logging.getLogger("raydissect")


@dataclass
class Outcome:
    """What a run did."""

    run_id: str
    study_id: str
    layers: list[str]
    computed: list[str] = field(default_factory=list)
    found: list[str] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    hardware: set[str] = field(default_factory=set)


class Runner:
    """Works through a plan, stage by stage; all missing layers of a stage share each pass over the shards."""

    def __init__(
        self,
        subject: Subject,
        plan: Plan,
        executor: Executor,
        outcome: Outcome,
        on_progress: OnProgress | None,
        on_event: OnEvent = ignore,
    ) -> None:
        self._subject, self._plan, self._executor = subject, plan, executor
        self._outcome, self._on_progress, self._on_event = outcome, on_progress, on_event
        self._results: dict[Key, Result] = dict(plan.published)

    def run(self) -> None:
        """Do all there is to do.

        Raises:
            SettingsError: a stage's settings do not fit a layer or the data set; nothing has run.
            RaydissectError: some shards failed; what is done is kept.
        """
        bare = self._job({})
        for stage in self._plan.stages:
            for name, layer in self._subject.layers.items():
                if (stage.name, name) in self._plan.todo:
                    stage.check(layer, bare)
        for stage in self._plan.stages:
            todo = [layer for layer in self._plan.layers if (stage.name, layer) in self._plan.todo]
            self._outcome.found += [
                self._plan.ids[stage.name, layer]
                for layer in self._plan.layers
                if (stage.name, layer) in self._plan.published and layer not in todo
            ]
            if not todo:
                continue
            start = perf_counter()
            self._run_stage(stage, todo)
            self._outcome.seconds[stage.name] = perf_counter() - start
            logger.info("%s: %d layers in %.1f s", stage.name, len(todo), self._outcome.seconds[stage.name])

    def _run_stage(self, stage: Stage, layers: list[str]) -> None:
        jobs = {name: self._layer_job(stage, name) for name in layers}
        job = self._job(jobs)
        extra = stage.supplement(job)
        if extra is not None:
            supplement, short = extra
            results = self._run_supplement(supplement, short)
            jobs = {
                name: replace(layer, inputs={**layer.inputs, SUPPLEMENT: results[name]}) if name in short else layer
                for name, layer in jobs.items()
            }
            job = self._job(jobs)
        for name, result in self._make(stage, job).items():
            self._results[stage.name, name] = result

    def _run_supplement(self, stage: Stage, layers: list[str]) -> dict[str, Result]:
        """Run a stage that only came up on the way, as far as it is not done."""
        logger.info("%s: again for units whose bound was too high, layers %s", stage.name, ", ".join(layers))
        jobs = {name: self._layer_job(stage, name, planned=False) for name in layers}
        return self._make(stage, self._job(jobs))

    def _make(self, stage: Stage, job: Job) -> dict[str, Result]:
        """Map over the shards that lack a file, reduce every layer, and read the published results."""
        seconds = dict.fromkeys(job.layers, 0.0)
        stage.prepare(job)
        if shards := self._missing(stage, job):
            for report in self._dispatch(stage.name, partial(stage.build, job), shards):
                for layer in report.shard.layers:
                    seconds[layer] += report.seconds / len(report.shard.layers)
        layers = {name: replace(layer, seconds=seconds[name]) for name, layer in job.layers.items()}
        job = replace(job, layers=layers)
        reduces = [Shard(name, index, layers=(name,)) for index, name in enumerate(layers)]
        self._dispatch(f"{stage.name} reduce", partial(stage.build_reduce, job), reduces)
        results = {}
        for name, layer in layers.items():
            result = find_result(job.store, job.study.study_id, stage.name, name, layer.result_id)
            if result is None:
                raise StoreError(f"result {layer.result_id} of {stage.name} on {name} was written but cannot be found")
            results[name] = result
            self._outcome.computed.append(result.result_id)
            self._on_event("result_published", stage=stage.name, layer=name, result_id=result.result_id)
        return results

    def _missing(self, stage: Stage, job: Job) -> list[Shard]:
        """Shards of the map, each with the layers that lack a file of it."""
        there = {name: set(job.store.list(f"staging/{layer.result_id}")) for name, layer in job.layers.items()}
        missing = []
        for shard in stage.shards(job):
            layers = tuple(
                name
                for name in shard.layers
                if not there[name].issuperset(
                    staging_path(job.layers[name].result_id, file) for file in stage.files(shard)
                )
            )
            if layers:
                missing.append(replace(shard, layers=layers))
        return missing

    def _dispatch(self, title: str, build: Callable[[], Any], shards: list[Shard]) -> list[ShardReport]:
        done = 0

        def report(one: ShardReport) -> None:
            nonlocal done
            done += 1
            self._outcome.hardware.add(one.hardware)
            if self._on_progress:
                self._on_progress(title, done, len(shards))

        if self._on_progress:
            self._on_progress(title, 0, len(shards))
        self._on_event("stage_started", stage=title, shards=len(shards))
        start = perf_counter()
        reports = self._executor.run(build, shards, title=title, on_report=report, on_event=self._on_event)
        self._on_event("stage_done", stage=title, shards=len(shards), seconds=round(perf_counter() - start, 3))
        return reports

    def _job(self, layers: dict[str, LayerJob]) -> Job:
        s = self._subject
        return Job(s.store, s.study, s.manifest, s.model, s.device, layers, decode_threads=s.decode_threads)

    def _layer_job(self, stage: Stage, layer: str, planned: bool = True) -> LayerJob:
        inputs = {read: self._results[read, layer] for read in stage.reads()}
        if (thresholds := inputs.get("thresholds")) and SUPPLEMENT in thresholds.inputs:
            inputs[SUPPLEMENT] = self._supplement_of(thresholds)
        ids = {read: inputs[read].result_id for read in stage.reads()}
        identity = self._plan.ids[stage.name, layer] if planned else stage.result_id(layer, self._subject.study, ids)
        return LayerJob(self._subject.layers[layer], identity, stage.settings_of(layer), inputs)

    def _supplement_of(self, thresholds: Result) -> Result:
        """The second record that published thresholds were read from; its staging is made again if it is gone."""
        found = find_result(
            self._subject.store, thresholds.study_id, "record", thresholds.layer, thresholds.inputs[SUPPLEMENT]
        )
        if found is not None and is_staged(self._subject.store, found):
            return found
        if found is None:
            raise StoreError(f"result {thresholds.inputs[SUPPLEMENT]}, which {thresholds.path} was read from, is gone")
        units = {thresholds.layer: tuple(found.settings["units"])}
        records = {thresholds.layer: self._results["record", thresholds.layer]}
        stage = RecordAgain.of(self._subject.store, records, units)
        return self._run_supplement(stage, [thresholds.layer])[thresholds.layer]

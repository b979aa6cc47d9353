"""A run: from settings to published results, doing only what is missing."""

import hashlib
import json
import logging
import secrets
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from time import perf_counter
from typing import Any

import pyarrow as pa
import torch

from pipeline.compose import ModelSettings, RunSettings
from pipeline.datasets import load_manifest
from pipeline.errors import SettingsError, StoreError
from pipeline.executor import Executor
from pipeline.plan import Key, Plan, expand_stages, is_staged, make_plan
from pipeline.results import Result, find_result
from pipeline.settings import Cluster
from pipeline.stage import Job, Layer, LayerJob, Stage, read_anywhere
from pipeline.stages.record import Record
from pipeline.stages.tails import SUPPLEMENT
from pipeline.store import Store
from pipeline.study import Numerics, Study
from pipeline.train import EPOCHS, train
from pipeline.views import write_views
from schemas import RUNS, Manifest
from workers.models import ModelSpec, load
from workers.nn.layers import expand_layers, layer_table
from workers.weights import is_file
from workers.worker import Shard, ShardReport

logger = logging.getLogger("raydissect")

TRAINING_THREADS = 2  # part of what mininet's weights depend on, so the same on every machine

OnProgress = Callable[[str, int, int], None]
"""Called with a stage's name, shards done, shards in all."""


@dataclass(frozen=True)
class Subject:
    """What a run works on, found out before any shard is touched."""

    store: Store
    study: Study
    manifest: Manifest
    model: ModelSpec
    device: str
    layers: dict[str, Layer]


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


def run(settings: RunSettings, executor: Executor, on_progress: OnProgress | None = None) -> Outcome:
    """Do what the settings ask for, as far as it is not done yet.

    Args:
        settings: what to look at, how, and where to.
        executor: where shards are worked on; entered by the caller.
        on_progress: told about every shard.

    Raises:
        SettingsError: the settings name something that is not there.
        RaydissectError: some shards failed; what is done is kept.
    """
    stages, wanted = settings.stages_by_name(), expand_stages(list(settings.stages))
    subject = prepare(settings)
    return execute(settings, subject, wanted, stages, executor, on_progress)


def prepare(settings: RunSettings) -> Subject:
    """Find the data set, load the network once, measure its layers, and name the study."""
    store = Store(settings.store)
    manifest = load_manifest(store, settings.data.dataset_name)
    spec = model_spec(settings, store, manifest)
    device = resolve_device(settings.cluster)
    loaded = load(spec, read_anywhere(store))
    size = loaded.preprocessing
    shape = (3, size.height, size.width)
    names = expand_layers(loaded.module, settings.layers, shape)
    rows = layer_table(loaded.module, names, shape)
    layers = {row.name: Layer(row.name, row.channels, row.height, row.width, row.receptive_field) for row in rows}
    study = Study(
        model=spec.name,
        weights=settings.model.weights.rpartition("/")[2],
        weights_sha256=loaded.weights_sha256,
        preprocessing=asdict(size),
        dataset_id=manifest.dataset_id,
        images_id=manifest.images_id,
        dataset=manifest.name,
        num_images=manifest.num_images,
        numerics=Numerics.here(device, settings.cluster.threads, manifest.batch_size),
    )
    return Subject(store, study, manifest, spec, device, layers)


def model_spec(settings: RunSettings, store: Store, manifest: Manifest) -> ModelSpec:
    """The network to load; own weights are copied into the store, where every worker finds them.

    Raises:
        SettingsError: the weights have another sha256 than the settings say.
    """
    model, weights = settings.model, settings.model.weights
    if weights == "trained":
        weights = "store:" + trained_weights(model, store, manifest)
    elif is_file(weights):
        try:
            data = read_anywhere(store)(weights)
        except StoreError as error:
            raise SettingsError(f"model.weights: {error}") from error
        sha256 = hashlib.sha256(data).hexdigest()
        if model.sha256 and sha256 != model.sha256.lower():
            raise SettingsError(f"{weights} has sha256 {sha256}, model.sha256 is {model.sha256}")
        given = ModelSpec(name=model.name, weights=weights, num_classes=model.num_classes)
        load(given, lambda _: data)  # names the file as it was given, and before it is in the store, where it is wrong
        path = f"weights/{sha256[:16]}.{weights.partition('?')[0].rpartition('.')[2]}"
        store.create(path, data)
        weights = f"store:{path}"
    return ModelSpec(name=model.name, weights=weights, seed=model.seed, num_classes=model.num_classes)


def trained_weights(model: ModelSettings, store: Store, manifest: Manifest) -> str:
    """Where the demo's network lies that was trained on this data set; it is trained if it does not yet.

    Raises:
        SettingsError: another network was asked for.
    """
    if model.name != "mininet":
        raise SettingsError(f"model.weights=trained is for mininet, not {model.name}: give a file, DEFAULT or random")
    epochs = model.epochs or EPOCHS
    return train(store, manifest, epochs=epochs, seed=model.seed, threads=TRAINING_THREADS).path


def resolve_device(cluster: Cluster) -> str:
    """cpu or cuda; `auto` takes the GPU that workers ask for, or in this process the one there is."""
    if cluster.device != "auto":
        return cluster.device
    on_gpu = cluster.gpus_per_worker > 0 or (cluster.executor == "inline" and torch.cuda.is_available())
    return "cuda" if on_gpu else "cpu"


def execute(
    settings: RunSettings,
    subject: Subject,
    wanted: list[str],
    stages: dict[str, Stage],
    executor: Executor,
    on_progress: OnProgress | None = None,
) -> Outcome:
    """Run the missing stages and keep a record of it, however it ends."""
    started = datetime.now(UTC)
    run_id = f"{started:%Y%m%dT%H%M%S}-{secrets.token_hex(3)}"
    outcome = Outcome(run_id, subject.study.study_id, list(subject.layers))
    ended, error = "failed", None
    try:
        subject.study.publish(subject.store)
        plan = make_plan(subject.store, subject.study, list(subject.layers), wanted, stages)
        _announce(subject, plan, run_id, started)
        Runner(subject, plan, executor, outcome, on_progress).run()
        ended = "done"
    except KeyboardInterrupt:
        ended = "interrupted"
        raise
    except Exception as raised:
        error = f"{type(raised).__name__}: {raised}"
        raise
    finally:
        row = _run_row(settings, subject, outcome, started, ended, error)
        try:
            subject.store.write_table(
                f"tables/runs/{run_id}.parquet", RUNS.cast(pa.Table.from_pylist([row], RUNS.schema))
            )
            write_views(subject.store)
        except StoreError as unwritten:
            logger.error("the run's own record could not be written: %s", unwritten)
    return outcome


class Runner:
    """Works through a plan, stage by stage; all missing layers of a stage share each pass over the shards."""

    def __init__(
        self, subject: Subject, plan: Plan, executor: Executor, outcome: Outcome, on_progress: OnProgress | None
    ) -> None:
        self._subject, self._plan, self._executor = subject, plan, executor
        self._outcome, self._on_progress = outcome, on_progress
        self._results: dict[Key, Result] = dict(plan.published)

    def run(self) -> None:
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
        return results

    def _missing(self, stage: Stage, job: Job) -> list[Shard]:
        """Shards of the map, each with the layers whose file is not there."""
        there = {name: set(job.store.list(f"staging/{layer.result_id}")) for name, layer in job.layers.items()}
        missing = []
        for shard in stage.shards(job):
            layers = tuple(
                name
                for name, layer in job.layers.items()
                if f"staging/{layer.result_id}/{stage.marker(shard)}" not in there[name]
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
        return self._executor.run(build, shards, title=title, on_report=report)

    def _job(self, layers: dict[str, LayerJob]) -> Job:
        s = self._subject
        return Job(s.store, s.study, s.manifest, s.model, s.device, layers)

    def _layer_job(self, stage: Stage, layer: str, planned: bool = True) -> LayerJob:
        inputs = {read: self._results[read, layer] for read in stage.inputs}
        if (thresholds := inputs.get("thresholds")) and SUPPLEMENT in thresholds.inputs:
            inputs[SUPPLEMENT] = self._supplement_of(thresholds)
        ids = {read: inputs[read].result_id for read in stage.inputs}
        identity = self._plan.ids[stage.name, layer] if planned else stage.result_id(layer, self._subject.study, ids)
        return LayerJob(self._subject.layers[layer], identity, stage.settings_of(layer), inputs)

    def _supplement_of(self, thresholds: Result) -> Result:
        """The second record that published thresholds were read from; its staging is made again if it is gone."""
        found = find_result(
            self._subject.store, thresholds.study_id, "record", thresholds.layer, thresholds.inputs[SUPPLEMENT]
        )
        if found is not None and is_staged(self._subject.store, found):
            return found
        record = self._results["record", thresholds.layer]
        if found is None:
            raise StoreError(f"result {thresholds.inputs[SUPPLEMENT]}, which {thresholds.path} was read from, is gone")
        stage = Record(
            top_images=record.settings["top_images"], units={thresholds.layer: tuple(found.settings["units"])}
        )
        return self._run_supplement(stage, [thresholds.layer])[thresholds.layer]


def _announce(subject: Subject, plan: Plan, run_id: str, started: datetime) -> None:
    """Leave word of what is being worked on, so that `status` can tell from the store alone."""
    job = Job(subject.store, subject.study, subject.manifest, subject.model, subject.device, {})
    todo = [
        {
            "stage": stage.name,
            "layer": layer,
            "result_id": plan.ids[stage.name, layer],
            "shards": len(stage.shards(job)),
        }
        for stage in plan.stages
        for layer in plan.layers
        if (stage.name, layer) in plan.todo
    ]
    word = {"run_id": run_id, "study_id": subject.study.study_id, "started": started.isoformat()}
    subject.store.write_json(f"runs/{run_id}.json", {**word, "todo": todo})


def _run_row(
    settings: RunSettings, subject: Subject, outcome: Outcome, started: datetime, ended: str, error: str | None
) -> dict[str, Any]:
    versions = {name: version(name) for name in ("raydissect", "torch", "torchvision", "ray", "pyarrow")}
    return {
        "run_id": outcome.run_id,
        "study_id": outcome.study_id,
        "settings": settings.model_dump_json(),
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
        "outcome": ended,
        "error": error,
    }

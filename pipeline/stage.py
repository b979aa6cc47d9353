"""A stage: settings, how to cut the work into shards, how to build the worker.

A stage that maps over the data set has shards of it; each worker writes, for every shard and layer,
files under `staging/<result_id>/`, the last of which marks the shard done. Then one reduce shard a
layer turns these, or the results the stage reads, into tables and publishes them.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from typing import Any, ClassVar, TypeVar

import pyarrow as pa
from pydantic import ConfigDict

from pipeline.errors import AlteredError
from pipeline.results import Result, publish, result_id, staging_path
from pipeline.sealed import gone_is_altered, read_sealed, seal
from pipeline.settings import Settings
from pipeline.store import Store, StoredFile, to_json
from pipeline.study import Study
from pipeline.threads import at_once, read_ahead
from schemas import CONCEPTS, Manifest
from workers.models import LoadedModel, ModelSpec, load_once
from workers.nn.receptive_field import ReceptiveField
from workers.worker import Shard, Worker

Made = TypeVar("Made")


@dataclass(frozen=True)
class Layer:
    """A layer as the driver found it: its size, and what lies under its grid."""

    name: str
    num_units: int
    height: int
    width: int
    field: ReceptiveField | None = None

    @property
    def cells(self) -> int:
        return self.height * self.width


@dataclass(frozen=True)
class LayerJob:
    """One layer of a job: the result to make, and the results to make it from."""

    layer: Layer
    result_id: str
    settings: dict[str, Any]
    inputs: dict[str, Result] = field(default_factory=dict)
    seconds: float = 0.0  # of the map shards, known once they are done


@dataclass(frozen=True)
class Job:
    """One stage on some layers of a study: what travels to a worker. No model, no tensor."""

    store: Store
    study: Study
    manifest: Manifest
    model: ModelSpec
    device: str
    layers: dict[str, LayerJob]
    seed: int = 0
    decode_threads: int = 1  # has no say in what is decoded

    def load_model(self) -> LoadedModel:
        """The network, as the study runs it; its weights are checked against the study's. Not to be changed."""
        study, numerics = self.study, self.study.numerics
        loaded = load_once(self.model, read_anywhere(self.store), self.store.url, study.weights_sha256)
        if loaded.weights_sha256 != study.weights_sha256:
            raise ValueError(
                f"the weights of {self.model.name} have changed since the run began: "
                f"{loaded.weights_sha256[:12]} here, {study.weights_sha256[:12]} in the study"
            )
        return loaded.on(self.device, numerics.precision, numerics.memory_format)

    @cached_property
    def concepts(self) -> pa.Table:
        return self.store.read_table(self.manifest.files[CONCEPTS.name])

    @property
    def shards(self) -> list[Shard]:
        """The data set's shards, for all layers of the job."""
        return [
            Shard(f"{index:06d}", index, entry.path, entry.rows, entry.first_image, tuple(self.layers))
            for index, entry in enumerate(self.manifest.shards)
        ]


def read_anywhere(store: Store) -> Callable[[str], bytes]:
    """Reads a file by URL, or by its path in the store."""

    def read(path: str) -> bytes:
        folder, _, name = path.rpartition("/")
        if path.startswith("store:"):
            return store.read(path.removeprefix("store:"))
        return Store(folder or ("/" if path.startswith("/") else ".")).read(name)

    return read


class Stage(Settings):
    """What every stage is: its fields are its settings, and its settings are hashed into its results."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: ClassVar[str]
    version: ClassVar[int] = 1  # raised when the meaning of the result changes
    inputs: ClassVar[tuple[str, ...]] = ()
    hangs_on_images: ClassVar[bool] = False  # whether labels have no say: such staging outlives new labels

    def settings_of(self, layer: str) -> dict[str, Any]:
        """What is hashed for one layer."""
        return self.model_dump(mode="json")

    def result_id(self, layer: str, study: Study, inputs: dict[str, str]) -> str:
        """The id of this stage's result on a layer, given the ids of what it reads."""
        scope = study.forward_id if self.hangs_on_images else study.study_id
        return result_id(self.name, self.version, self.settings_of(layer), layer, scope, inputs)

    def reads(self) -> tuple[str, ...]:
        """Those of `inputs` whose results on the same layer are read, with these settings."""
        return self.inputs

    def check(self, layer: Layer, job: "Job") -> None:
        """Look at the settings before anything runs; the job has no layers yet.

        Raises:
            SettingsError: they do not fit the layer, the network or the data set.
        """

    def supplement(self, job: Job) -> "tuple[Stage, list[str]] | None":
        """Another stage that must run first, and on which layers; known only from the job's inputs."""
        return None

    def prepare(self, job: Job) -> None:
        """Settle, on the driver, what all workers of the map must agree on."""

    def shards(self, job: Job) -> list[Shard]:
        """Shards of the map, each with its layers, before those that are done are left out; none for a mere reduce."""
        return []

    def marker(self, shard: Shard) -> str:
        """The file under `staging/<result_id>/` that is written last for a shard."""
        return f"{shard.name}.arrow"

    def files(self, shard: Shard) -> tuple[str, ...]:
        """All files under `staging/<result_id>/` that are there once a shard is done."""
        return (self.marker(shard),)

    def build(self, job: Job) -> Worker:
        """The worker of the map."""
        raise TypeError(f"stage {self.name} has no map")

    def reduce(self, job: Job, layer: LayerJob) -> "Reduced":
        """Turn what was staged, or the inputs, into the layer's tables."""
        raise TypeError(f"stage {self.name} has no reduce")

    def build_reduce(self, job: Job) -> Worker:
        """The worker that reduces one layer a shard and publishes its result."""

        def read(shard: Shard) -> LayerJob:
            return job.layers[shard.layers[0]]

        def write(shard: Shard, reduced: Reduced) -> int:
            layer = job.layers[shard.layers[0]]
            result = Result(
                result_id=layer.result_id,
                study_id=job.study.study_id,
                stage=self.name,
                version=self.version,
                layer=layer.layer.name,
                settings=layer.settings,
                inputs={name: result.result_id for name, result in sorted(layer.inputs.items())},
                tables={},
                staging=reduced.staging,
                seconds=layer.seconds,
                finished=datetime.now(UTC),
            )
            publish(job.store, result, reduced.tables)
            return sum(table.nbytes for table in reduced.tables.values())

        return Worker(read, lambda layer: self.reduce(job, layer), write, alone=False)


@dataclass(frozen=True)
class Reduced:
    """What a reduce makes: rows by table name, and the staging files later stages may read."""

    tables: dict[str, pa.Table]
    staging: list[StoredFile] = field(default_factory=list)


def stage_table(store: Store, result_id: str, name: str, table: pa.Table) -> StoredFile:
    """Write one staging file, sealed: see `pipeline.sealed`."""
    return seal(table).write(store, staging_path(result_id, name))


def stage_once(store: Store, result_id: str, name: str, value: Any) -> StoredFile:
    """Write what may come out otherwise another time, as JSON, unless it is there: of two runs, both name the same."""
    path = staging_path(result_id, name)
    store.create(path, to_json(value))
    data = store.read(path)
    return StoredFile(path, hashlib.sha256(data).hexdigest(), 1, len(data))


def read_once(store: Store, result_id: str, name: str, parse: Callable[[Any], Made]) -> Made:
    """What `stage_once` has written, as `parse` understands it.

    Raises:
        AlteredError: it is gone, or not to be understood.
    """
    path = staging_path(result_id, name)
    with gone_is_altered(store, path):
        data = store.read(path)
    try:
        return parse(json.loads(data))
    except (ValueError, TypeError, LookupError) as error:
        raise AlteredError(path, store.location(path), str(error)) from error


def stage_writer(job: Job) -> Callable[[Shard, dict[str, pa.Table]], int]:
    """Writes a shard's tables, one a layer, each of which marks the shard done for its layer."""

    def write(shard: Shard, tables: dict[str, pa.Table]) -> int:
        def write_layer(layer: str) -> int:
            return stage_table(job.store, job.layers[layer].result_id, f"{shard.name}.arrow", tables[layer]).bytes

        return sum(at_once(write_layer, tables))

    return write


def staged_tables(
    store: Store, result_id: str, shards: Iterable[Shard], suffix: str, columns: list[str] | None = None
) -> Iterator[tuple[Shard, StoredFile, pa.Table]]:
    """The staging files of shards one by one, in order, with the hash of what was read.

    Files are read ahead, so that a store that answers late costs its delay once in `READ_AHEAD` files; no more
    than these and the one that the caller holds are in memory.

    Args:
        columns: the columns to decode; all without it.

    Raises:
        AlteredError: a file is gone, or is not what was written.
        StoreError: a file cannot be read.
    """
    yield from read_ahead(lambda shard: read_staged(store, result_id, shard, suffix, columns), shards)


def read_staged(
    store: Store, result_id: str, shard: Shard, suffix: str, columns: list[str] | None = None
) -> tuple[Shard, StoredFile, pa.Table]:
    """One of `staged_tables`."""
    return shard, *read_sealed(store, staging_path(result_id, f"{shard.name}.{suffix}"), columns)

"""Record: one forward pass that keeps the tail maps of all asked layers."""

import hashlib
import io
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import torch
from pydantic import Field
from torch import Tensor

from pipeline.columns import to_tensor
from pipeline.results import staging_path
from pipeline.stage import Job, LayerJob, Reduced, Stage, stage_table
from pipeline.stages.forward import Pictures, picture_reader, record_layers
from pipeline.store import StoredFile
from schemas.staging import TOP_IMAGES, UNIT_STATISTICS, tail_maps
from workers.methods.tail_maps import TailMaps, UnitStatistics, cut_tail
from workers.worker import Shard, Worker


class Record(Stage):
    """Tail maps, unit statistics and top images of every layer, shard by shard."""

    name: ClassVar[str] = "record"
    inputs: ClassVar[tuple[str, ...]] = ("pilot",)
    hangs_on_images: ClassVar[bool] = True

    top_images: int = Field(100, ge=1)  # kept a unit, for exemplars

    def shards(self, job: Job) -> list[Shard]:
        return job.shards

    def marker(self, shard: Shard) -> str:
        return f"{shard.name}.maps.arrow"

    def build(self, job: Job) -> Worker:
        model = job.load_model()
        bounds = {name: self.bounds(job, layer).to(job.device) for name, layer in job.layers.items()}

        @torch.inference_mode()
        def compute(pictures: Pictures) -> dict[str, "_Recorded"]:
            recorded = {layer: _Recorded(bounds[layer].cpu()) for layer in pictures.shard.layers}

            def cut(layer: str, start: int, activation: Tensor) -> None:
                tail, statistics = cut_tail(activation, bounds[layer])
                recorded[layer].add(tail, statistics, pictures.image_ids[start : start + len(activation)])

            record_layers(job, model, pictures, cut)
            return recorded

        def write(shard: Shard, recorded: dict[str, "_Recorded"]) -> int:
            return sum(part.write(job, job.layers[layer], shard) for layer, part in recorded.items())

        return Worker(picture_reader(job, model), compute, write)

    def reduce(self, job: Job, layer: LayerJob) -> Reduced:
        total = UnitStatistics.none(layer.layer.num_units)
        bound, staging, tops = None, [], []
        for shard in self.shards(job):
            path = staging_path(layer.result_id, f"{shard.name}.units.arrow")
            data = job.store.read(path)
            table = pa.ipc.open_file(data).read_all()
            staging.append(StoredFile(path, hashlib.sha256(data).hexdigest(), len(table), len(data)))
            staging.append(_maps_file(layer.result_id, shard, table))
            bound = table["bound"]
            total += _statistics(table)
            maps = job.store.read_table(staging[-1].path, ["image_id", "unit", "max"])
            tops = [_top_images([*tops, maps], self.top_images)]
        rows = {"unit": range(layer.layer.num_units), "bound": bound, **_columns(total)}
        staging.append(stage_table(job.store, layer.result_id, "units.arrow", UNIT_STATISTICS.cast(pa.table(rows))))
        staging.append(stage_table(job.store, layer.result_id, "top_images.arrow", TOP_IMAGES.cast(tops[0])))
        return Reduced(self.tables(job, layer), staging)

    def bounds(self, job: Job, layer: LayerJob) -> Tensor:
        """Every unit's bound: maps whose maximum exceeds it are kept."""
        table = job.store.read_table(staging_path(layer.inputs["pilot"].result_id, "bounds.arrow"))
        return to_tensor(table, "bound")

    def tables(self, job: Job, layer: LayerJob) -> dict[str, pa.Table]:
        """What a record publishes."""
        return {"layers": _layer_row(job, layer)}


class RecordAgain(Record):
    """All maps of the few units whose bound was too high, and nothing of the others; made by `thresholds`."""

    units: dict[str, tuple[int, ...]]  # by layer

    def settings_of(self, layer: str) -> dict[str, Any]:
        return {"top_images": self.top_images, "units": self.units[layer]}

    def bounds(self, job: Job, layer: LayerJob) -> Tensor:
        bounds = torch.full((layer.layer.num_units,), torch.inf)
        bounds[list(self.units[layer.layer.name])] = -torch.inf
        return bounds

    def tables(self, job: Job, layer: LayerJob) -> dict[str, pa.Table]:
        return {}


@dataclass
class _Recorded:
    """What one shard leaves of one layer."""

    bound: Tensor

    def __post_init__(self) -> None:
        self.statistics = UnitStatistics.none(len(self.bound))
        self.tails: list[TailMaps] = []
        self.images: list[np.ndarray] = []

    def add(self, tail: TailMaps, statistics: UnitStatistics, image_ids: list[int]) -> None:
        self.statistics += statistics
        self.tails.append(tail)
        self.images.append(np.asarray(image_ids, dtype=np.int64)[tail.image.numpy()])

    def write(self, job: Job, layer: LayerJob, shard: Shard) -> int:
        """Write the statistics, which name the maps' hash, then the maps, whose presence marks the shard done."""
        cells = torch.cat([tail.map for tail in self.tails])  # map cell
        schema = tail_maps(cells.shape[1]).schema
        maps = pa.table(
            [
                np.concatenate(self.images),
                torch.cat([tail.unit for tail in self.tails]).int().numpy(),
                torch.cat([tail.max for tail in self.tails]).numpy(),
                pa.FixedSizeListArray.from_arrays(pa.array(cells.flatten().numpy()), cells.shape[1]),
            ],
            schema=schema,
        )
        data = to_arrow_file(maps)
        rows = {"unit": range(len(self.bound)), "bound": self.bound.numpy(), **_columns(self.statistics)}
        named = UNIT_STATISTICS.cast(
            pa.table(rows),
            maps_sha256=hashlib.sha256(data).hexdigest(),
            maps_rows=str(len(maps)),
            maps_bytes=str(len(data)),
        )
        file = stage_table(job.store, layer.result_id, f"{shard.name}.units.arrow", named)
        job.store.write(staging_path(layer.result_id, f"{shard.name}.maps.arrow"), data)
        return file.bytes + len(data)


def to_arrow_file(table: pa.Table) -> bytes:
    buffer = io.BytesIO()
    with pa.ipc.new_file(buffer, table.schema, options=pa.ipc.IpcWriteOptions(compression="lz4")) as writer:
        writer.write_table(table)
    return buffer.getvalue()


def _maps_file(result_id: str, shard: Shard, statistics: pa.Table) -> StoredFile:
    said = {key.decode(): value.decode() for key, value in statistics.schema.metadata.items()}
    path = staging_path(result_id, f"{shard.name}.maps.arrow")
    return StoredFile(path, said["maps_sha256"], int(said["maps_rows"]), int(said["maps_bytes"]))


def _columns(statistics: UnitStatistics) -> dict[str, np.ndarray]:
    return {name: getattr(statistics, name).numpy() for name in ("num_above", "num_at", "max", "min", "sum")}


def _statistics(table: pa.Table) -> UnitStatistics:
    return UnitStatistics(*(to_tensor(table, name) for name in ("num_above", "num_at", "max", "min", "sum")))


def _top_images(parts: list[pa.Table], count: int) -> pa.Table:
    """The `count` largest maxima of every unit, ties to the lowest image_id."""
    merged = pa.concat_tables([part.select(["unit", "image_id", "max"]) for part in parts])
    order = [("unit", "ascending"), ("max", "descending"), ("image_id", "ascending")]
    merged = merged.sort_by(order)
    units = merged["unit"].to_numpy()
    first = np.searchsorted(units, units)  # where each row's unit begins
    return merged.filter(pa.array(np.arange(len(units)) - first < count))


def _layer_row(job: Job, layer: LayerJob) -> pa.Table:
    found, field = layer.layer, layer.layer.field
    names = ("stride_y", "stride_x", "offset_y", "offset_x", "field_y", "field_x")
    row = {
        "num_units": found.num_units,
        "height": found.height,
        "width": found.width,
        "num_images": job.manifest.num_images,
        **{name: getattr(field, name, None) for name in names},
    }
    return pa.Table.from_pylist([row])

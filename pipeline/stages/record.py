"""Record: one forward pass that keeps the tail maps of all asked layers."""

import hashlib
import logging
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import torch
from pydantic import Field
from torch import Tensor

from pipeline.columns import to_tensor
from pipeline.errors import AlteredError
from pipeline.passes import GIB, KEPT_PER_CELL_ABOVE, Choice, Estimate, Passes, choose
from pipeline.results import Result, staging_path
from pipeline.sealed import read_sealed, read_some, seal
from pipeline.stage import Job, LayerJob, Reduced, Stage, read_once, read_staged, stage_once, stage_table
from pipeline.stages.activations import ActivationSource, KeptActivations, forget_activations
from pipeline.stages.forward import Pictures
from pipeline.stages.pilot import read_seconds
from pipeline.store import Store, StoredFile
from pipeline.threads import at_once, read_ahead
from schemas.staging import TAIL_CELLS, TOP_IMAGES, UNIT_STATISTICS, tail_maps
from workers.methods.tail_maps import Cut, SparseMaps, TailCells, UnitStatistics, concatenate, cut_tail
from workers.worker import Shard, Worker

logger = logging.getLogger("raydissect")

PASSES_FILE = "passes.json"

_MAXIMA = ["image_id", "unit", "max"]  # columns of the tail maps that a reduce reads without the maps

MOST_TOP_ROWS = 2**16
"""Candidates for top images that are held before all but the top ones are dropped."""


class Record(Stage):
    """Tail maps, tail cells, unit statistics and top images of every layer, shard by shard."""

    name: ClassVar[str] = "record"
    version: ClassVar[int] = 2
    inputs: ClassVar[tuple[str, ...]] = ("pilot",)
    hangs_on_images: ClassVar[bool] = True

    top_images: int = Field(100, ge=1)  # kept a unit, for exemplars
    passes: Passes = "auto"  # one keeps tail maps, two makes them again; tables are the same
    staging_gib: float = Field(default=200, ge=0)  # of tail maps that auto may keep

    def settings_of(self, layer: str) -> dict[str, Any]:
        return {"top_images": self.top_images}

    def shards(self, job: Job) -> list[Shard]:
        return job.shards

    def marker(self, shard: Shard) -> str:
        return f"{shard.name}.maps.arrow"

    def files(self, shard: Shard) -> tuple[str, ...]:
        return tuple(f"{shard.name}.{kind}.arrow" for kind in ("cells", "units", "maps"))

    def prepare(self, job: Job) -> None:
        """Settle whether tail maps are kept; what an earlier run began with stays."""
        for name, choice in self.choices(job).items():
            result_id = job.layers[name].result_id
            stage_once(job.store, result_id, PASSES_FILE, (_begun_with(job.store, result_id) or choice).to_json())
            choice = read_choice(job.store, result_id)
            logger.info("record: layer %s: passes=%s: %s", name, choice.passes, choice.reason)

    def choices(self, job: Job) -> dict[str, Choice]:
        """One pass or two, for every layer."""
        return choose([estimate(job, layer) for layer in job.layers.values()], self.passes, self.staging_gib * GIB)

    def build(self, job: Job) -> Worker:
        bounds = {name: self.bounds(job, layer).to(job.device) for name, layer in job.layers.items()}
        keeps = {name: read_choice(job.store, layer.result_id).passes == "one" for name, layer in job.layers.items()}
        source = ActivationSource(job)

        @torch.inference_mode()
        def compute(pictures: Pictures | KeptActivations) -> dict[str, "_Recorded"]:
            recorded = {layer: _Recorded(bounds[layer].cpu(), keeps[layer]) for layer in pictures.shard.layers}

            def cut(layer: str, start: int, activation: Tensor) -> None:
                ids = pictures.image_ids[start : start + len(activation)]
                recorded[layer].add(cut_tail(activation, bounds[layer], keeps[layer]), ids)

            source.each(pictures, cut)
            return recorded

        def write(shard: Shard, recorded: dict[str, "_Recorded"]) -> int:
            return sum(at_once(lambda layer: recorded[layer].write(job, job.layers[layer], shard), recorded))

        return Worker(source.read, compute, write)

    def reduce(self, job: Job, layer: LayerJob) -> Reduced:
        total = UnitStatistics.none(layer.layer.num_units)
        bound, staging, tops = None, [], _TopImages(self.top_images)

        def read(shard: Shard) -> tuple[Shard, StoredFile, pa.Table, pa.Table]:
            path = staging_path(layer.result_id, self.marker(shard))
            maxima = read_some(job.store, path, _MAXIMA)
            statistics = read_staged(job.store, layer.result_id, shard, "units.arrow")
            if hash_columns(maxima) != statistics[2].schema.metadata[b"maxima_sha256"].decode():
                raise AlteredError(path, job.store.location(path), "its maxima are not those that were written")
            return *statistics, maxima

        for shard, file, table, maxima in read_ahead(read, self.shards(job)):
            staging += [file, *_named_files(layer.result_id, shard, table)]
            bound = table["bound"]
            total += _statistics(table)
            tops.add(maxima)
        rows = {"unit": range(layer.layer.num_units), "bound": bound, **_columns(total)}
        staging.append(stage_table(job.store, layer.result_id, "units.arrow", UNIT_STATISTICS.cast(pa.table(rows))))
        staging.append(stage_table(job.store, layer.result_id, "top_images.arrow", TOP_IMAGES.cast(tops.table())))
        choice = read_choice(job.store, layer.result_id)
        staging.append(stage_once(job.store, layer.result_id, PASSES_FILE, choice.to_json()))
        forget_activations(job, layer)
        return Reduced(self.tables(job, layer), staging)

    def bounds(self, job: Job, layer: LayerJob) -> Tensor:
        """Every unit's bound: maps whose maximum exceeds it are kept."""
        return to_tensor(_read_bounds(job, layer), "bound")

    def tables(self, job: Job, layer: LayerJob) -> dict[str, pa.Table]:
        """What a record publishes."""
        return {"layers": _layer_row(job, layer)}


class RecordAgain(Record):
    """The few units whose bound was too high, without a bound, and nothing of the others; made by `thresholds`."""

    units: dict[str, tuple[int, ...]]  # by layer
    keep: tuple[str, ...]  # layers whose maps are kept, as the first record's were

    @classmethod
    def of(cls, store: Store, records: dict[str, Result], units: dict[str, tuple[int, ...]]) -> "RecordAgain":
        """Record units again, in the way of the records that fell short, by layer."""
        keep = [name for name in units if read_choice(store, records[name].result_id).passes == "one"]
        top_images = max(records[name].settings["top_images"] for name in units)
        return cls(top_images=top_images, units=units, keep=tuple(keep))

    def settings_of(self, layer: str) -> dict[str, Any]:
        return {"top_images": self.top_images, "units": self.units[layer]}

    def choices(self, job: Job) -> dict[str, Choice]:
        reason = "as when these units' bound was still too high"
        return {name: Choice("one" if name in self.keep else "two", reason) for name in job.layers}

    def bounds(self, job: Job, layer: LayerJob) -> Tensor:
        bounds = torch.full((layer.layer.num_units,), torch.inf)
        bounds[list(self.units[layer.layer.name])] = -torch.inf
        return bounds

    def tables(self, job: Job, layer: LayerJob) -> dict[str, pa.Table]:
        return {}


def read_choice(store: Store, result_id: str) -> Choice:
    """Whether a record keeps its tail maps: settled before its first shard."""
    return read_once(store, result_id, PASSES_FILE, lambda found: Choice(**found))


def _begun_with(store: Store, result_id: str) -> Choice | None:
    """The choice that shards were recorded by, where its file is lost; None where it is not, or there are none."""
    there = store.list(f"staging/{result_id}")
    maps = [path for path in there if path.endswith(".maps.arrow")]
    if not maps or staging_path(result_id, PASSES_FILE) in there:
        return None
    kept = "kept" in read_sealed(store, maps[0])[1].column_names
    return Choice("one" if kept else "two", "as the shards that are there were recorded")


def _read_bounds(job: Job, layer: LayerJob) -> pa.Table:
    return read_sealed(job.store, staging_path(layer.inputs["pilot"].result_id, "bounds.arrow"))[1]


def estimate(job: Job, layer: LayerJob) -> Estimate:
    """What a layer costs, from what the pilot saw: a bit for every cell of a tail map, a float for those kept."""
    bounds = _read_bounds(job, layer)
    metadata = bounds.schema.metadata
    images, found = job.manifest.num_images, layer.layer
    cells = images / int(metadata[b"images"]) * int(bounds["active"].to_numpy().sum()) * found.cells  # of tail maps
    above = layer.inputs["pilot"].settings["tail_quantile"] * images * found.num_units * found.cells
    size = cells / 8 + 4 * min(cells, KEPT_PER_CELL_ABOVE * above)
    return Estimate(found.name, round(size), images * read_seconds(job.store, layer.inputs["pilot"].result_id))


@dataclass
class _Recorded:
    """What one shard leaves of one layer."""

    bound: Tensor
    keeps_maps: bool

    def __post_init__(self) -> None:
        self.statistics = UnitStatistics.none(len(self.bound))
        self.tails: list[SparseMaps] = []
        self.cells: list[TailCells] = []
        self.images: list[np.ndarray] = []

    def add(self, cut: Cut, image_ids: list[int]) -> None:
        self.statistics += cut.statistics
        self.tails.append(cut.maps)
        self.cells.append(cut.cells)
        self.images.append(np.asarray(image_ids, dtype=np.int64)[cut.maps.image.numpy()])

    def write(self, job: Job, layer: LayerJob, shard: Shard) -> int:
        """Write cells, then statistics, which name the other files' hashes, then maps: these mark the shard done."""
        maps = self._maps()
        sealed = {"cells": seal(self._cells()), "maps": seal(maps)}
        names = {"maps_rows": str(len(maps)), "maxima_sha256": hash_columns(maps.select(_MAXIMA))}
        for kind, file in sealed.items():
            names |= {f"{kind}_sha256": file.sha256, f"{kind}_bytes": str(len(file.data))}
        rows = {"unit": range(len(self.bound)), "bound": self.bound.numpy(), **_columns(self.statistics)}
        statistics = UNIT_STATISTICS.cast(pa.table(rows), **names)
        sealed["cells"].write(job.store, staging_path(layer.result_id, f"{shard.name}.cells.arrow"))
        file = stage_table(job.store, layer.result_id, f"{shard.name}.units.arrow", statistics)
        sealed["maps"].write(job.store, staging_path(layer.result_id, f"{shard.name}.maps.arrow"))
        return file.bytes + sum(len(one.data) for one in sealed.values())

    def _cells(self) -> pa.Table:
        unit = torch.cat([part.unit for part in self.cells])
        value = torch.cat([part.value for part in self.cells])[unit.argsort(stable=True)]
        starts = np.concatenate([[0], self.statistics.num_above.cumsum(0).numpy()])
        lists = pa.LargeListArray.from_arrays(pa.array(starts), pa.array(value.numpy()))
        return TAIL_CELLS.cast(pa.table({"unit": range(len(self.bound)), "cells": lists}))

    def _maps(self) -> pa.Table:
        tails = concatenate(self.tails)
        columns = [np.concatenate(self.images), tails.unit.int().numpy(), tails.max.numpy()]
        if not self.keeps_maps:
            return pa.table(columns, schema=tail_maps(None).schema)
        bits = np.packbits(tails.kept.numpy(), axis=1)  # map byte
        kept = pa.FixedSizeBinaryArray.from_buffers(pa.binary(bits.shape[1]), len(bits), [None, pa.py_buffer(bits)])
        ends = torch.cat([torch.tensor([0]), tails.kept.sum(1).cumsum(0)])
        cells = pa.LargeListArray.from_arrays(pa.array(ends.numpy()), pa.array(tails.value.numpy()))
        return pa.table([*columns, kept, cells], schema=tail_maps(tails.kept.shape[1]).schema)


def hash_columns(table: pa.Table) -> str:
    """Of the values of columns without nulls, whatever chunks they are in."""
    total = hashlib.sha256()
    for column in table.columns:
        total.update(np.ascontiguousarray(column.to_numpy()).data)
    return total.hexdigest()


def _named_files(result_id: str, shard: Shard, statistics: pa.Table) -> list[StoredFile]:
    """The files beside a shard's statistics, which say what is in them."""
    said = {key.decode(): value.decode() for key, value in statistics.schema.metadata.items()}
    rows = {"cells": len(statistics), "maps": int(said["maps_rows"])}
    return [
        StoredFile(
            staging_path(result_id, f"{shard.name}.{kind}.arrow"),
            said[f"{kind}_sha256"],
            count,
            int(said[f"{kind}_bytes"]),
        )
        for kind, count in rows.items()
    ]


def _columns(statistics: UnitStatistics) -> dict[str, np.ndarray]:
    return {name: getattr(statistics, name).numpy() for name in ("num_above", "num_at", "max", "min", "sum")}


def _statistics(table: pa.Table) -> UnitStatistics:
    return UnitStatistics(*(to_tensor(table, name) for name in ("num_above", "num_at", "max", "min", "sum")))


class _TopImages:
    """The `count` largest maxima of every unit, ties to the lowest image_id, of tables that come one by one."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._parts: list[pa.Table] = []
        self._kept = 0

    def add(self, part: pa.Table) -> None:
        self._parts.append(part.select(["unit", "image_id", "max"]))
        if sum(map(len, self._parts)) > max(MOST_TOP_ROWS, 2 * self._kept):
            self._parts = [self.table()]
            self._kept = len(self._parts[0])

    def table(self) -> pa.Table:
        """Sorted by unit, within it descending."""
        order = [("unit", "ascending"), ("max", "descending"), ("image_id", "ascending")]
        merged = pa.concat_tables(self._parts).sort_by(order)
        units = merged["unit"].to_numpy()
        first = np.searchsorted(units, units)  # where each row's unit begins
        return merged.filter(pa.array(np.arange(len(units)) - first < self._count))


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

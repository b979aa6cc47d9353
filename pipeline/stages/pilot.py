"""Pilot: a lower bound of every unit's threshold, from a fixed small share of the images."""

from collections import defaultdict
from math import ceil
from time import perf_counter
from typing import ClassVar

import numpy as np
import pyarrow as pa
import torch
from pydantic import Field
from torch import Tensor

from pipeline.stage import (
    Job,
    LayerJob,
    Reduced,
    Stage,
    read_once,
    stage_once,
    stage_table,
    stage_writer,
    staged_tables,
)
from pipeline.stages.activations import Kept, keep_activation
from pipeline.stages.forward import Pictures, picture_reader, record_layers
from pipeline.store import Store
from pipeline.threads import at_once
from schemas.staging import BOUNDS, PILOT_CELLS
from workers.methods.dissection import largest, rank_of_threshold
from workers.methods.tail_maps import sample_cells
from workers.worker import Shard, Worker

KEPT_BYTES_A_SHARD = 2**28
KEPT_BYTES = 2**30
"""Most that a pilot leaves of activations, a shard and in all: enough for data sets of which it is a large part."""

SECONDS_FILE = "seconds.json"


class Pilot(Stage):
    """Bound B_u = the `tail_quantile` of the pilot's cells, well under T_u.

    Only speed depends on it: where a bound turns out too high, the unit is recorded again.
    """

    name: ClassVar[str] = "pilot"
    version: ClassVar[int] = 3
    hangs_on_images: ClassVar[bool] = True

    tail_quantile: float = Field(0.02, gt=0, lt=1)  # four times the default quantile of the thresholds
    fraction: float = Field(0.02, gt=0, le=1)  # share of the images; rows come in hash order, so any prefix is a sample
    min_images: int = Field(64, ge=1)
    cells_per_map: int = Field(256, ge=1)  # larger grids are sampled

    def shards(self, job: Job) -> list[Shard]:
        wanted = max(ceil(self.fraction * job.manifest.num_images), self.min_images)
        return [shard for shard in job.shards if shard.first_image < wanted]

    def build(self, job: Job) -> Worker:
        model = job.load_model()
        images = sum(shard.rows for shard in self.shards(job))

        @torch.inference_mode()
        def compute(pictures: Pictures) -> tuple[dict[str, pa.Table], Kept]:
            samples: dict[str, list[Tensor]] = defaultdict(list)
            maxima: dict[str, list[Tensor]] = defaultdict(list)
            kept: Kept = defaultdict(list)
            keeps = pictures.shard.index < _shards_kept(job)
            clock = _Clock()

            def keep(layer: str, start: int, activation: Tensor) -> None:
                clock.stop(layer, start, len(activation))
                samples[layer].append(sample_cells(activation, self.cells_per_map).cpu())
                maxima[layer].append(activation.amax((2, 3)).cpu())
                if keeps:
                    kept[layer].append(activation.cpu() if activation.is_cuda else activation.clone())
                clock.go_on()

            record_layers(job, model, pictures, keep)
            tables = {}
            for layer in pictures.shard.layers:
                cells = torch.cat(samples[layer])  # sample unit
                per_image = len(cells) // len(pictures.image_ids)
                top = largest(cells, rank_of_threshold(self.tail_quantile, per_image * images) + 1).T
                columns = {
                    "unit": range(len(top)),
                    "cells": list(top.numpy()),
                    "maxima": list(torch.cat(maxima[layer]).T.numpy()),
                }
                seconds = repr(clock.seconds[layer])
                tables[layer] = PILOT_CELLS.cast(
                    pa.table(columns), per_image=str(per_image), images=str(images), seconds=seconds
                )
            return tables, dict(kept)

        mark_done = stage_writer(job)

        def write(shard: Shard, outputs: tuple[dict[str, pa.Table], Kept]) -> int:
            tables, kept = outputs
            sizes = at_once(lambda layer: keep_activation(job, job.layers[layer], shard, kept[layer]), kept)
            return sum(sizes) + mark_done(shard, tables)

        return Worker(picture_reader(job, model), compute, write)

    def reduce(self, job: Job, layer: LayerJob) -> Reduced:
        parts, maxima, seconds, rank = [], [], [], 0
        for _, _, table in staged_tables(job.store, layer.result_id, self.shards(job), "arrow"):
            metadata = table.schema.metadata
            rank = rank_of_threshold(self.tail_quantile, int(metadata[b"per_image"]) * int(metadata[b"images"]))
            seconds.append(float(metadata[b"seconds"]))
            parts.append(np.stack(table["cells"].to_numpy()))
            maxima.append(np.stack(table["maxima"].to_numpy()))
        cells = -np.sort(-np.concatenate(parts, axis=1), axis=1)  # unit cell, descending
        bound = cells[:, rank]
        every = np.concatenate(maxima, axis=1)  # unit image
        active = (every > bound[:, None]).sum(1)
        rows = pa.table({"unit": range(len(cells)), "bound": bound, "active": active})
        bounds = BOUNDS.cast(rows, images=str(every.shape[1]))
        return Reduced(
            {},
            [
                stage_table(job.store, layer.result_id, "bounds.arrow", bounds),
                stage_once(job.store, layer.result_id, SECONDS_FILE, {"seconds_per_image": min(seconds)}),
            ],
        )


def read_seconds(store: Store, result_id: str) -> float:
    """Seconds an image of a forward pass up to the layer, as the pilot measured them."""
    return read_once(store, result_id, SECONDS_FILE, lambda found: float(found["seconds_per_image"]))


class _Clock:
    """Seconds an image of the forward pass up to each layer, of the fastest batch."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(lambda: float("inf"))
        self._begun = self._stopped = perf_counter()
        self._batch, self._elsewhere = 0, 0.0

    def stop(self, layer: str, batch: int, images: int) -> None:
        """A layer has run; until `go_on`, time does not count."""
        now = perf_counter()
        if batch != self._batch:
            self._batch, self._begun, self._elsewhere = batch, self._stopped, 0.0
        self._entered = now
        self.seconds[layer] = min(self.seconds[layer], (now - self._begun - self._elsewhere) / images)

    def go_on(self) -> None:
        self._stopped = perf_counter()
        self._elsewhere += self._stopped - self._entered


def _shards_kept(job: Job) -> int:
    """The first so many shards' activations are kept, so that the record need not make them again."""
    shards = job.shards
    cells = sum(layer.layer.num_units * layer.layer.cells for layer in job.layers.values())
    largest_shard = max(shard.rows for shard in shards) * cells * 4
    return KEPT_BYTES // largest_shard if largest_shard <= KEPT_BYTES_A_SHARD else 0

"""Pilot: a lower bound of every unit's threshold, from a fixed small share of the images."""

from math import ceil
from typing import ClassVar

import numpy as np
import pyarrow as pa
import torch
from pydantic import Field
from torch import Tensor

from pipeline.stage import Job, LayerJob, Reduced, Stage, stage_table, stage_writer, staged_tables
from pipeline.stages.forward import Pictures, picture_reader, record_layers
from schemas.staging import BOUNDS, PILOT_CELLS
from workers.methods.dissection import largest, rank_of_threshold
from workers.methods.tail_maps import sample_cells
from workers.worker import Shard, Worker


class Pilot(Stage):
    """Bound B_u = the `tail_quantile` of the pilot's cells, well under T_u.

    Only speed depends on it: where a bound turns out too high, the unit is recorded again.
    """

    name: ClassVar[str] = "pilot"
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
        def compute(pictures: Pictures) -> dict[str, pa.Table]:
            samples: dict[str, list[Tensor]] = {layer: [] for layer in pictures.shard.layers}

            def keep(layer: str, start: int, activation: Tensor) -> None:
                samples[layer].append(sample_cells(activation, self.cells_per_map).cpu())

            record_layers(job, model, pictures, keep)
            tables = {}
            for layer, parts in samples.items():
                cells = torch.cat(parts)  # sample unit
                per_image = len(cells) // len(pictures.image_ids)
                top = largest(cells, rank_of_threshold(self.tail_quantile, per_image * images) + 1).T
                columns = {"unit": range(len(top)), "cells": list(top.numpy())}
                tables[layer] = PILOT_CELLS.cast(pa.table(columns), per_image=str(per_image), images=str(images))
            return tables

        return Worker(picture_reader(job, model), compute, stage_writer(job))

    def reduce(self, job: Job, layer: LayerJob) -> Reduced:
        parts, rank = [], 0
        for _, _, table in staged_tables(job.store, layer.result_id, self.shards(job), "arrow"):
            metadata = table.schema.metadata
            rank = rank_of_threshold(self.tail_quantile, int(metadata[b"per_image"]) * int(metadata[b"images"]))
            parts.append(np.stack(table["cells"].to_numpy()))
        cells = -np.sort(-np.concatenate(parts, axis=1), axis=1)  # unit cell, descending
        bounds = BOUNDS.cast(pa.table({"unit": range(len(cells)), "bound": cells[:, rank]}))
        return Reduced({}, [stage_table(job.store, layer.result_id, "bounds.arrow", bounds)])

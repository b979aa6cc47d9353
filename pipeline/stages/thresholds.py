"""Thresholds: T_u of every unit, the exact order statistic of all its cells."""

from typing import ClassVar

import numpy as np
import pyarrow as pa
import torch
from pydantic import Field

from pipeline.columns import to_tensor
from pipeline.stage import Job, LayerJob, Reduced, Stage
from pipeline.stages.record import RecordAgain
from pipeline.stages.tails import read_tail_cells, read_unit_statistics
from pipeline.threads import read_ahead
from workers.methods.dissection import rank_of_threshold
from workers.methods.order_statistics import DIGITS, Selection


class Thresholds(Stage):
    """T_u = the (k+1)-th largest cell, k = floor(quantile * cells).

    Where fewer than k+1 cells reach the bound, the tail maps cannot tell, and the unit is recorded again.
    Where the cells above the bound and those equal to it straddle rank k, T_u is the bound itself.
    """

    name: ClassVar[str] = "thresholds"
    inputs: ClassVar[tuple[str, ...]] = ("record",)

    quantile: float = Field(0.005, gt=0, lt=1)  # Bau et al. 2017, section 2.2

    def supplement(self, job: Job) -> tuple[Stage, list[str]] | None:
        short: dict[str, tuple[int, ...]] = {}
        for name, layer in job.layers.items():
            rank = self._rank(job, layer)
            table = read_unit_statistics(job, layer)
            reached = table["num_above"].to_numpy() + table["num_at"].to_numpy()
            if units := np.flatnonzero(reached <= rank).tolist():
                short[name] = tuple(units)
        if not short:
            return None
        records = {name: job.layers[name].inputs["record"] for name in short}
        return RecordAgain.of(job.store, records, short), list(short)

    def reduce(self, job: Job, layer: LayerJob) -> Reduced:
        statistics = read_unit_statistics(job, layer)
        bound, above, largest, smallest, total = (
            to_tensor(statistics, name) for name in ("bound", "num_above", "max", "min", "sum")
        )
        rank, cells = self._rank(job, layer), job.manifest.num_images * layer.layer.cells
        at_bound = above <= rank
        selection = Selection(torch.where(at_bound, 0, rank))
        everything = torch.arange(layer.layer.num_units)
        for _ in DIGITS:
            for part in read_ahead(lambda shard: read_tail_cells(job, layer, shard), job.shards):
                selection.count(part.unit, part.value)
            selection.count(everything[at_bound], largest[at_bound])  # something to find where T_u is the bound
            selection.narrow()
        threshold, num_above = selection.result()
        threshold = torch.where(at_bound, bound, threshold)
        rows = {
            "unit": everything.numpy(),
            "threshold": threshold.numpy(),
            "num_cells": np.full(len(threshold), cells),
            "num_above": torch.where(at_bound, above, num_above).numpy(),
            "max": largest.numpy(),
            "min": smallest.numpy(),
            "mean": (total / cells).numpy(),
            "is_dead": (largest == smallest).numpy(),
        }
        return Reduced({"thresholds": pa.table(rows)})

    def _rank(self, job: Job, layer: LayerJob) -> int:
        return rank_of_threshold(self.quantile, job.manifest.num_images * layer.layer.cells)

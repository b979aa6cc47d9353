"""Diagnosis: which units of a layer are dead, saturated, double or aliased."""

from statistics import median
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Float64
from pydantic import Field
from torch import Tensor

from pipeline.columns import to_tensor
from pipeline.results import read_result_table
from pipeline.stage import Job, LayerJob, Reduced, Stage, stage_writer, staged_tables
from pipeline.stages.forward import Pictures, picture_reader, record_layers
from schemas import DECONVNET, THRESHOLDS, Table
from schemas.table import UNIT, column
from workers.methods.diagnosis import Moments, correlations, is_aliased, link, moments, most_alike
from workers.nn.spectrum import convolutions_before, first_stride, noise_share
from workers.worker import Shard, Worker

PARTIAL = Table(
    "partial_diagnosis",
    1,
    pa.schema(
        [
            UNIT,
            column("num_positive", pa.int64(), "cells of the shard above 0"),
            column("smallest", pa.float32(), "cell"),
            column("largest", pa.float32(), "cell"),
            column("sum", pa.float64(), "of cells less the unit's mean over the data set"),
            column("product", pa.large_list(pa.float64()), "sums of products with this unit and those after it, likewise"),
        ]
    ),
    sort=("unit",),
)  # fmt: skip

ALIASED_LAYERS = (1, 2)
"""How many convolutions deep aliasing is looked for: where Zeiler & Fergus 2014, section 4.1, saw it."""


class Diagnosis(Stage):
    """Second moments of all units over the data set, in one forward pass; then a look at each unit."""

    name: ClassVar[str] = "diagnosis"
    inputs: ClassVar[tuple[str, ...]] = ("thresholds", "deconvnet")  # at the most: see `reads`

    correlation: float = Field(0.99, gt=0, lt=1)  # beyond which two units are one
    aliasing: bool = True  # whether patterns are looked at, which takes a dissection and the deconvnet stage
    # Share of energy about the Nyquist frequency that patterns have beyond their images', and beyond white noise's.
    # Chosen by what two small networks of strides 4 and 2 and a SqueezeNet show: see BENCHMARKS.md, "The first stride".
    aliasing_limit: float = Field(0.1, ge=0, lt=1)

    def reads(self) -> tuple[str, ...]:
        return self.inputs if self.aliasing else ("thresholds",)

    def shards(self, job: Job) -> list[Shard]:
        return job.shards

    def build(self, job: Job) -> Worker:
        model = job.load_model()
        means = {name: to_tensor(_thresholds(job, layer), "mean") for name, layer in job.layers.items()}
        centers = {name: mean.to(job.device) for name, mean in means.items()}

        @torch.inference_mode()
        def compute(pictures: Pictures) -> dict[str, pa.Table]:
            found = {
                layer: Moments.none(job.layers[layer].layer.num_units, job.device) for layer in pictures.shard.layers
            }

            def add(layer: str, _start: int, activation: Tensor) -> None:
                found[layer] += moments(activation, centers[layer])

            record_layers(job, model, pictures, add)
            return {layer: _to_table(one.cpu()) for layer, one in found.items()}

        return Worker(picture_reader(job, model), compute, stage_writer(job))

    def reduce(self, job: Job, layer: LayerJob) -> Reduced:
        found = Moments.none(layer.layer.num_units)
        for _, _, table in staged_tables(job.store, layer.result_id, self.shards(job), "arrow"):
            found += _from_table(table)
        thresholds = _thresholds(job, layer)
        largest, threshold = (thresholds[name].to_numpy() for name in ("max", "threshold"))
        correlation = correlations(found)
        alike, value = most_alike(correlation)
        stands_for, units = link(correlation, self.correlation), torch.arange(layer.layer.num_units)
        stride, why_not = self._looks_at(job, layer)
        share, of_images, above = [torch.full((len(units),), torch.nan)] * 3 if why_not else _shares(job, layer)
        aliased = is_aliased(share, of_images, noise_share(stride), self.aliasing_limit)
        rows = pa.table(
            {
                "unit": units.numpy(),
                "max": largest,
                "is_dead": largest <= 0,
                "is_saturated": (largest > 0) & (threshold == largest),
                "num_positive": found.num_positive.numpy(),
                "num_cells": np.full(len(units), found.num_cells),
                "most_alike": _but(alike, alike < 0),
                "correlation": _but(value, alike < 0),
                "duplicate_of": _but(stands_for, stands_for == units),
                "aliasing": _but(share, share.isnan()),
                "aliasing_images": _but(of_images, of_images.isnan()),
                "above_nyquist": _but(above, above.isnan()),
                "is_aliased": _but(aliased, (share - of_images).isnan()),
            }
        )
        summary = {
            "num_units": len(rows),
            "num_dead": _count(rows["is_dead"]),
            "num_saturated": _count(rows["is_saturated"]),
            "num_duplicates": len(rows) - rows["duplicate_of"].null_count,
            "first_stride": stride,
            "aliasing": _median(rows["aliasing"]),
            "aliasing_images": _median(rows["aliasing_images"]),
            "above_nyquist": _median(rows["above_nyquist"]),
            "num_aliased": _count(rows["is_aliased"]),
        }
        looked_at = len(rows) - rows["is_aliased"].null_count
        summary["verdict"] = verdict(summary, looked_at, why_not or "no unit has a pattern of an image that varies")
        return Reduced({"diagnosis": rows, "diagnosis_layers": pa.Table.from_pylist([summary])})

    def _looks_at(self, job: Job, layer: LayerJob) -> tuple[int, str | None]:
        """The network's first stride, and why aliasing is not looked at on this layer; None where it is."""
        module, size = job.load_model().module, job.study.preprocessing
        shape = (3, size["height"], size["width"])
        stride, depth = first_stride(module, shape), convolutions_before(module, layer.layer.name, shape)
        if not self.aliasing:
            return stride, "aliasing=false"
        if stride == 1:
            return stride, "the first stride is 1"
        if depth not in ALIASED_LAYERS:
            return stride, f"convolutions behind the layer: {depth}"
        return stride, None


def verdict(summary: dict[str, Any], looked_at: int, why_not: str) -> str:
    """What was found of a layer, in words.

    Args:
        summary: a row of `diagnosis_layers`.
        looked_at: units of which patterns and images have a value of aliasing.
        why_not: the reason, if there is none.
    """
    units = summary["num_units"]
    named = {"dead": "num_dead", "saturated": "num_saturated", "double": "num_duplicates"}
    found = [f"{summary[name]} of {units} units {word}" for word, name in named.items() if summary[name]]
    if summary["num_aliased"]:
        found.append(f"{summary['num_aliased']} of {looked_at} units aliased")
    text = "; ".join(found) or "nothing found"
    if not looked_at:
        return f"{text}; aliasing not looked at: {why_not}"
    return (
        f"{text}; about the Nyquist frequency of stride {summary['first_stride']} lie "
        f"{summary['aliasing']:.0%} of patterns, {summary['aliasing_images']:.0%} of their images, "
        f"{noise_share(summary['first_stride']):.0%} of white noise; above it lie {summary['above_nyquist']:.0%} of patterns"
    )


def _thresholds(job: Job, layer: LayerJob) -> pa.Table:
    columns = ["unit", "threshold", "max", "mean"]
    return read_result_table(job.store, layer.inputs["thresholds"], THRESHOLDS, columns)


def _shares(job: Job, layer: LayerJob) -> list[Float64[Tensor, " unit"]]:
    """Of every unit, the medians over its patterns: about the Nyquist frequency, of the images, above it; or NaN."""
    names = ["nyquist_share", "nyquist_share_image", "above_nyquist"]
    table = read_result_table(job.store, layer.inputs["deconvnet"], DECONVNET, ["unit", *names])
    medians = table.to_pandas().groupby("unit").median().reindex(range(layer.layer.num_units))
    return [torch.from_numpy(medians[name].to_numpy(np.float64, copy=True)) for name in names]


def _but(values: Tensor, nulls: Tensor) -> pa.Array:
    """A column with nulls."""
    return pa.array(values.numpy(), mask=nulls.numpy())


def _count(flags: pa.ChunkedArray) -> int:
    return sum(flag is True for flag in flags.to_pylist())


def _median(values: pa.ChunkedArray) -> float | None:
    there = values.drop_null().to_pylist()
    return median(there) if there else None


_PLAIN = ("num_positive", "smallest", "largest", "sum")


def _to_table(found: Moments) -> pa.Table:
    """A shard's moments: of products, each pair's once."""
    units = np.arange(len(found.sum))
    starts = np.concatenate([[0], np.cumsum(len(units) - units)])
    products = found.product.numpy()[np.triu_indices(len(units))]
    columns = {name: getattr(found, name).numpy() for name in _PLAIN}
    columns["product"] = pa.LargeListArray.from_arrays(pa.array(starts), pa.array(products))
    return PARTIAL.cast(pa.table({"unit": units, **columns}), num_cells=str(found.num_cells))


def _from_table(table: pa.Table) -> Moments:
    product = np.zeros((len(table), len(table)))
    upper = np.triu_indices(len(table))
    product[upper] = product.T[upper] = table["product"].combine_chunks().flatten().to_numpy()
    num_cells = int(table.schema.metadata[b"num_cells"])
    return Moments(num_cells, **{name: to_tensor(table, name) for name in _PLAIN}, product=torch.from_numpy(product))

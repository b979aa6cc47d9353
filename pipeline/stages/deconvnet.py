"""DeconvNet: for every unit of a layer, what in its exemplars drives it, projected back to pixels."""

from typing import Any, ClassVar, Literal

import pyarrow as pa
from pydantic import Field

from pipeline.errors import SettingsError
from pipeline.results import read_result_table
from pipeline.stage import Job, Layer, LayerJob
from pipeline.stages.chosen_units import BatchStage
from pipeline.stages.patterns import LayerPatterns, Pattern, Request, in_batches
from pipeline.stages.real_images import decode, read_images
from schemas import DECONVNET, EXEMPLARS, Table
from workers.methods.deconvnet import Keep, Rule
from workers.nn.nonlinearities import count_nonlinearities
from workers.nn.spectrum import above_nyquist_share, first_stride, nyquist_share
from workers.worker import Shard, Worker

Loaded = tuple[str, list[Request], dict[int, Any]]


class Deconvnet(BatchStage):
    """One forward pass an image, one backward pass for every unit it is an exemplar of."""

    name: ClassVar[str] = "deconvnet"
    inputs: ClassVar[tuple[str, ...]] = ("detectors", "exemplars")  # at the most: see `reads`
    partial: ClassVar[Table] = Table("partial_deconvnet", 1, pa.schema(list(DECONVNET.schema)[3:]), DECONVNET.sort)

    rule: Rule = "deconvnet"  # Zeiler & Fergus 2014; guided: Springenberg et al. 2015; gradient: Simonyan et al. 2014
    keep: Keep = "cell"
    relu_rule: Literal["strict", "extend"] = "strict"
    count: int = Field(9, ge=1, le=100)  # Zeiler & Fergus 2014, Figure 2: top 9; at most `count` of exemplars
    batch: int = Field(16, ge=1)  # images that go through the network at a time

    def settings_of(self, layer: str) -> dict[str, Any]:
        return {**self.model_dump(mode="json"), "units": self.units_setting}

    def reads(self) -> tuple[str, ...]:
        return ("exemplars", *(("detectors",) if self.units == "detectors" else ()))

    def check(self, layer: Layer, job: Job) -> None:
        super().check(layer, job)
        check_nonlinearities(self.rule, self.relu_rule, layer, job)

    def shards(self, job: Job) -> list[Shard]:
        return [
            Shard(f"{place:06d}-{name}", index, first_image=place, layers=(name,))
            for index, (name, place) in enumerate(
                (name, place) for name, layer in job.layers.items() for place in range(self._num_batches(job, layer))
            )
        ]

    def build(self, job: Job) -> Worker:
        model, numerics = job.load_model(), job.study.numerics
        size = job.study.preprocessing
        stride = first_stride(model.module, (3, size["height"], size["width"]))
        extend = self.relu_rule == "extend"
        patterns = {
            name: LayerPatterns(model, layer.layer, numerics, job.device, self.rule, self.keep, extend, self.batch)
            for name, layer in job.layers.items()
        }
        batches = {name: self._batches(job, layer) for name, layer in job.layers.items()}

        def read(shard: Shard) -> Loaded:
            (layer,) = shard.layers
            requests = batches[layer][shard.first_image]
            found = read_images(job, {one.image_id for one in requests})
            return layer, requests, {image_id: decode(job, data) for image_id, data in sorted(found.items())}

        def compute(loaded: Loaded) -> list[dict[str, Any]]:
            layer, requests, images = loaded
            made = patterns[layer]
            return [self.row(made, *one, stride) for one in made.project(images, requests)]

        return Worker(read, compute, self.writer(job))

    def _num_batches(self, job: Job, layer: LayerJob) -> int:
        """How many there are; before the exemplars are there, at most so many."""
        if "exemplars" in layer.inputs:
            return len(self._batches(job, layer))
        images = min(job.manifest.num_images, len(self.chosen(job, layer)) * self.count)
        return -(-images // self.batch)

    def _batches(self, job: Job, layer: LayerJob) -> list[list[Request]]:
        columns = ["unit", "rank", "image_id", "image", "y", "x"]
        chosen = set(self.chosen(job, layer))
        rows = read_result_table(job.store, layer.inputs["exemplars"], EXEMPLARS, columns).to_pylist()
        requests = [Request(**row) for row in rows if row["unit"] in chosen and row["rank"] < self.count]
        return in_batches(requests, self.batch)

    def row(self, patterns: LayerPatterns, request: Request, pattern: Pattern, stride: int) -> dict[str, Any]:
        """One row of the table, without the key of the result."""
        value, box = pattern.value, pattern.box
        return {
            "unit": request.unit,
            "variant": self.rule,
            "rank": request.rank,
            "keep": self.keep,
            "image_id": request.image_id,
            "image": request.image,
            "activation": pattern.activation,
            "y": request.y,
            "x": request.x,
            "top": box.top,
            "left": box.left,
            "bottom": box.bottom,
            "right": box.right,
            "is_clipped": box.is_clipped,
            "norm": value.norm().item(),
            "peak": value.abs().max().item(),
            "outside": pattern.outside,
            "nyquist_share": nyquist_share(value, stride),
            "nyquist_share_image": nyquist_share(pattern.crop.float(), stride),
            "above_nyquist": above_nyquist_share(value, stride),
            **patterns.draw(pattern),
        }


def check_nonlinearities(rule: Rule, relu_rule: str, layer: Layer, job: Job) -> None:
    """Look for nonlinearities other than ReLU as far as a layer.

    Raises:
        SettingsError: there are some, and the settings have no word for them; the message lists them.
    """
    if rule == "gradient" or relu_rule == "extend":
        return
    size, module = job.study.preprocessing, job.load_model().module
    found = count_nonlinearities(module, layer.name, (3, size["height"], size["width"]))
    others = sorted(f"{name} ({calls})" for (kind, name), calls in found.items() if kind != "relu")
    if others:
        raise SettingsError(
            f"rule={rule} is defined for ReLU alone, but as far as layer {layer.name} {job.study.model} calls "
            f"{', '.join(others)}: let them pass with relu_rule=extend, or take rule=gradient"
        )

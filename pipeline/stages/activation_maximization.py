"""Activation maximization: for every unit of a layer, the picture that drives it as far as it can."""

from dataclasses import replace
from typing import Any, ClassVar, Literal

import pyarrow as pa
from pydantic import Field, model_validator

from pipeline.errors import SettingsError
from pipeline.stage import Job, Layer, LayerJob
from pipeline.stages.chosen_units import BatchStage
from pipeline.stages.unit_pictures import Batch, Pair, UnitPictures
from schemas import ACTIVATION_MAXIMIZATION, Table
from workers.methods.activation_maximization import PRESETS, Preset, Target
from workers.nn.canvas import Recipe, Rule, Space
from workers.nn.layers import smallest_side
from workers.worker import Shard, Worker

RECIPE = tuple(Recipe.__dataclass_fields__)


class ActivationMaximization(BatchStage):
    """Climb from noise, or from the mean of a unit's exemplars, by the gradient of the unit's value.

    A preset is a whole recipe; what is set beside it replaces its own value.
    """

    name: ClassVar[str] = "activation_maximization"
    inputs: ClassVar[tuple[str, ...]] = ("detectors", "exemplars")  # at the most: see `reads`
    partial: ClassVar[Table] = Table(
        "partial_activation_maximization",
        1,
        pa.schema(list(ACTIVATION_MAXIMIZATION.schema)[3:]),
        ACTIVATION_MAXIMIZATION.sort,
    )

    preset: Preset = "fourier"
    target: Target = "neuron"  # Erhan et al. 2009: one unit at one place; channel: DeepDream and Lucid
    pre_relu: bool = True  # where the layer ends in ReLUs, climb what goes into them
    size: int | None = Field(None, ge=1)  # side of the image; None: what the unit sees, at most the network's own
    seeds: int = Field(1, ge=1, le=100)  # pictures a unit
    random_seed: int = 0
    start: Literal["noise", "mean", "clusters"] = "noise"  # Nguyen et al. 2016: means of exemplars, of a cluster a seed
    diversity: float = Field(0.0, ge=0)  # Olah et al. 2017: how strongly the seeds of a unit repel one another
    real_images: bool = True  # compare with the unit's exemplars, which takes a dissection
    redirect_steps: int = Field(16, ge=0)  # through ReLUs that block everything, as Lucid does in its first 16 steps
    frames: int = Field(0, ge=0, le=200)  # of an animation of the ascent
    batch: int = Field(32, ge=1)  # images that go through the network at a time, at most: see `images`

    steps: int | None = Field(None, ge=1)  # these replace the preset's: see `workers.nn.canvas.Recipe`
    step_rule: Rule | None = None
    step: float | None = Field(None, gt=0)
    max_step: float | None = Field(None, gt=0)
    decay: float | None = Field(None, ge=0, lt=1)
    blur: float | None = Field(None, ge=0)
    blur_every: int | None = Field(None, ge=1)
    norm_percent: float | None = Field(None, ge=0, lt=100)
    contribution_percent: float | None = Field(None, ge=0, lt=100)
    total_variation: float | None = Field(None, ge=0)
    jitter: int | None = Field(None, ge=0)
    scale_and_rotate: bool | None = None
    clip: bool | None = None
    space: Space | None = None

    @model_validator(mode="after")
    def _agree(self) -> "ActivationMaximization":
        if self.recipe.space == "fourier" and self.recipe.step_rule != "adam":
            raise ValueError(
                f"step_rule={self.recipe.step_rule} goes with space=pixels; space=fourier takes step_rule=adam"
            )
        if self.seeds > self.batch:
            raise ValueError(f"seeds={self.seeds} is more than batch={self.batch}: all seeds of a unit share a batch")
        if self.diversity and self.seeds == 1:
            raise ValueError("diversity needs seeds=2 or more: it is between the pictures of one unit")
        return self

    @property
    def recipe(self) -> Recipe:
        """The preset's, with what was set beside it."""
        given = {name: value for name in RECIPE if (value := getattr(self, name)) is not None}
        return replace(PRESETS[self.preset], **given)

    @property
    def images(self) -> int:
        """Images of every batch: as many whole units, with all their seeds, as `batch` has room for."""
        return self.batch - self.batch % self.seeds

    def settings_of(self, layer: str) -> dict[str, Any]:
        own = self.model_dump(mode="json", exclude={"units", *RECIPE})
        return {**own, "units": self.units_setting, **self.recipe.__dict__}

    def reads(self) -> tuple[str, ...]:
        real = ("exemplars",) if self.real_images or self.start != "noise" else ()
        return (*real, *(("detectors",) if self.units == "detectors" else ()))

    def check(self, layer: Layer, job: Job) -> None:
        super().check(layer, job)
        if self.target == "logit" and layer.cells > 1:
            raise SettingsError(
                f"target is logit, but layer {layer.name} has maps of {layer.height} x {layer.width} cells; "
                "the layer of the logits is layers=logits"
            )
        if self.size is not None:
            self._check_size(layer.name, self.size, job)

    def _check_size(self, layer: str, size: int, job: Job) -> None:
        module, own = job.load_model().module, job.study.preprocessing["height"]
        least = smallest_side(module, layer, size, max(size, own))
        if least != size:
            raise SettingsError(
                f"size is {size}, too small for the network as far as {layer}: it takes {least} at least"
            )

    def shards(self, job: Job) -> list[Shard]:
        return [
            Shard(f"{place:06d}-{name}", index, rows=len(pairs), first_image=place * self.images, layers=(name,))
            for index, (name, place, pairs) in enumerate(
                (name, place, pairs)
                for name, layer in job.layers.items()
                for place, pairs in enumerate(self._batches(job, layer))
            )
        ]

    def build(self, job: Job) -> Worker:
        model = job.load_model()
        made = {name: UnitPictures(self, job, layer, model) for name, layer in job.layers.items()}
        batches = {name: self._batches(job, layer) for name, layer in job.layers.items()}

        def read(shard: Shard) -> tuple[str, Batch]:
            (layer,) = shard.layers
            return layer, made[layer].read(batches[layer][shard.first_image // self.images])

        def compute(loaded: tuple[str, Batch]) -> list[dict[str, Any]]:
            layer, batch = loaded
            return made[layer].compute(batch)

        return Worker(read, compute, self.writer(job))

    def _batches(self, job: Job, layer: LayerJob) -> list[list[Pair]]:
        """Units and seeds, a batch after another; all seeds of a unit are in one."""
        pairs = [(unit, seed) for unit in self.chosen(job, layer) for seed in range(self.seeds)]
        return [pairs[start : start + self.images] for start in range(0, len(pairs), self.images)]

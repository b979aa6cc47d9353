"""The pictures of some units of one layer: their starts, the ascent, and the rows of the table."""

import hashlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from pipeline.stage import Job, LayerJob
from pipeline.stages.real_images import RealImage, decode, read_exemplars, read_images, read_maxima, seen_by_center
from workers.methods.activation_maximization import (
    GradientError,
    Maximized,
    filters,
    maximize,
    similarity,
)
from workers.models import LoadedModel
from workers.nn.clusters import cluster
from workers.nn.input_space import InputSpace
from workers.nn.relus import LayerFunction, closing_relus
from workers.nn.viewport import Axis, viewport
from workers.pictures import encode
from workers.precision import DTYPES, MEMORY_FORMATS, rounding

if TYPE_CHECKING:
    from pipeline.stages.activation_maximization import ActivationMaximization

NOISE = 10.0
"""Standard deviation of a random start, in pixel values of 255, as the DeepVis toolbox has it."""
FRAME_SECONDS = 0.12

Pair = tuple[int, int]
"""A unit and a seed."""


@dataclass(frozen=True)
class Batch:
    """What a batch is made of; the last pair is repeated until the batch is full."""

    pairs: list[Pair]
    images: dict[int, Tensor]  # by image_id: uint8, 3 y x


class UnitPictures:
    """One layer's units."""

    def __init__(self, stage: "ActivationMaximization", job: Job, layer: LayerJob, model: LoadedModel) -> None:
        size = model.preprocessing
        self.stage, self._job, self._layer, self._model = stage, job, layer, model
        self._space = InputSpace(size.mean, size.std, size.scale, size.channel_order == "bgr")
        self._recipe = stage.recipe
        shape = (3, size.height, size.width)
        closing = closing_relus(model.module, layer.layer.name, shape) if stage.pre_relu else frozenset()
        self.pre_relu = bool(closing)
        self._function = LayerFunction(model.module, layer.layer.name, closing)
        self.axes: tuple[Axis, Axis] = viewport(
            layer.layer.field,
            (size.height, size.width),
            (layer.layer.height, layer.layer.width),
            self._recipe.jitter,
            self._recipe.scale_and_rotate,
            stage.size,
            stage.target == "channel",
        )

    def network(self, images: Tensor, redirected: bool = False) -> Tensor:
        """The layer's activation in float32, by the numerics of the study."""
        numerics = self._job.study.numerics
        given = images.to(DTYPES[numerics.precision], memory_format=MEMORY_FORMATS[numerics.memory_format])
        return self._function(given, redirected=redirected).to(images.dtype)

    @cached_property
    def exemplars(self) -> dict[int, list[RealImage]]:
        """By unit, those that are compared with or started from."""
        if "exemplars" not in self._layer.inputs:
            return {}
        found = read_exemplars(self._job, self._layer)
        first_only = self.stage.start == "noise" and self.stage.target != "channel"
        return {unit: images[:1] if first_only else images for unit, images in found.items()}

    @cached_property
    def maxima(self) -> dict[int, float]:
        """Every unit's largest cell, to compare with where it has no exemplar; of no use for a mean."""
        if not self.stage.real_images or self.stage.target == "channel":
            return {}
        return read_maxima(self._job, self._layer)

    def read(self, pairs: list[Pair]) -> Batch:
        """Fetch and decode the images that a batch needs."""
        wanted = {image.image_id for unit, _ in pairs for image in self.exemplars.get(unit, [])}
        found = read_images(self._job, wanted)
        return Batch(pairs, {image_id: decode(self._job, data) for image_id, data in sorted(found.items())})

    def compute(self, batch: Batch) -> list[dict[str, Any]]:
        """The table's rows, without the key of the result.

        Raises:
            GradientError: a gradient or an activation is NaN or infinite.
        """
        stage, recipe = self.stage, self._recipe
        full = batch.pairs + [batch.pairs[-1]] * (stage.images - len(batch.pairs))
        generators = [generator_of(stage.random_seed, unit, seed) for unit, seed in full]
        units = torch.tensor([unit for unit, _ in full], device=self._job.device)
        with rounding(self._job.study.numerics.precision):
            best_real = self._best_real(batch)
            noise = self._noise(generators)
            start = self._starts(batch, full, noise) if stage.start != "noise" else noise
            frames = _frame_steps(recipe.steps, stage.frames)
            try:
                made = maximize(
                    self.network, start, units, self._space, recipe, generators, stage.target,
                    stage.redirect_steps, stage.seeds, stage.diversity, frames,
                )  # fmt: skip
            except GradientError as error:
                raise GradientError(f"layer {self._layer.layer.name}, {error}") from error
            found = filters(self.network, noise, units, stage.target)
            alike = self._similarity(made.picture)
        rows = _Rows(self, made, found, alike, self.axes, self._space, best_real)
        return [rows.row(place, pair) for place, pair in enumerate(batch.pairs)]

    def _noise(self, generators: Sequence[torch.Generator]) -> Tensor:
        shape = (3, self.axes[0].side, self.axes[1].side)
        drawn = torch.stack([torch.randn(shape, generator=one) for one in generators])
        return (drawn * (NOISE * self._space.pixel)).to(self._job.device)

    def _starts(self, batch: Batch, full: list[Pair], noise: Tensor) -> Tensor:
        """Means of exemplars, of all of a unit's or of a cluster a seed; where one is used again, with noise."""
        starts = noise.clone()
        for place, (unit, seed) in enumerate(full):
            real = self.exemplars.get(unit, [])
            if not real:
                continue
            pictures = seen_by_center([self._normalized(batch, one) for one in real], real, self.axes)
            number = self.stage.seeds if self.stage.start == "clusters" else 1
            assigned = cluster(self._codes(pictures), number)
            clusters = int(assigned.max()) + 1
            mean = pictures[assigned == seed % clusters].mean(0).to(noise.device)
            starts[place] = mean if seed < clusters else mean + noise[place]
        return starts

    def _normalized(self, batch: Batch, real: RealImage) -> Tensor:
        return self._model.preprocessing.normalize(batch.images[real.image_id][None])[0]

    @torch.no_grad()
    def _codes(self, pictures: Tensor) -> Tensor:
        """What the layer makes of pictures: every unit's mean."""
        return self.network(pictures.to(self._job.device)).mean((2, 3)).cpu()

    @torch.no_grad()
    def _best_real(self, batch: Batch) -> dict[int, float]:
        """The target's largest value on each unit's exemplars, in batches of one shape; without any, see `maxima`."""
        step, found = self.stage.images, {}
        if not self.stage.real_images:
            return found
        units = list(dict.fromkeys(unit for unit, _ in batch.pairs))
        asked = [(unit, real) for unit in units for real in self.exemplars.get(unit, [])]
        for start in range(0, len(asked), step):
            part = asked[start : start + step]
            pixels = [batch.images[real.image_id] for _, real in part]
            images = torch.stack(pixels + pixels[-1:] * (step - len(part))).to(self._job.device)
            activation = self.network(self._model.preprocessing.normalize(images))
            values = activation.mean((2, 3)) if self.stage.target == "channel" else activation.amax((2, 3))
            for place, (unit, _) in enumerate(part):
                value = values[place, unit].item()
                found[unit] = max(value, found.get(unit, value))
        return {unit: self.maxima[unit] for unit in units if unit in self.maxima} | found

    @torch.no_grad()
    def _similarity(self, pictures: Tensor) -> Tensor | None:
        """How alike the pictures of each unit are; None where it has only one."""
        return similarity(self.network(pictures), self.stage.seeds) if self.stage.seeds > 1 else None


@dataclass(frozen=True)
class _Rows:
    """Everything that a batch's rows are made of."""

    layer: UnitPictures
    made: Maximized
    filters: Tensor | None
    alike: Tensor | None
    axes: tuple[Axis, Axis]
    space: InputSpace
    best_real: dict[int, float]

    def row(self, place: int, pair: Pair) -> dict[str, Any]:
        """The row of one unit and seed."""
        unit, seed = pair
        made, stage, best_real = self.made, self.layer.stage, self.best_real.get(unit)
        outcome = self._outcome(place, best_real)
        row: dict[str, Any] = {
            "unit": unit,
            "variant": stage.preset,
            "seed": seed,
            "target": stage.target,
            "pre_relu": self.layer.pre_relu,
            "outcome": outcome,
            "best_real": best_real,
            "redirected_steps": int(made.redirected_steps[place]),
            "trace_every": made.trace_every,
        }
        if outcome != "drawn":
            return row
        objective, argmax_step = made.objective[place].item(), int(made.argmax_step[place])
        box = self._box
        picture, contrast = self.space.draw(made.picture[place][None][box])
        last, _ = self.space.draw(made.last[place][None][box])
        filter_picture, cosine = self._filter(place)
        return row | {
            "objective": objective,
            "best_step": int(made.best_step[place]),
            "last_objective": made.last_objective[place].item(),
            "ratio": objective / best_real if best_real is not None and best_real > 0 else None,
            "argmax_step": argmax_step if argmax_step >= 0 else None,
            "trace": made.trace[place].cpu().numpy(),
            "diversity": None if self.alike is None else self.alike[place].item(),
            "contrast": contrast.item(),
            "picture": encode(picture[0].cpu().numpy()),
            "last_picture": encode(last[0].cpu().numpy()),
            "filter": filter_picture,
            "filter_cosine": cosine,
            "animation": self._animation(place),
        }

    @property
    def _box(self) -> tuple[slice, slice, slice, slice]:
        rows, columns = self.axes
        return slice(None), slice(None), slice(rows.start, rows.stop), slice(columns.start, columns.stop)

    def _outcome(self, place: int, best_real: float | None) -> str:
        """Drawn, or why not: a unit that nothing gets above 0 shows nothing, however its gradient looks."""
        made = self.made
        never_open = self.layer.pre_relu and made.objective[place] <= 0 and (best_real is None or best_real <= 0)
        if not made.reachable[place] or (made.moved[place] and never_open):
            return "dead"
        return "drawn" if made.moved[place] else "relu_blocked"

    def _filter(self, place: int) -> tuple[dict[str, Any] | None, float | None]:
        """A first layer's filter, gray where it is 0, and its cosine with the picture where it lies."""
        if self.filters is None or not self.filters[place].any():
            return None, None
        rows, columns = (self.filters[place] != 0).any(0).nonzero().T
        box = (slice(None), slice(rows.min(), rows.max() + 1), slice(columns.min(), columns.max() + 1))
        found, picture = self.filters[place][box], self.made.picture[place][box]
        pixels = self.space.draw_signed(found[None])[0]
        cosine = torch.nn.functional.cosine_similarity(found.flatten(), picture.flatten(), dim=0)
        return encode(pixels.cpu().numpy()), cosine.item()

    def _animation(self, place: int) -> dict[str, Any] | None:
        if not self.made.frames:
            return None
        rows, columns = self._box[2:]
        frames = [Image.fromarray(frame[place, rows, columns].cpu().numpy()) for frame in self.made.frames]
        buffer = io.BytesIO()
        frames[0].save(
            buffer, "WEBP", save_all=True, append_images=frames[1:], duration=round(1000 * FRAME_SECONDS), loop=0,
            quality=80, method=4,
        )  # fmt: skip
        return {"bytes": buffer.getvalue(), "path": None}


def generator_of(random_seed: int, unit: int, seed: int) -> torch.Generator:
    """Chance that is a unit's and a seed's own."""
    digest = hashlib.sha256(f"{random_seed} {unit} {seed}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8]) >> 1)


def _frame_steps(steps: int, number: int) -> list[int]:
    """Steps that lie ever farther apart, as changes become slower; from the start to the last."""
    if number == 0:
        return []
    spaced = np.geomspace(1, steps + 1, number) - 1
    return sorted({round(float(step)) for step in spaced})

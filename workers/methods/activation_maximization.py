"""Activation maximization: the picture that drives a unit as far as it can.

    x* = argmax a_u(x) - lambda(x),   x <- R(x + step * g / mean|g|),   g = grad a_u(x)

Erhan et al. 2009, section 3; Simonyan et al. 2014, section 2; Yosinski et al. 2015, section 3. R: see `workers.nn.canvas`;
after the last step nothing but the clipping to the range of pixels. Diversity: Olah et al. 2017 ("Feature visualization").

Differs from the DeepVis toolbox: step sizes are in pixel values of 255 whatever the network's input is, and the mean of
|g| is over what the gradient reaches at all, so that a unit of the first layer, which sees a corner of the image, takes
steps of the same size as one of the last. One image a unit and seed; none has a say in another but its unit's own seeds.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int64, UInt8
from torch import Tensor

from workers.nn import regularizers
from workers.nn.canvas import Canvas, Recipe, mean_size
from workers.nn.input_space import InputSpace

Target = Literal["neuron", "channel", "logit"]
Preset = Literal["plain", "yosinski1", "yosinski2", "yosinski3", "yosinski4", "fourier"]

MEASURED_EVERY = 16
"""Steps between the values of a trace where each takes a forward pass of its own."""

LINEAR = 1e-4
"""Share by which the gradients of one unit may differ that are taken for equal: a pass in float16 rounds."""


class GradientError(ValueError):
    """A gradient or an activation is NaN or infinite; the message says at which step and for which unit."""


@runtime_checkable
class Network(Protocol):
    """The network as far as a layer: images to its activation, `image unit h w`."""

    def __call__(self, images: Tensor, redirected: bool = False) -> Tensor: ...


PRESETS: dict[Preset, Recipe] = {
    "plain": Recipe(400, step=0.5, clip=False),
    # Yosinski et al. 2015, Table 1
    "yosinski1": Recipe(500, step=1.0, blur=0.5, norm_percent=50.0),
    "yosinski2": Recipe(750, step=10.0, decay=0.3, norm_percent=20.0),
    "yosinski3": Recipe(1000, step=1.0, decay=1e-4, blur=1.0),
    "yosinski4": Recipe(1000, step=1.0, blur=0.5, contribution_percent=90.0),
    # Olah et al. 2017
    "fourier": Recipe(512, "adam", step=0.05, jitter=12, scale_and_rotate=True, clip=False, space="fourier"),
}


@dataclass(frozen=True)
class Maximized:
    """What came of each image; pictures in the network's input space.

    Attributes:
        picture: the best seen.
        objective: its value.
        best_step: after which step it was.
        last: the picture after the last step.
        last_objective: its value.
        argmax_step: the first measured step at which no unit of the layer was above this one; -1 if never.
        redirected_steps: steps taken through redirected ReLUs.
        moved: whether the unit's own gradient was ever other than 0.
        reachable: whether that through redirected ReLUs was.
        trace: values of the picture itself, every `trace_every` steps and at the end.
        trace_every: see `trace`.
        frames: the pictures after the steps that were asked for.
    """

    picture: Float[Tensor, "image channel y x"]
    objective: Float[Tensor, " image"]
    best_step: Int64[Tensor, " image"]
    last: Float[Tensor, "image channel y x"]
    last_objective: Float[Tensor, " image"]
    argmax_step: Int64[Tensor, " image"]
    redirected_steps: Int64[Tensor, " image"]
    moved: Bool[Tensor, " image"]
    reachable: Bool[Tensor, " image"]
    trace: Float[Tensor, "image measured"]
    trace_every: int
    frames: list[UInt8[Tensor, "image y x 3"]]


def at_target(activation: Float[Tensor, "image unit h w"], target: Target) -> Float[Tensor, "image unit"]:
    """Every unit's value: at the map's center cell, its mean, or the one cell there is."""
    if target == "channel":
        return activation.mean((2, 3))
    return activation[:, :, activation.shape[2] // 2, activation.shape[3] // 2]


def similarity(activation: Float[Tensor, "image unit h w"], seeds: int) -> Float[Tensor, " image"]:
    """Mean cosine of each image's Gram matrix with those of the other images of its unit, which lie beside it."""
    maps = activation.flatten(2).unflatten(0, (-1, seeds))  # group seed unit cell
    if maps.shape[2] <= maps.shape[3]:
        gram = (maps @ maps.mT).flatten(2)
        inner = gram @ gram.mT
    else:  # <A A', B B'> = |A' B|^2, which is the smaller one
        inner = torch.einsum("gsuc,gtud->gstcd", maps, maps).square().sum((3, 4))
    length = inner.diagonal(dim1=1, dim2=2).clamp(min=torch.finfo(inner.dtype).tiny).sqrt()
    cosine = inner / (length[:, :, None] * length[:, None])
    others = ~torch.eye(seeds, dtype=torch.bool, device=cosine.device)
    return ((cosine * others).sum(2) / (seeds - 1)).flatten()


def filters(
    network: Network, images: Float[Tensor, "image channel y x"], units: Int64[Tensor, " image"], target: Target
) -> Float[Tensor, "image channel y x"] | None:
    """The filters of units of the first layer: their gradients, if these are the same at any image; else None.

    Args:
        network: as far as the layer, its last ReLU left out.
        images: any, none of them the mean color.
        units: the unit of each.
        target: whose gradient.
    """

    def gradient(at: Tensor) -> Tensor:
        at = at.detach().requires_grad_()
        values = at_target(network(at), target).gather(1, units[:, None])
        return torch.autograd.grad(values.sum(), at)[0]

    found, elsewhere = gradient(torch.zeros_like(images)), gradient(images)
    tolerance = LINEAR * found.abs().amax((1, 2, 3))
    return found if ((found - elsewhere).abs().amax((1, 2, 3)) <= tolerance).all() else None


def maximize(
    network: Network,
    start: Float[Tensor, "image channel y x"],
    units: Int64[Tensor, " image"],
    space: InputSpace,
    recipe: Recipe,
    generators: Sequence[torch.Generator],
    target: Target = "neuron",
    redirect: int = 16,
    seeds: int = 1,
    diversity: float = 0.0,
    frames: Sequence[int] = (),
) -> Maximized:
    """Climb from a batch of starts, one unit each.

    Args:
        network: as far as the layer.
        start: where from, in the network's input space.
        units: the unit of each image.
        space: of the network's input.
        recipe: how.
        generators: one an image, on the CPU; their draws shift, scale and rotate.
        target: what is maximized.
        redirect: steps that an image whose gradient is 0 may take through redirected ReLUs.
        seeds: images of one unit, which lie side by side.
        diversity: how strongly these repel one another, in parts of the objective.
        frames: steps after which pictures are kept.

    Raises:
        GradientError: a gradient or the objective is NaN or infinite.
        ValueError: a Fourier picture has not three channels, or another rule than adam.
    """
    canvas = Canvas(start, space, recipe, generators)
    climb = _Objective(network, units, target, redirect, seeds, diversity)
    seen, kept = _Seen(units), []
    for step in range(recipe.steps + 1):
        canvas.clip()
        with torch.no_grad():
            if step in frames:
                kept.append(space.draw(canvas.picture())[0])
            if step == recipe.steps or (recipe.transforms and step % MEASURED_EVERY == 0):
                picture = canvas.picture()
                seen.add(step, picture, at_target(network(picture), target))
        if step == recipe.steps:
            break
        gradient, by_pixels, values = climb.gradient(canvas, step)
        if not recipe.transforms:
            seen.add(step, canvas.picture().detach(), values)
        canvas.move(gradient, by_pixels)
        if step < recipe.steps - 1:
            canvas.regularize(step, by_pixels)
    if redirect == 0 and not climb.moved.all():
        climb.reachable |= _reaches(climb.differentiate(canvas, 0, redirected=True)[1])
    return Maximized(
        seen.picture, seen.objective, seen.best_step, canvas.picture().detach(), seen.trace[-1], seen.argmax_step,
        climb.redirected, climb.moved, climb.reachable | climb.moved, torch.stack(seen.trace, 1),
        MEASURED_EVERY if recipe.transforms else 1, kept,
    )  # fmt: skip


class _Objective:
    """What is climbed, and which of its images have a gradient to climb by."""

    def __init__(
        self, network: Network, units: Tensor, target: Target, redirect: int, seeds: int, diversity: float
    ) -> None:
        self._network, self._units = network, units
        self._target: Target = target
        self._redirect, self._seeds, self._diversity = redirect, seeds, diversity
        self._attempts = torch.zeros_like(units)
        self.redirected = torch.zeros_like(units)
        self.moved = torch.zeros_like(units, dtype=torch.bool)
        self.reachable = self.moved.clone()

    def gradient(self, canvas: Canvas, step: int) -> tuple[Tensor, Tensor, Tensor]:
        """As `differentiate`; for an image whose gradient is 0 through redirected ReLUs, for some steps."""
        gradient, by_pixels, values = self.differentiate(canvas, step, redirected=False)
        size = by_pixels.abs().sum((1, 2, 3))
        finite = size.isfinite() & values.isfinite().all(1)
        if not finite.all():
            raise GradientError(
                f"unit {int(self._units[~finite][0])}: its gradient or the layer's activation is NaN or infinite at step "
                f"{step}; look at the weights, or take smaller steps"
            )
        blocked = size == 0
        self.moved |= ~blocked
        tries = blocked & (self._attempts < self._redirect)
        if tries.any():
            other = self.differentiate(canvas, step, redirected=True)
            reached = tries & _reaches(other[1])
            gradient, by_pixels = (
                torch.where(tries.view(-1, *[1] * (b.ndim - 1)), b, a)
                for a, b in zip((gradient, by_pixels), other, strict=False)
            )
            self._attempts += tries
            self.redirected += reached
            self.reachable |= reached
        return gradient, by_pixels, values

    def differentiate(self, canvas: Canvas, step: int, *, redirected: bool) -> tuple[Tensor, Tensor, Tensor]:
        """Gradients by what is changed and by pixels, and every unit's value."""
        pictures, pull = canvas.picture(), canvas.recipe.total_variation
        activation = self._network(canvas.transform(pictures, step), redirected=redirected)
        values = at_target(activation, self._target)
        objective = values.gather(1, self._units[:, None])[:, 0]
        if self._diversity:
            objective = objective - self._diversity * objective.detach().abs() * similarity(activation, self._seeds)
        wanted = [pictures] if pictures is canvas.z else [pictures, canvas.z]
        by_pixels, *rest = torch.autograd.grad(objective.sum(), wanted, retain_graph=pull > 0)
        gradient = rest[0] if rest else by_pixels
        if pull:
            penalty = pull * mean_size(by_pixels) * regularizers.total_variation(pictures, 1.0)
            gradient = gradient - torch.autograd.grad(penalty.sum(), canvas.z)[0]
        return gradient, by_pixels, values.detach()


class _Seen:
    """The best picture of each image, its trace, and when its unit was its layer's largest."""

    def __init__(self, units: Tensor) -> None:
        self._units = units
        self.trace: list[Tensor] = []
        self.argmax_step = torch.full_like(units, -1)
        self.best_step = torch.zeros_like(units)

    def add(self, step: int, images: Tensor, values: Tensor) -> None:
        """Look at pictures, and what every unit makes of them."""
        value = values.gather(1, self._units[:, None])[:, 0]
        largest = value >= values.amax(1)
        self.argmax_step = torch.where(largest & (self.argmax_step < 0), step, self.argmax_step)
        if not self.trace:
            self.picture, self.objective = images.clone(), value
        else:
            better = value > self.objective
            self.picture[better] = images[better]
            self.objective = torch.where(better, value, self.objective)
            self.best_step = torch.where(better, step, self.best_step)
        self.trace.append(value)


def _reaches(gradient: Tensor) -> Bool[Tensor, " image"]:
    return (gradient != 0).flatten(1).any(1)

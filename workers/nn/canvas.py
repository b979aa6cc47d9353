"""A batch of pictures that are made by gradients: what is changed, how far each step goes, what keeps it in bounds.

The order is that of the DeepVis toolbox (Yosinski et al. 2015): clip to the range of pixels, look, step, decay, blur,
clip small norms, clip small contributions. Shapes: `image channel y x`, in the network's input space.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from workers.nn import fourier, regularizers
from workers.nn.input_space import InputSpace

Rule = Literal["normalized", "constant", "progress", "adam"]
Space = Literal["pixels", "fourier"]

SCALES = tuple(1 + offset / 50 for offset in range(-5, 6))  # Olah et al. 2017
DEGREES = (*map(float, range(-10, 11)), *[0.0] * 5)


@dataclass(frozen=True)
class Recipe:
    """How to climb.

    Attributes:
        steps: how many.
        step_rule: normalized: by `step` pixel values in the mean; constant: by `step` times the gradient, pixels against
            pixels; progress: so far that the objective would rise by `step` if it were linear, at most as `constant`
            with `max_step`; adam: Adam with rate `step`, of pixels or of Fourier coefficients.
        step: see `step_rule`.
        max_step: see `step_rule`.
        decay: share of the distance from the mean color that each step takes away.
        blur: standard deviation of a Gaussian, in pixels.
        blur_every: steps between blurs.
        norm_percent: pixels of smaller norm than this percentile become the mean color.
        contribution_percent: pixels that contribute less than this percentile likewise.
        total_variation: how strongly it is pulled down, in parts of the objective's pull.
        jitter: pixels that the image is shifted by at random before each step.
        scale_and_rotate: whether it is also scaled and rotated.
        clip: whether to keep to the range of pixels.
        space: what is changed: pixels, or Fourier coefficients of decorrelated colors, which keep to it anyway.
    """

    steps: int
    step_rule: Rule = "normalized"
    step: float = 1.0
    max_step: float = 100.0
    decay: float = 0.0
    blur: float = 0.0
    blur_every: int = 4
    norm_percent: float = 0.0
    contribution_percent: float = 0.0
    total_variation: float = 0.0
    jitter: int = 0
    scale_and_rotate: bool = False
    clip: bool = True
    space: Space = "pixels"

    @property
    def transforms(self) -> bool:
        """Whether the network sees another picture than the one that is kept."""
        return self.jitter > 0 or self.scale_and_rotate


class Canvas:
    """Pictures on their way.

    Args:
        start: where from.
        space: of the network's input.
        recipe: how to climb.
        generators: one an image, on the CPU; their draws shift, scale and rotate.

    Attributes:
        z: what is changed, a leaf that wants a gradient: pixels, or coefficients `image 3 y half_x 2`.

    Raises:
        ValueError: a Fourier picture has not three channels, or another rule than adam.
    """

    def __init__(
        self,
        start: Float[Tensor, "image channel y x"],
        space: InputSpace,
        recipe: Recipe,
        generators: Sequence[torch.Generator],
    ) -> None:
        if recipe.space == "fourier" and (recipe.step_rule != "adam" or start.shape[1] != 3):
            raise ValueError(
                f"space is fourier with step_rule {recipe.step_rule} and {start.shape[1]} channels, must go with adam and 3 (RGB)"
            )
        self.space, self.recipe = space, recipe
        self._black, self._white = space.bounds(start)
        self._width = start.shape[3]
        self.z = self._inverse(start).requires_grad_()
        rate = recipe.step * (space.pixel if recipe.space == "pixels" else 1)
        self._adam = torch.optim.Adam([self.z], rate) if recipe.step_rule == "adam" else None
        self._draws = [
            torch.stack([torch.rand(4, generator=one, dtype=torch.float64) for one in generators])
            for _ in range(recipe.steps if recipe.transforms else 0)
        ]

    def picture(self) -> Float[Tensor, "image channel y x"]:
        """The pictures, as a function of `z`."""
        if self.recipe.space == "pixels":
            return self.z
        return self.space.from_rgb(fourier.to_rgb(self.z, self._width))

    @torch.no_grad()
    def clip(self) -> None:
        """Bring what has left the range of pixels back to its edge."""
        if self.recipe.clip and self.recipe.space == "pixels":
            self.z.clamp_(self._black, self._white)

    def transform(self, pictures: Float[Tensor, "image channel y x"], step: int) -> Float[Tensor, "image channel y x"]:
        """What the network sees at a step."""
        recipe = self.recipe
        if not recipe.transforms:
            return pictures
        draws = self._draws[step]
        if recipe.scale_and_rotate:
            gray = (self._black + self._white) / 2
            return fourier.Transformations(recipe.jitter, SCALES, DEGREES)(pictures, draws, gray)
        return regularizers.roll(pictures, (draws[:, :2] * (2 * recipe.jitter + 1)).floor().long() - recipe.jitter)

    @torch.no_grad()
    def move(self, gradient: Tensor, measure: Tensor | None = None) -> None:
        """Step along a gradient by `z`.

        Args:
            gradient: of all that is wanted.
            measure: the objective's own, which says how long a step is; without it, `gradient`.
        """
        measure = gradient if measure is None else measure
        recipe, pixel = self.recipe, self.space.pixel
        if self._adam is not None:
            self.z.grad = -gradient
            self._adam.step()
            return
        if recipe.step_rule == "normalized":
            size = mean_size(measure)
            rate = torch.where(size > 0, recipe.step * pixel / size, 0)
        elif recipe.step_rule == "constant":
            rate = torch.full_like(gradient[:, 0, 0, 0], recipe.step * pixel**2)
        else:
            rate = (recipe.step / measure.square().sum((1, 2, 3))).clamp(max=recipe.max_step * pixel**2)
        self.z += rate[:, None, None, None] * gradient

    @torch.no_grad()
    def regularize(self, step: int, by_pixels: Float[Tensor, "image channel y x"]) -> None:
        """Do what follows a step, but for the range of pixels.

        Args:
            step: its number.
            by_pixels: the objective's gradient before it.
        """
        recipe = self.recipe
        blurs = recipe.blur > 0 and step % recipe.blur_every == 0
        if not (recipe.decay or blurs or recipe.norm_percent or recipe.contribution_percent):
            return
        images = self.picture()
        if recipe.decay:
            images = regularizers.decay(images, recipe.decay)
        if blurs:
            images = regularizers.gaussian_blur(images, recipe.blur)
        if recipe.norm_percent:
            images = regularizers.clip_small_norms(images, recipe.norm_percent)
        if recipe.contribution_percent:
            images = regularizers.clip_small_contributions(images, by_pixels, recipe.contribution_percent)
        self.z.copy_(self._inverse(images))

    def _inverse(self, images: Tensor) -> Tensor:
        if self.recipe.space == "pixels":
            return images.detach().clone()
        return fourier.from_rgb(self.space.to_rgb(images))


def mean_size(gradient: Float[Tensor, "image ..."]) -> Float[Tensor, " image"]:
    """Mean of |g| over what it reaches; 0 where it is 0."""
    flat = gradient.flatten(1)
    return flat.abs().sum(1) / (flat != 0).sum(1).clamp(min=1)

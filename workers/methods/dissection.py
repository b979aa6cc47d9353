"""Network dissection: binarize a unit's activation map, count where it meets every concept.

    M_u(x) = upsample(A_u(x)) > T_u
    I[u,c] = sum over images of |M_u(x) and L_c(x)|

Bau, Zhou, Khosla, Oliva, Torralba: Network Dissection, CVPR 2017, section 2.2. `threshold_first` is
the other order, upsample(A_u(x) > T_u) > 0.5, of Fong & Vedaldi 2018, section 3.

Differs from the published codes in that nothing is rounded away from the definition: bilinear weights
share a denominator, so their numerators are whole numbers, and the sign of a weighted sum of A - T_u
decides about a pixel. A cell that equals its threshold adds an exact zero, a map that nowhere exceeds
it has no positive term, so plateaus and overshoot need no special case. The few pixels whose sum is as
small as its rounding errors are decided in fractions.
"""

from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from math import floor, lcm
from typing import Literal

import torch
from jaxtyping import Bool, Float, Float32, Float64, Int64
from torch import Tensor

MaskOrder = Literal["upsample_first", "threshold_first"]

EXACT_IN_FLOAT32 = 2**24
"""Whole numbers up to here add up exactly in float32."""

EXACT_IN_FLOAT64 = 2**52
"""Halves of whole numbers up to here add up exactly in float64."""

ROUNDING = 2.0**-48
"""Above the rounding error of a bilinear sum in float64, relative to the sum of magnitudes: ten roundings."""


def rank_of_threshold(quantile: float, num_cells: int) -> int:
    """k = floor(quantile * cells): how many cells may lie above the threshold.

    The quantile counts as the decimal number it was written as, so .005 of 200 cells is 1.
    """
    return floor(Fraction(str(quantile)) * num_cells)


@dataclass(frozen=True)
class Alignment:
    """Where, along one axis, a grid lies under the input; half-pixel centers if there is no field.

    Attributes:
        input_size: input pixels along the axis.
        offset: input pixel of the receptive-field center of cell 0, pixel centers at integers.
        stride: input pixels between the centers of neighboring cells.
    """

    input_size: int
    offset: float
    stride: float


@dataclass(frozen=True)
class Interpolation:
    """Bilinear interpolation along one axis.

    Attributes:
        places: where each pixel lies on the grid, cell centers at integers.
        denominator: common to the weights of all pixels.
        weights: the numerators; each row adds up to the denominator.
    """

    places: tuple[Fraction, ...]
    denominator: int
    weights: Float64[Tensor, "pixel cell"]

    def cells(self, pixel: int) -> list[tuple[int, Fraction]]:
        """The cells a pixel lies between, and the exact weight of each."""
        lower = floor(self.places[pixel])
        share = self.places[pixel] - lower
        return [(lower, 1 - share), (lower + 1, share)] if share else [(lower, Fraction(1))]


@lru_cache(maxsize=256)
def interpolation(cells: int, pixels: int, alignment: Alignment | None = None) -> Interpolation:
    """Bilinear interpolation from a grid to a label map, along one axis.

    Args:
        cells: size of the grid.
        pixels: size of the label map.
        alignment: how the grid lies under the input; None stretches it over the label map, half-pixel
            centers, edges repeated (`align_corners=False`).
    """
    places = []
    for pixel in range(pixels):
        if alignment is None:
            place = (Fraction(2 * pixel + 1, 2) * cells) / pixels - Fraction(1, 2)
        else:
            on_input = Fraction(2 * pixel + 1, 2) * alignment.input_size / pixels - Fraction(1, 2)
            place = (on_input - Fraction(alignment.offset)) / Fraction(alignment.stride)
        places.append(min(max(place, Fraction(0)), Fraction(cells - 1)))
    denominator = lcm(*(place.denominator for place in places))
    weights = torch.zeros(pixels, cells, dtype=torch.float64)
    axis = Interpolation(tuple(places), denominator, weights)
    for pixel in range(pixels):
        for cell, weight in axis.cells(pixel):
            weights[pixel, cell] = float(weight * denominator)
    return axis


def binarize(
    activation: Float32[Tensor, "unit h w"],
    threshold: Float32[Tensor, " unit"],
    size: tuple[int, int],
    order: MaskOrder = "upsample_first",
    alignment: tuple[Alignment, Alignment] | None = None,
) -> Bool[Tensor, "unit y x"]:
    """Masks of an image's activation maps at the size of its label map.

    Args:
        activation: raw maps, of any subset of the units.
        threshold: T_u of the same units.
        size: height and width of the label map.
        order: upsample, then compare (Bau et al. 2017), or compare, then upsample (the survey's Eq. 18).
        alignment: receptive-field geometry of the rows and of the columns; None for `resize`.
    """
    rows = interpolation(activation.shape[-2], size[0], alignment and alignment[0])
    columns = interpolation(activation.shape[-1], size[1], alignment and alignment[1])
    down, across = rows.weights.to(activation.device), columns.weights.to(activation.device).T
    excess = activation.double() - threshold.double()[:, None, None]
    scale = float(rows.denominator * columns.denominator)
    if order == "threshold_first":
        excess = (excess > 0).double() - 0.5
    total = down @ excess @ across  # unit y x
    if order == "threshold_first" and scale < EXACT_IN_FLOAT64:
        return total > 0
    error = ROUNDING * scale * excess.abs().max()
    mask = total > error
    near = mask ^ (total >= -error)
    if near.view(torch.uint8).max():  # many times as fast as any()
        mask = total > 0
        units = near.flatten(1).any(1).nonzero().flatten()
        magnitude = down @ excess[units].abs() @ across
        near[units] &= (magnitude > 0) & (total[units].abs() <= ROUNDING * magnitude)
        for unit, y, x in near.nonzero().tolist():
            level = Fraction(0) if order == "threshold_first" else Fraction(threshold[unit].item())
            cells = excess[unit] if order == "threshold_first" else activation[unit]
            mask[unit, y, x] = _interpolate(cells, rows.cells(y), columns.cells(x)) > level
    return mask


def _interpolate(
    cells: Float[Tensor, "h w"], rows: list[tuple[int, Fraction]], columns: list[tuple[int, Fraction]]
) -> Fraction:
    """One pixel, without rounding."""
    between = [Fraction(cells[i, j].item()) * down * across for i, down in rows for j, across in columns]
    return sum(between, Fraction(0))


@dataclass(frozen=True)
class Annotation:
    """The labels of one image, concepts by their place in the data set's list.

    Attributes:
        masks: one 0/1 map a concept labelled by pixels.
        concepts: which concepts those are, each once.
        image_concepts: concepts that cover the whole label map, none of them in `concepts`.
        split: number of the image's split.
    """

    masks: Float32[Tensor, "concept y x"]
    concepts: Int64[Tensor, " concept"]
    image_concepts: Int64[Tensor, " image_concept"]
    split: int

    @property
    def size(self) -> tuple[int, int]:
        return self.masks.shape[-2], self.masks.shape[-1]

    def to(self, device: str) -> "Annotation":
        """The same annotation on another device."""
        return Annotation(self.masks.to(device), self.concepts.to(device), self.image_concepts.to(device), self.split)

    @property
    def all_concepts(self) -> Int64[Tensor, " any_concept"]:
        return torch.cat([self.concepts, self.image_concepts])


@dataclass
class Counts:
    """Pixel counts of one layer, added up over images; int64 throughout.

    Attributes:
        intersection: I[u,c].
        mask_pixels_concept: mask pixels over images that hold the concept.
        mask_pixels_annotated: mask pixels over images annotated for the category.
        mask_pixels_under_mask: mask pixels over images where a label of the category lies under the mask.
        mask_pixels: mask pixels over all images.
    """

    intersection: Int64[Tensor, "split unit concept"]
    mask_pixels_concept: Int64[Tensor, "split unit concept"]
    mask_pixels_annotated: Int64[Tensor, "split unit category"]
    mask_pixels_under_mask: Int64[Tensor, "split unit category"]
    mask_pixels: Int64[Tensor, "split unit"]

    @classmethod
    def zeros(cls, splits: int, units: int, concepts: int, categories: int, device: str = "cpu") -> "Counts":
        def zeros(*shape: int) -> Tensor:
            return torch.zeros(shape, dtype=torch.int64, device=device)

        return cls(
            zeros(splits, units, concepts),
            zeros(splits, units, concepts),
            zeros(splits, units, categories),
            zeros(splits, units, categories),
            zeros(splits, units),
        )

    def add(
        self,
        mask: Bool[Tensor, "unit y x"],
        units: Int64[Tensor, " unit"],
        annotation: Annotation,
        membership: Bool[Tensor, "all_concepts category"],
    ) -> None:
        """Count one image.

        Args:
            mask: masks of some units; all other units' masks are empty.
            units: which units those are.
            annotation: the labels the masks meet.
            membership: the category each of the data set's concepts belongs to.
        """
        intersection, area = intersections(mask, annotation)
        concepts, split = annotation.all_concepts, annotation.split
        of_category = membership[concepts]  # concept category
        annotated = of_category.any(0)  # category
        under_mask = intersection.double() @ of_category.double() > 0  # unit category
        self.intersection[split][units[:, None], concepts] += intersection
        self.mask_pixels_concept[split][units[:, None], concepts] += area[:, None].expand(-1, len(concepts))
        self.mask_pixels_annotated[split][units] += area[:, None] * annotated
        self.mask_pixels_under_mask[split][units] += area[:, None] * under_mask
        self.mask_pixels[split][units] += area


def intersections(
    mask: Bool[Tensor, "unit y x"], annotation: Annotation
) -> tuple[Int64[Tensor, "unit any_concept"], Int64[Tensor, " unit"]]:
    """Pixels in both mask and concept, and pixels in the mask, of one image.

    One matrix product of zeros and ones: exact in float32 while an image has at most 2^24 pixels, and
    done in float64 beyond.
    """
    kind = torch.float32 if mask[0].numel() <= EXACT_IN_FLOAT32 else torch.float64
    flat = mask.flatten(1).to(kind)  # unit yx
    area = flat.sum(1).long()
    by_pixels = (flat @ annotation.masks.flatten(1).to(kind).T).long()  # unit concept
    by_image = area[:, None].expand(-1, len(annotation.image_concepts))
    return torch.cat([by_pixels, by_image], 1), area


def derangement(count: int, generator: torch.Generator) -> Int64[Tensor, " count"]:
    """A seeded permutation that moves everything: one cycle through a random order.

    Raises:
        ValueError: there are fewer than two things to move.
    """
    if count < 2:
        raise ValueError(f"{count} images cannot trade places, at least 2 are needed: set null_permutations=0")
    order = torch.randperm(count, generator=generator)
    moved = torch.empty_like(order)
    moved[order] = order.roll(1)
    return moved


def largest(values: Float[Tensor, "image unit"], count: int) -> Float[Tensor, "rank unit"]:
    """The `count` largest values of every unit, or all where there are fewer, in descending order."""
    return values.topk(min(count, len(values)), dim=0).values

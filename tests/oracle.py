"""The numbers of a dissection, straight from their definitions: slow, plain, and in no hurry.

Nothing here imports the project, so that what it says is independent of the code it judges. Counts are
Python ints, positions and weights are fractions. Images, units, concepts are looped over; only the pixels of
one image are an array.

Words: a cell is one value of an activation map (`h w`), a pixel one of a label map (`y x`).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cache
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int

MaskOrder = Literal["upsample_first", "threshold_first"]
Upsampling = Literal["resize", "receptive_field"]
Union = Literal["annotated", "all", "under_mask", "concept"]

COUNTS = (
    "intersection",  # (unit, concept, split): pixels of mask and label
    "mask_pixels_concept",  # (unit, concept, split): mask pixels over images that hold the concept
    "mask_pixels_annotated",  # (unit, category, split): over images annotated for the category
    "mask_pixels_under_mask",  # (unit, category, split): over images where a label of it lies under the mask
    "mask_pixels",  # (unit, split): over all images
)


@dataclass
class Annotated:
    """The labels of one image.

    Attributes:
        split: The part of the data set the image belongs to.
        height: Rows of the label maps.
        width: Columns of the label maps.
        planes: Label numbers, 0 = none; any categories mixed.
        image_concepts: Labels of the whole image: each covers every pixel.
    """

    split: str
    height: int
    width: int
    planes: list[Int[np.ndarray, "y x"]] = field(default_factory=list)
    image_concepts: list[int] = field(default_factory=list)

    def __post_init__(self):
        for plane in self.planes:
            if plane.shape != (self.height, self.width):
                raise ValueError(f"a plane is {plane.shape}, must be {(self.height, self.width)}")

    def concept_pixels(self) -> dict[int, Bool[np.ndarray, "y x"]]:
        """The pixels of each concept the image holds; one that stands in several planes is there once."""
        pixels = {}
        for concept in self.image_concepts:
            if concept != 0:
                pixels[int(concept)] = np.ones((self.height, self.width), bool)
        for plane in self.planes:
            for concept in np.unique(plane).tolist():
                if concept != 0:
                    pixels[concept] = pixels.get(concept, False) | (plane == concept)
        return pixels


class Geometry(NamedTuple):
    """Where a layer's cells look: cell (i, j) is centered on input pixel (offset + i * stride), 0 = first."""

    input_height: int
    input_width: int
    offset_y: float
    offset_x: float
    stride_y: float
    stride_x: float


# ---------------------------------------------------------------------------------------------- thresholds


def threshold(cells: Float32[np.ndarray, " cells"], quantile: float | str) -> tuple[np.float32, int]:
    """T = the (k+1)-th largest cell, k = floor(quantile * N), and how many cells lie strictly above it.

    The quantile is read as the decimal it is written as: .005 of 200 cells is 1.
    """
    cells = np.asarray(cells).ravel()
    if np.isnan(cells).any():
        raise ValueError("a cell is NaN: it has no place in an order")
    k = math.floor(Fraction(str(quantile)) * len(cells))
    if not 0 <= k < len(cells):
        raise ValueError(f"quantile is {quantile} of {len(cells)} cells, must lie in [0, 1) of at least one")
    value = np.sort(cells)[::-1][k]
    return value, int((cells > value).sum())


# --------------------------------------------------------------------------------------------------- masks


class Between(NamedTuple):
    """A place on one axis of the grid: `weight` of the way from cell `low` to cell `high`."""

    low: int
    high: int
    weight: Fraction


@cache
def resize_axis(cells: int, pixels: int) -> list[Between]:
    """Half-pixel centers (align_corners=False): pixel y stands at (y + 1/2) * h/H - 1/2, clamped."""
    half = Fraction(1, 2)
    return [clamp((y + half) * cells / pixels - half, cells) for y in range(pixels)]


@cache
def receptive_field_axis(cells: int, pixels: int, input_pixels: int, offset: float, stride: float) -> list[Between]:
    """Pixel y is input pixel p = (y + 1/2) * input/H - 1/2, which is cell (p - offset)/stride, clamped."""
    half = Fraction(1, 2)
    positions = [(y + half) * input_pixels / pixels - half for y in range(pixels)]
    return [clamp((p - Fraction(offset)) / Fraction(stride), cells) for p in positions]


def clamp(position: Fraction, cells: int) -> Between:
    position = min(max(position, Fraction(0)), Fraction(cells - 1))
    low = math.floor(position)
    return Between(low, min(low + 1, cells - 1), position - low)


def axes(
    grid: tuple[int, int], size: tuple[int, int], upsampling: Upsampling, geometry: Geometry | None
) -> tuple[list[Between], list[Between]]:
    """Where each row and each column of pixels stands on the grid of cells."""
    (h, w), (height, width) = grid, size
    if upsampling == "resize":
        return resize_axis(h, height), resize_axis(w, width)
    if upsampling == "receptive_field" and geometry is not None:
        g = Geometry(*geometry)
        return (
            receptive_field_axis(h, height, g.input_height, g.offset_y, g.stride_y),
            receptive_field_axis(w, width, g.input_width, g.offset_x, g.stride_x),
        )
    raise ValueError(f"upsampling is {upsampling!r} with geometry {geometry}: resize, or receptive_field and one")


def beside(flags: Bool[np.ndarray, "h w"]) -> Bool[np.ndarray, "h w"]:
    """Cells that are flagged, or that one of the eight around them is."""
    height, width = flags.shape
    found = np.zeros_like(flags)
    for i in range(height):
        for j in range(width):
            found[i, j] = flags[max(i - 1, 0) : i + 2, max(j - 1, 0) : j + 2].any()
    return found


def mask(
    activation: Float32[np.ndarray, "h w"],
    threshold: float,
    size: tuple[int, int],
    mask_order: MaskOrder = "upsample_first",
    upsampling: Upsampling = "resize",
    geometry: Geometry | None = None,
    exact: bool = False,
) -> Bool[np.ndarray, "y x"]:
    """The pixels that belong to the unit in this image.

    `upsample_first`: bilinear(A) > T. `threshold_first`: bilinear(A > T) > 1/2. Both strictly, on the real
    numbers that the float32 cells stand for.

    Args:
        activation: The raw map A.
        threshold: T, a float32.
        size: Height and width of the label map.
        mask_order: What comes first.
        upsampling: How pixels are placed on the grid.
        geometry: The layer's receptive field, for `upsampling="receptive_field"`.
        exact: Evaluate every pixel in fractions. Otherwise floats decide where they certainly can.
    """
    rows, columns = axes(activation.shape, size, upsampling, geometry)
    if mask_order == "upsample_first":
        if exact:
            return mask_of(lambda y, x: exact_value(activation, y, x) > Fraction(float(threshold)), rows, columns)
        return upsample_first(activation, threshold, rows, columns)
    if mask_order == "threshold_first":
        above = (activation > np.float32(threshold)).astype(np.int64)
        if exact:
            return mask_of(lambda y, x: exact_value(above, y, x) > Fraction(1, 2), rows, columns)
        return threshold_first(above, rows, columns)
    raise ValueError(f"mask_order is {mask_order!r}, must be upsample_first or threshold_first")


def mask_of(is_above, rows: list[Between], columns: list[Between]) -> Bool[np.ndarray, "y x"]:
    return np.array([[is_above(y, x) for x in columns] for y in rows], bool)


def exact_value(cells: np.ndarray, y: Between, x: Between) -> Fraction:
    """Bilinear interpolation between four cells, in fractions."""

    def cell(i: int, j: int) -> Fraction:
        return Fraction(float(cells[i, j]))

    upper = (1 - x.weight) * cell(y.low, x.low) + x.weight * cell(y.low, x.high)
    lower = (1 - x.weight) * cell(y.high, x.low) + x.weight * cell(y.high, x.high)
    return (1 - y.weight) * upper + y.weight * lower


def lerp(cells: np.ndarray, rows: list[Between], columns: list[Between], scale_y=1, scale_x=1) -> np.ndarray:
    """Bilinear interpolation at all pixels, each axis times its scale; weights get the type of the cells."""

    def weights(axis: list[Between], scale: int) -> tuple[np.ndarray, np.ndarray]:
        number = float if cells.dtype == np.float64 else int
        low = [number((1 - place.weight) * scale) for place in axis]
        high = [number(place.weight * scale) for place in axis]
        return np.array(low, cells.dtype), np.array(high, cells.dtype)

    left, right = weights(columns, scale_x)
    upper, lower = weights(rows, scale_y)
    across = cells[:, [x.low for x in columns]] * left + cells[:, [x.high for x in columns]] * right  # h x
    return across[[y.low for y in rows]] * upper[:, None] + across[[y.high for y in rows]] * lower[:, None]


def excess(
    activation: Float32[np.ndarray, "h w"],
    threshold: float,
    size: tuple[int, int],
    upsampling: Upsampling = "resize",
    geometry: Geometry | None = None,
) -> Float64[np.ndarray, "y x"]:
    """bilinear(A - T) in float64: how clearly a pixel lies above or below, for tests that allow near ties."""
    rows, columns = axes(activation.shape, size, upsampling, geometry)
    return lerp(activation.astype(np.float64) - np.float64(threshold), rows, columns)


def upsample_first(activation, threshold, rows: list[Between], columns: list[Between]) -> Bool[np.ndarray, "y x"]:
    """bilinear(A) > T as bilinear(A - T) > 0: cells equal to T give 0 exactly, whatever the weights.

    A pixel's value passes through 7 roundings, each off by at most 2^-53 of bilinear(|A - T|). Where the
    value is larger than that its sign is certain; the few other pixels are evaluated in fractions.
    """
    difference = activation.astype(np.float64) - np.float64(threshold)
    value = lerp(difference, rows, columns)
    magnitude = lerp(np.abs(difference), rows, columns)
    above = value > 0
    for i, j in np.argwhere((magnitude > 0) & (np.abs(value) <= 2.0**-49 * magnitude)):
        above[i, j] = exact_value(activation, rows[i], columns[j]) > Fraction(float(threshold))
    return above


def threshold_first(above: Int[np.ndarray, "h w"], rows, columns) -> Bool[np.ndarray, "y x"]:
    """bilinear(A > T) > 1/2 in integers: the weights of an axis times their common denominator."""
    scale_y = math.lcm(*(y.weight.denominator for y in rows))
    scale_x = math.lcm(*(x.weight.denominator for x in columns))
    dtype = np.int64 if 2 * scale_y * scale_x < 2**62 else object  # a float geometry makes long fractions
    value = lerp(above.astype(dtype), rows, columns, scale_y, scale_x)
    return (2 * value > scale_y * scale_x).astype(bool)


# -------------------------------------------------------------------------------------------------- counts


def tally(
    activations: Float32[np.ndarray, "image unit h w"],
    thresholds: Sequence[float],
    annotated: Sequence[Annotated],
    category: Mapping[int, str],
    mask_order: MaskOrder = "upsample_first",
    upsampling: Upsampling = "resize",
    geometry: Geometry | None = None,
    pairing: Sequence[int] | None = None,
) -> dict[str, Counter]:
    """Count the pixels where each unit's mask meets each concept: the five counts of `COUNTS`.

    What is not in a counter is 0, and no 0 is in it.

    Args:
        activations: The raw maps.
        thresholds: T of each unit.
        annotated: The labels of each image.
        category: Every concept's own category.
        mask_order: As in `mask`.
        upsampling: As in `mask`.
        geometry: As in `mask`.
        pairing: Image i's masks meet the labels of image pairing[i], at its size and in its split.
    """
    counts = {name: Counter() for name in COUNTS}
    pairing = range(len(activations)) if pairing is None else pairing
    if len(pairing) != len(activations):
        raise ValueError(f"{len(activations)} images have {len(pairing)} partners, must be one each")
    for image, partner in enumerate(pairing):
        labels = annotated[partner]
        pixels = labels.concept_pixels()
        annotated_categories = {category[concept] for concept in pixels}
        for unit, activation in enumerate(activations[image]):
            if activation.max() <= thresholds[unit]:
                continue  # no mean of cells is above the largest: the mask is empty
            size = (labels.height, labels.width)
            unit_mask = mask(activation, thresholds[unit], size, mask_order, upsampling, geometry)
            mask_pixels = int(unit_mask.sum())
            if mask_pixels == 0:
                continue
            counts["mask_pixels"][unit, labels.split] += mask_pixels
            for name in annotated_categories:
                counts["mask_pixels_annotated"][unit, name, labels.split] += mask_pixels
            categories_under_mask = set()
            for concept, concept_pixels in pixels.items():
                counts["mask_pixels_concept"][unit, concept, labels.split] += mask_pixels
                intersection = int((unit_mask & concept_pixels).sum())
                if intersection > 0:
                    counts["intersection"][unit, concept, labels.split] += intersection
                    categories_under_mask.add(category[concept])
            for name in categories_under_mask:
                counts["mask_pixels_under_mask"][unit, name, labels.split] += mask_pixels
    return counts


def add(tallies: Iterable[dict[str, Counter]]) -> dict[str, Counter]:
    """The tally of several shards together."""
    total = {name: Counter() for name in COUNTS}
    for counts in tallies:
        for name in COUNTS:
            total[name].update(counts[name])
    return total


def label_areas(annotated: Iterable[Annotated]) -> dict[tuple[int, str], tuple[int, int]]:
    """(concept, split) -> label pixels G[c], and the images that hold the concept."""
    areas: dict[tuple[int, str], tuple[int, int]] = {}
    for labels in annotated:
        for concept, concept_pixels in labels.concept_pixels().items():
            pixels, images = areas.get((concept, labels.split), (0, 0))
            areas[concept, labels.split] = (pixels + int(concept_pixels.sum()), images + 1)
    return areas


# ------------------------------------------------------------------------------------ intersection over union


def mask_area(
    counts: dict[str, Counter],
    unit: int,
    concept: int,
    own_category: str,
    union: Union,
    splits: Iterable[str],
) -> int:
    """A': the mask pixels over the images that this union takes into account."""
    if union == "annotated":
        return sum(counts["mask_pixels_annotated"][unit, own_category, split] for split in splits)
    if union == "all":
        return sum(counts["mask_pixels"][unit, split] for split in splits)
    if union == "under_mask":
        return sum(counts["mask_pixels_under_mask"][unit, own_category, split] for split in splits)
    if union == "concept":
        return sum(counts["mask_pixels_concept"][unit, concept, split] for split in splits)
    raise ValueError(f"union is {union!r}, must be annotated, all, under_mask or concept")


def ious(
    counts: dict[str, Counter],
    areas: Mapping[tuple[int, str], tuple[int, int]],
    category: Mapping[int, str],
    num_units: int,
    union: Union = "annotated",
    splits: Sequence[str] = ("train", "val"),
) -> dict[tuple[int, int], tuple[int, int, float]]:
    """(unit, concept) -> intersection, union, IoU = I / (A' + G[c] - I), summed over the splits first.

    Every unit meets every concept of `category`; where the union is empty the IoU is 0.
    """
    result = {}
    for unit in range(num_units):
        for concept, own_category in category.items():
            intersection = sum(counts["intersection"][unit, concept, split] for split in splits)
            label_pixels = sum(areas.get((concept, split), (0, 0))[0] for split in splits)
            covered = mask_area(counts, unit, concept, own_category, union, splits) + label_pixels - intersection
            result[unit, concept] = (intersection, covered, iou(intersection, covered))
    return result


def iou(intersection: int, union: int) -> float:
    return intersection / union if union > 0 else 0.0


# ----------------------------------------------------------------------------------------------- detectors


class Detector(NamedTuple):
    """The best concept of a unit within one category."""

    unit: int
    category: str
    concept: int
    intersection: int
    union: int
    iou: float
    is_detector: bool
    is_best_overall: bool


class LayerSummary(NamedTuple):
    """Counts of one category: by the units' best concept overall, and by the best within the category."""

    num_detectors: int
    num_unique_concepts: int
    num_detectors_within_category: int
    num_unique_concepts_within_category: int


def detectors(
    unit_ious: Mapping[tuple[int, int], tuple[int, int, float]],
    category: Mapping[int, str],
    min_iou: float | str = 0.04,
) -> dict[tuple[int, str], Detector]:
    """(unit, category) -> the concept of largest IoU, ties to the lowest concept; a detector if > min_iou.

    IoUs are compared as fractions of counts, not as floats.
    """

    def exactly(unit: int, concept: int) -> Fraction:
        intersection, union, _ = unit_ious[unit, concept]
        return Fraction(intersection, union) if union > 0 else Fraction(0)

    def best(unit: int, concepts: Iterable[int]) -> int:
        return min(concepts, key=lambda concept: (-exactly(unit, concept), concept))

    concepts_of: dict[int, list[int]] = {}
    for unit, concept in sorted(unit_ious):
        concepts_of.setdefault(unit, []).append(concept)
    rows = {}
    for unit, concepts in concepts_of.items():
        best_overall = best(unit, concepts)
        for name in sorted({category[concept] for concept in concepts}):
            concept = best(unit, [c for c in concepts if category[c] == name])
            is_detector = exactly(unit, concept) > Fraction(str(min_iou))
            rows[unit, name] = Detector(
                unit, name, concept, *unit_ious[unit, concept], is_detector, concept == best_overall
            )
    return rows


def layer_summary(rows: Mapping[tuple[int, str], Detector]) -> dict[str, LayerSummary]:
    """Category -> its counts. A concept has one category, so that a layer's totals are sums over these."""
    summary = {}
    for name in sorted({name for _, name in rows}):
        within = [row for row in rows.values() if row.category == name and row.is_detector]
        overall = [row for row in within if row.is_best_overall]
        summary[name] = LayerSummary(
            len(overall),
            len({row.concept for row in overall}),
            len(within),
            len({row.concept for row in within}),
        )
    return summary


# --------------------------------------------------------------------------------------------- uncertainty


def jackknife(
    intersections: Sequence[int], mask_areas: Sequence[int], label_pixels: Sequence[int]
) -> tuple[float, float]:
    """The 95% interval of an IoU from one I, A' and G a shard: leave each shard out once.

    Variance (S - 1)/S * sum (theta_s - mean)^2; theta -+ 1.96 of its root, clipped to [0, 1].
    """
    shards = len(intersections)
    if shards < 2:
        raise ValueError(f"{shards} shard: leaving one out needs at least 2")

    def without(left_out: int | None) -> float:
        kept = [s for s in range(shards) if s != left_out]
        intersection = sum(int(intersections[s]) for s in kept)
        area = sum(int(mask_areas[s]) + int(label_pixels[s]) for s in kept)
        return iou(intersection, area - intersection)

    theta = without(None)
    replicates = [without(s) for s in range(shards)]
    mean = math.fsum(replicates) / shards
    variance = (shards - 1) / shards * math.fsum((r - mean) ** 2 for r in replicates)
    margin = 1.959963984540054 * math.sqrt(variance)
    return max(0.0, theta - margin), min(1.0, theta + margin)


def best_ious(unit_ious: Mapping[tuple[int, int], tuple[int, int, float]]) -> list[float]:
    """The best IoU of each unit: of a null tally, what `p_values` pools."""
    best: dict[int, float] = {}
    for (unit, _), (_, _, value) in unit_ious.items():
        best[unit] = max(best.get(unit, 0.0), value)
    return [best[unit] for unit in sorted(best)]


def p_values(row_ious: Sequence[float], null_best: Sequence[float]) -> list[float]:
    """(1 + how many null IoUs reach it) / (1 + how many there are), for each IoU."""
    return [(1 + sum(null >= value for null in null_best)) / (1 + len(null_best)) for value in row_ious]

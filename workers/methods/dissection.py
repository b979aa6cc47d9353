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

Masks are sparse, for few cells exceed a threshold: only pixels beside such a cell are looked at, and a
mask is the list of its pixels.
"""

from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from itertools import accumulate, pairwise
from math import floor, lcm
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Float32, Float64, Int64, Shaped
from torch import Tensor

from workers.nn.flags import places_of

MaskOrder = Literal["upsample_first", "threshold_first"]

EXACT_IN_FLOAT32 = 2**24
"""Whole numbers up to here add up exactly in float32."""

EXACT_IN_FLOAT64 = 2**52
"""Halves of whole numbers up to here add up exactly in float64."""

ROUNDING = 2.0**-48
"""Above the rounding error of a bilinear sum in float64, relative to the sum of magnitudes: ten roundings."""

CANDIDATES = 2**18
"""Pixels that are looked at together: bounds the memory they take."""


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


@dataclass(frozen=True)
class Gaps:
    """The gaps between neighboring cells along one axis, and the pixels that lie in each.

    Gap g lies between cells g - 1 and g; the first and the last have but the one cell, at which pixels
    beyond it are clamped. The pixels of a gap are neighbors: in slot s lies its first pixel + s. Gaps
    without pixels are left out.

    Attributes:
        axis: the interpolation, pixel by pixel.
        places: of every gap, where it is among those that have pixels; else how many those are.
        cells: the cell below and the cell above each gap.
        first: the first pixel of each gap.
        weights: of these cells, at each pixel of the gap; NaN in a slot that holds none, so that no
            comparison is true there.
    """

    axis: Interpolation
    places: Int64[Tensor, " every_gap"]
    cells: Int64[Tensor, "2 gap"]
    first: Int64[Tensor, " gap"]
    weights: Float64[Tensor, "2 slot gap"]


@lru_cache(maxsize=256)
def gaps(cells: int, pixels: int, alignment: Alignment | None, device: torch.device) -> Gaps:
    """The gaps along one axis; arguments as of `interpolation`."""
    axis = interpolation(cells, pixels, alignment)
    inside: dict[int, list[int]] = {}  # gap -> its pixels
    for pixel, place in enumerate(axis.places):
        gap = 0 if place == 0 else cells if place == cells - 1 else floor(place) + 1
        inside.setdefault(gap, []).append(pixel)
    found = torch.tensor(list(inside))
    between = torch.stack([found - 1, found]).clamp(0, cells - 1)
    weights = torch.full((2, max(map(len, inside.values())), len(found)), torch.nan, dtype=torch.float64)
    for place, of_gap in enumerate(inside.values()):
        below, above = between[:, place].tolist()
        weights[0, : len(of_gap), place] = axis.weights[of_gap, below]
        weights[1, : len(of_gap), place] = axis.weights[of_gap, above] if above > below else 0.0
    places = torch.full((cells + 1,), len(found))
    places[found] = torch.arange(len(found))
    first = torch.tensor([of_gap[0] for of_gap in inside.values()])
    return Gaps(axis, places.to(device), between.to(device), first.to(device), weights.to(device))


@dataclass(frozen=True)
class MaskPixels:
    """Masks of many maps at one size: the pixels in them.

    Attributes:
        pixel: places in the label map, row-major; those of one mask after another, each once.
        offsets: where each mask's pixels begin, and where the last one's end.
    """

    pixel: Int64[Tensor, " mask_pixel"]
    offsets: Int64[Tensor, " map_and_end"]

    @property
    def area(self) -> Int64[Tensor, " map"]:
        """Pixels in each mask."""
        return self.offsets.diff()

    @property
    def map(self) -> Int64[Tensor, " mask_pixel"]:
        """Whose mask each pixel is in, ascending."""
        return torch.repeat_interleave(self.area)

    def split(self, maps: list[int]) -> "list[MaskPixels]":
        """The masks of so many maps, of so many that follow, and so on."""
        first = [0, *accumulate(maps)]
        begin = self.offsets[first].tolist()
        return [
            MaskPixels(self.pixel[begins:ends], self.offsets[one : next_one + 1] - begins)
            for (one, next_one), (begins, ends) in zip(pairwise(first), pairwise(begin), strict=True)
        ]


def mask_pixels(
    activation: Float32[Tensor, "map h w"],
    threshold: Float32[Tensor, " map"],
    size: tuple[int, int],
    order: MaskOrder = "upsample_first",
    alignment: tuple[Alignment, Alignment] | None = None,
) -> MaskPixels:
    """The pixels in the masks of many activation maps.

    A pixel can only be in a mask if one of the four cells that it lies between exceeds the threshold, so
    only the pixels of such quads of cells are looked at.

    Args:
        activation: raw maps, of any units and images.
        threshold: T_u of each map's unit.
        size: height and width of the label map.
        order: upsample, then compare (Bau et al. 2017), or compare, then upsample (the survey's Eq. 18).
        alignment: receptive-field geometry of the rows and of the columns; None for `resize`.
    """
    device = activation.device
    if activation.shape[1:] == (1, 1):  # of a fully connected layer: all pixels or none
        above = activation.flatten() > threshold
        pixels = torch.arange(size[0] * size[1], device=device)
        return MaskPixels(pixels.repeat(int(above.sum())), F.pad(above.cumsum(0) * len(pixels), (1, 0)))
    rows = gaps(activation.shape[-2], size[0], alignment and alignment[0], device)
    columns = gaps(activation.shape[-1], size[1], alignment and alignment[1], device)
    quads = _active_quads(activation > threshold[:, None, None], rows, columns)
    portion = max(1, CANDIDATES // (rows.weights.shape[1] * columns.weights.shape[1]))
    parts = [
        _pixels_of_quads(activation, threshold, order, rows, columns, *part)
        for part in zip(*(axis.split(portion) for axis in quads), strict=True)
    ]
    of_map, pixel = (torch.cat(part) for part in zip(*parts, strict=True))
    return MaskPixels(pixel, torch.searchsorted(of_map, torch.arange(len(activation) + 1, device=device)))


def binarize(
    activation: Float32[Tensor, "unit h w"],
    threshold: Float32[Tensor, " unit"],
    size: tuple[int, int],
    order: MaskOrder = "upsample_first",
    alignment: tuple[Alignment, Alignment] | None = None,
) -> Bool[Tensor, "unit y x"]:
    """The masks of `mask_pixels`, all pixels of them."""
    if activation.shape[1:] == (1, 1):
        return (activation > threshold[:, None, None]).expand(-1, *size)
    found = mask_pixels(activation, threshold, size, order, alignment)
    mask = torch.zeros(len(activation), size[0] * size[1], dtype=torch.bool, device=activation.device)
    mask[found.map, found.pixel] = True
    return mask.view(-1, *size)


def _active_quads(
    above: Bool[Tensor, "map h w"], rows: Gaps, columns: Gaps
) -> tuple[Int64[Tensor, " quad"], Int64[Tensor, " quad"], Int64[Tensor, " quad"]]:
    """Map, gap of the rows and gap of the columns, in this order, where a cell exceeds the threshold."""
    _, h, w = above.shape
    height, width = len(rows.first) + 1, len(columns.first) + 1  # the last gap stands for all without pixels
    active = torch.zeros(len(above), height, width, dtype=torch.bool, device=above.device)
    cell = places_of(above.flatten())
    of_map, i, j = cell // (h * w), cell // w % h, cell % w
    for row in (rows.places[i], rows.places[i + 1]):
        for column in (columns.places[j], columns.places[j + 1]):
            active.view(-1).index_fill_(0, (of_map * height + row) * width + column, True)
    active[:, -1] = active[:, :, -1] = False
    quad = places_of(active.view(-1))
    return quad // (height * width), quad // width % height, quad % width


def _select(values: Shaped[Tensor, "*kind place"], places: Int64[Tensor, " chosen"]) -> Shaped[Tensor, "*kind chosen"]:
    """values[..., places], line by line, which is many times as fast."""
    chosen = values.new_empty(*values.shape[:-1], len(places))
    for line, into in zip(values.flatten(0, -2), chosen.flatten(0, -2), strict=True):
        torch.index_select(line, 0, places, out=into)
    return chosen


def _pixels_of_quads(
    activation: Float32[Tensor, "map h w"],
    threshold: Float32[Tensor, " map"],
    order: MaskOrder,
    rows: Gaps,
    columns: Gaps,
    of_map: Int64[Tensor, " quad"],
    row: Int64[Tensor, " quad"],
    column: Int64[Tensor, " quad"],
) -> tuple[Int64[Tensor, " mask_pixel"], Int64[Tensor, " mask_pixel"]]:
    """Map and pixel of those pixels of some quads that are in a mask; arguments as of `mask_pixels`."""
    _, h, w = activation.shape
    i, j = _select(rows.cells, row), _select(columns.cells, column)  # 2 quad
    cell = (of_map * h + i)[:, None] * w + j  # 2 2 quad
    excess = activation.flatten().index_select(0, cell.flatten()).view(cell.shape).double()
    excess -= threshold.index_select(0, of_map).double()
    if order == "threshold_first":
        excess = (excess > 0).double() - 0.5
    down, across = _select(rows.weights, row), _select(columns.weights, column)  # 2 slot quad
    left, right = (down[0] * excess[0, side] + down[1] * excess[1, side] for side in (0, 1))  # slot_y quad
    total = (left[:, None] * across[0]).addcmul_(right[:, None], across[1])  # slot_y slot_x quad
    error = _error(excess, order, rows.axis, columns.axis)
    mask = total > error
    near = mask ^ (total > -error)
    if near.numel() and near.view(torch.uint8).max():  # many times as fast as any()
        y, x, quad = near.nonzero(as_tuple=True)
        place = (of_map[quad], rows.first[row[quad]] + y, columns.first[column[quad]] + x)
        weights = down[:, None, y, quad] * across[None, :, x, quad]  # 2 2 near
        magnitude = (weights * excess[..., quad].abs()).sum((0, 1))
        value = total[y, x, quad]
        mask[y, x, quad] = value > 0
        tie = ((magnitude > 0) & (value.abs() <= ROUNDING * magnitude)).nonzero().flatten()
        exact = [
            _exceeds(activation[m], threshold[m], order, rows.axis.cells(i), columns.axis.cells(j))
            for m, i, j in zip(*(axis[tie].tolist() for axis in place), strict=True)
        ]
        mask[y[tie], x[tie], quad[tie]] = torch.tensor(exact, dtype=torch.bool, device=mask.device)
    quad, slot = mask.flatten(0, 1).T.contiguous().nonzero(as_tuple=True)
    width = len(columns.axis.places)
    slot_y, slot_x = (torch.arange(size, device=mask.device) for size in mask.shape[:2])
    corner = rows.first[row] * width + columns.first[column]  # quad
    within = (slot_y[:, None] * width + slot_x).flatten()
    return of_map.index_select(0, quad), corner.index_select(0, quad) + within.index_select(0, slot)


def _error(
    excess: Float64[Tensor, "2 2 quad"], order: MaskOrder, rows: Interpolation, columns: Interpolation
) -> Float64[Tensor, " quad"]:
    """How far from zero a quad's sums must be for their sign to be sure; zero where no sum is rounded amiss."""
    scale = float(rows.denominator * columns.denominator)
    if order == "threshold_first" and scale < EXACT_IN_FLOAT64:
        return excess.new_zeros(excess.shape[-1])
    error = ROUNDING * scale * excess.abs().amax((0, 1))
    return error.masked_fill(excess.amin((0, 1)) >= 0, 0.0)  # terms that are not negative add up to zero or more


def _exceeds(
    activation: Float32[Tensor, "h w"],
    threshold: Float32[Tensor, ""],
    order: MaskOrder,
    rows: list[tuple[int, Fraction]],
    columns: list[tuple[int, Fraction]],
) -> bool:
    """Whether one pixel is in the mask, without rounding, from the cells it lies between."""
    level = Fraction(threshold.item())
    excess = Fraction(0)
    for i, down in rows:
        for j, across in columns:
            above = Fraction(activation[i, j].item()) - level
            excess += down * across * (above if order == "upsample_first" else Fraction(1 if above > 0 else -1))
    return excess > 0


@dataclass(frozen=True)
class Annotation:
    """The labels of one image, concepts by their place in the data set's list.

    Attributes:
        masks: where each concept lies that is labelled by pixels.
        concepts: which concepts those are, each once.
        image_concepts: concepts that cover the whole label map, none of them in `concepts`.
        split: number of the image's split.
    """

    masks: Bool[Tensor, "y x concept"]
    concepts: Int64[Tensor, " concept"]
    image_concepts: Int64[Tensor, " image_concept"]
    split: int

    @property
    def size(self) -> tuple[int, int]:
        return self.masks.shape[0], self.masks.shape[1]

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
        masks: MaskPixels,
        units: Int64[Tensor, " map"],
        annotation: Annotation,
        membership: Bool[Tensor, "all_concepts category"],
    ) -> None:
        """Count one image.

        Args:
            masks: masks of some units, at the size of the annotation; other units' masks count nothing.
            units: which units those are.
            annotation: the labels the masks meet.
            membership: the category each of the concepts counted belongs to.
        """
        intersection, area = intersections(masks, annotation), masks.area[:, None]
        concepts, split = annotation.all_concepts, annotation.split
        of_category = membership[concepts]  # concept category
        under_mask = (intersection > 0).float() @ of_category.float() > 0  # map category
        cell = (units[:, None] * len(membership) + concepts).flatten()
        self.intersection[split].view(-1).index_add_(0, cell, intersection.flatten())
        self.mask_pixels_concept[split].view(-1).index_add_(0, cell, area.expand_as(intersection).flatten())
        self.mask_pixels_annotated[split].index_add_(0, units, area * of_category.any(0))
        self.mask_pixels_under_mask[split].index_add_(0, units, area * under_mask)
        self.mask_pixels[split].index_add_(0, units, area[:, 0])


def intersections(masks: MaskPixels, annotation: Annotation) -> Int64[Tensor, "map any_concept"]:
    """Pixels in both mask and concept, of one image.

    Zeros and ones are added up, exact in float32 while an image has at most 2^24 pixels, and done in
    float64 beyond.
    """
    by_image = masks.area[:, None].expand(-1, len(annotation.image_concepts))
    if not len(annotation.concepts):  # embedding_bag cannot add up rows of nothing
        return by_image
    labels = annotation.masks.flatten(0, 1)  # yx concept
    kind = torch.float32 if len(labels) <= EXACT_IN_FLOAT32 else torch.float64
    by_pixels = F.embedding_bag(masks.pixel, labels.to(kind), masks.offsets, mode="sum", include_last_offset=True)
    return torch.cat([by_pixels.long(), by_image], 1)


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

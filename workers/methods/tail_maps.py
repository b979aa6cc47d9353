"""Tail maps: the activation maps that can still hold a threshold or a mask, and nothing else.

T_u lies far out in the tail, so that most maps never reach it. A bound B_u < T_u from a pilot decides,
while the network runs, which maps are kept; the rest is summed up in a few numbers a unit. Cells above
the bound and cells equal to it are counted, so that a bound that was too high shows.

Of a map only the cells above the bound are kept, and those beside one: a pixel can only be in a mask if
one of the four cells that it lies between exceeds T_u, and then the other three are its neighbors.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields

import torch
from jaxtyping import Bool, Float32, Float64, Int64
from torch import Tensor

from workers.nn.flags import places_of


@dataclass
class UnitStatistics:
    """Counts and extremes of every unit over some images; int64 counts, float64 sums."""

    num_above: Int64[Tensor, " unit"]
    num_at: Int64[Tensor, " unit"]
    max: Float32[Tensor, " unit"]
    min: Float32[Tensor, " unit"]
    sum: Float64[Tensor, " unit"]

    @classmethod
    def none(cls, units: int) -> "UnitStatistics":
        return cls(
            torch.zeros(units, dtype=torch.int64),
            torch.zeros(units, dtype=torch.int64),
            torch.full((units,), -torch.inf),
            torch.full((units,), torch.inf),
            torch.zeros(units, dtype=torch.float64),
        )

    def __add__(self, other: "UnitStatistics") -> "UnitStatistics":
        return UnitStatistics(
            self.num_above + other.num_above,
            self.num_at + other.num_at,
            torch.maximum(self.max, other.max),
            torch.minimum(self.min, other.min),
            self.sum + other.sum,
        )


@dataclass(frozen=True)
class TailMaps:
    """Maps of some images whose maximum exceeds their unit's bound, in the order of image and unit."""

    image: Int64[Tensor, " map"]
    unit: Int64[Tensor, " map"]
    max: Float32[Tensor, " map"]
    map: Float32[Tensor, "map cell"]


@dataclass(frozen=True)
class SparseMaps:
    """Tail maps of which only the cells that can matter to a mask are there.

    Attributes:
        kept: which cells those are.
        value: what they hold, map after map, row-major.
    """

    image: Int64[Tensor, " map"]
    unit: Int64[Tensor, " map"]
    max: Float32[Tensor, " map"]
    kept: Bool[Tensor, "map cell"]
    value: Float32[Tensor, " kept_cell"]


@dataclass(frozen=True)
class TailCells:
    """Cells above their unit's bound."""

    unit: Int64[Tensor, " tail_cell"]
    value: Float32[Tensor, " tail_cell"]


@dataclass(frozen=True)
class Cut:
    """What is kept of a batch, on the CPU; `maps.kept` has no columns where maps are not wanted."""

    maps: SparseMaps
    cells: TailCells
    statistics: UnitStatistics


PORTION = 2**23
"""Cells of a batch that are looked at, and copied, at once: early layers have hundreds of millions."""


def portions(activation: Float32[Tensor, "image unit h w"]) -> Iterator[tuple[int, Float32[Tensor, "image unit h w"]]]:
    """Some images at a time, each time with the first one's place in the batch."""
    step = max(1, PORTION // activation[0].numel())
    for start in range(0, len(activation), step):
        yield start, activation[start : start + step]


def maps_above(activation: Float32[Tensor, "image unit h w"], bound: Float32[Tensor, " unit"]) -> TailMaps:
    """A copy of the maps whose maximum exceeds their unit's bound, on the activation's device."""
    cells = activation.flatten(2)  # image unit cell
    return _maps_above(cells, cells.amax(2), bound)


def _maps_above(
    cells: Float32[Tensor, "image unit cell"], largest: Float32[Tensor, "image unit"], bound: Float32[Tensor, " unit"]
) -> TailMaps:
    image, unit = (largest > bound).nonzero(as_tuple=True)
    row = image * len(bound) + unit
    return TailMaps(image, unit, largest.flatten()[row], cells.flatten(0, 1).index_select(0, row))


def cut_tail(
    activation: Float32[Tensor, "image unit h w"], bound: Float32[Tensor, " unit"], keep_maps: bool = True
) -> Cut:
    """The tail of a batch and the statistics of all its maps.

    Args:
        activation: raw maps.
        bound: B_u.
        keep_maps: False leaves the maps out: their images, units and maxima are kept, and the cells above.
    """
    parts = [_cut_portion(start, part, bound, keep_maps) for start, part in portions(activation)]
    statistics = parts[0].statistics
    for part in parts[1:]:
        statistics += part.statistics
    statistics.sum = _sums(activation.flatten(2)).cpu()  # of the batch at once, so that portions have no say
    cells = [part.cells for part in parts]
    tail_cells = TailCells(torch.cat([part.unit for part in cells]), torch.cat([part.value for part in cells]))
    return Cut(concatenate([part.maps for part in parts]), tail_cells, statistics)


def _cut_portion(
    start: int, activation: Float32[Tensor, "image unit h w"], bound: Float32[Tensor, " unit"], keep_maps: bool
) -> Cut:
    """What `cut_tail` says, of some images, the first of which has the place `start`."""
    cells = activation.flatten(2)  # image unit cell
    units, num_cells = cells.shape[1:]
    largest = cells.amax(2)  # image unit
    tail = _maps_above(cells, largest, bound)
    reached = places_of((tail.map >= bound[tail.unit][:, None]).flatten())
    value, unit = tail.map.flatten().index_select(0, reached), tail.unit.index_select(0, reached // num_cells)
    excess = value > bound.index_select(0, unit)
    above = excess.nonzero().flatten()
    num_at = torch.bincount(unit[~excess], minlength=units) + _cells_at(cells, largest, bound)
    tail_cells = TailCells(unit.index_select(0, above).cpu(), value.index_select(0, above).cpu())
    if keep_maps:
        kept = _with_neighbors(reached.index_select(0, above), len(tail.map), *activation.shape[2:])  # map cell
        kept_value = tail.map.flatten().index_select(0, places_of(kept.flatten()))
    else:
        kept, kept_value = torch.zeros_like(tail.map[:, :0], dtype=torch.bool), value[:0]
    maps = SparseMaps(*(of.cpu() for of in (start + tail.image, tail.unit, tail.max, kept, kept_value)))
    statistics = UnitStatistics(
        torch.bincount(tail_cells.unit, minlength=units),
        num_at.cpu(),
        largest.amax(0).cpu(),
        cells.amin(2).amin(0).cpu(),
        torch.zeros(units, dtype=torch.float64),  # of the whole batch, by the caller
    )
    return Cut(maps, tail_cells, statistics)


def _with_neighbors(places: Int64[Tensor, " place"], maps: int, h: int, w: int) -> Bool[Tensor, "{maps} {h*w}"]:
    """Flags of some cells of many maps, and of the up to eight cells around each."""
    flags = torch.zeros(maps, h + 2, w + 2, dtype=torch.bool, device=places.device)  # with a margin
    row = places // w  # of all maps, one below the other
    center = (row + row // h * 2 + 1) * (w + 2) + places % w + 1
    for down in (-1, 0, 1):
        for across in (-1, 0, 1):
            flags.view(-1).index_fill_(0, center + down * (w + 2) + across, True)
    return flags[:, 1:-1, 1:-1].flatten(1)


def concatenate(parts: Sequence[SparseMaps]) -> SparseMaps:
    """Maps one after another; none of them is copied where there is only one part."""
    if len(parts) == 1:
        return parts[0]
    columns = (torch.cat([getattr(part, field.name) for part in parts]) for field in fields(SparseMaps))
    return SparseMaps(*columns)


def spread(kept: Bool[Tensor, "map cell"], value: Float32[Tensor, " kept_cell"]) -> Float32[Tensor, "map cell"]:
    """Whole maps; cells that were not kept are minus infinity: no mask has a pixel beside them."""
    maps = torch.full(kept.shape, -torch.inf)
    maps.view(-1).index_copy_(0, places_of(kept.flatten()), value)
    return maps


def _cells_at(
    cells: Float32[Tensor, "image unit cell"], largest: Float32[Tensor, "image unit"], bound: Float32[Tensor, " unit"]
) -> Int64[Tensor, " unit"]:
    """Cells equal to the bound in maps that only just reach it, as those of a dead unit do."""
    image, unit = (largest == bound).nonzero(as_tuple=True)
    at = (cells[image, unit] == bound[unit][:, None]).sum(1)  # map
    return torch.zeros_like(bound, dtype=torch.int64).index_add_(0, unit, at)


SUMMED = 2**18
"""Cells that are widened to float64 at once: they stay in a processor's cache."""


def _sums(cells: Float32[Tensor, "image unit cell"]) -> Float64[Tensor, " unit"]:
    """The sum of every unit's cells, added up image after image, so that it does not depend on `SUMMED`."""
    few = cells.split(max(1, SUMMED // cells[0].numel()))
    return torch.cat([part.double().sum(2) for part in few]).cumsum(0)[-1]


def first_not_finite(activation: Float32[Tensor, "image unit h w"]) -> tuple[int, int] | None:
    """Image and unit of the first map that holds a NaN or an infinity; None if there is none."""
    if torch.isfinite(activation.sum()):
        return None  # a sum of large values may overflow, one with a NaN or an infinity is never finite
    bad = (~torch.isfinite(activation)).flatten(2).any(2).nonzero()
    return (int(bad[0, 0]), int(bad[0, 1])) if len(bad) else None


def sample_cells(activation: Float32[Tensor, "image unit h w"], most: int) -> Float32[Tensor, "sample unit"]:
    """A copy of a regular sample of at most about `most` cells a map, of one cell at least."""
    height, width = activation.shape[-2:]
    step = max(1, round((height * width / most) ** 0.5))
    top, left = min(step // 2, height - 1), min(step // 2, width - 1)
    return activation[:, :, top::step, left::step].transpose(0, 1).flatten(1).T.clone()

"""Tail maps: the activation maps that can still hold a threshold or a mask, and nothing else.

T_u lies far out in the tail, so that most maps never reach it. A bound B_u < T_u from a pilot decides,
while the network runs, which maps are kept; the rest is summed up in a few numbers a unit. Cells above
the bound and cells equal to it are counted, so that a bound that was too high shows.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float32, Float64, Int64
from torch import Tensor


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
    """Maps of a batch whose maximum exceeds their unit's bound, in the order of image and unit."""

    image: Int64[Tensor, " map"]
    unit: Int64[Tensor, " map"]
    max: Float32[Tensor, " map"]
    map: Float32[Tensor, "map cell"]


def cut_tail(
    activation: Float32[Tensor, "image unit h w"], bound: Float32[Tensor, " unit"]
) -> tuple[TailMaps, UnitStatistics]:
    """The tail maps of a batch and the statistics of all its maps, both on the CPU."""
    cells = activation.flatten(2)  # image unit cell
    largest, smallest = cells.amax(2), cells.amin(2)  # image unit
    image, unit = (largest > bound).nonzero(as_tuple=True)
    tail = TailMaps(image.cpu(), unit.cpu(), largest[image, unit].cpu(), cells[image, unit].cpu())
    level = bound[:, None]
    statistics = UnitStatistics(
        (cells > level).sum((0, 2)).cpu(),
        (cells == level).sum((0, 2)).cpu(),
        largest.amax(0).cpu(),
        smallest.amin(0).cpu(),
        cells.sum((0, 2), dtype=torch.float64).cpu(),
    )
    return tail, statistics


def first_not_finite(activation: Float32[Tensor, "image unit h w"]) -> tuple[int, int] | None:
    """Image and unit of the first map that holds a NaN or an infinity; None if there is none."""
    if torch.isfinite(activation.sum(dtype=torch.float64)):
        return None
    bad = (~torch.isfinite(activation)).flatten(2).any(2).nonzero()
    return (int(bad[0, 0]), int(bad[0, 1])) if len(bad) else None


def sample_cells(activation: Float32[Tensor, "image unit h w"], most: int) -> Float32[Tensor, "sample unit"]:
    """A copy of a regular sample of at most about `most` cells a map, of one cell at least."""
    height, width = activation.shape[-2:]
    step = max(1, round((height * width / most) ** 0.5))
    top, left = min(step // 2, height - 1), min(step // 2, width - 1)
    return activation[:, :, top::step, left::step].transpose(0, 1).flatten(1).T.clone()

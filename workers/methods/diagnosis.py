"""Diagnosis: units that are dead, saturated, or say the same as others; layers that are aliased.

    r_uv = sum (A_u - m_u)(A_v - m_v) / sqrt(sum (A_u - m_u)^2  sum (A_v - m_v)^2)      over all cells of all images

Zeiler & Fergus 2014, section 4.1, looked at a trained AlexNet's first two layers, found dead filters and, for a
stride of 4, aliasing, and changed both. Here the same is counted: `Moments` of every unit add up over shards,
`correlations` and `link` make groups of units that are one, `is_aliased` compares spectra.

Moments are taken about a center that is known before, such as the units' means: float64 then loses nothing of a
spread that is small against the mean. With n units they take 8 n^2 bytes, 33 MB for 2,048.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Float32, Float64, Int64
from torch import Tensor

CELLS = 2**20
"""Cells that are widened to float64 at once."""


@dataclass(frozen=True)
class Moments:
    """Sums over the cells of some images, of activations less a center.

    Attributes:
        num_cells: cells a unit.
        num_positive: cells above 0, whatever the center.
        smallest: cell.
        largest: cell.
        sum: of cells.
        product: of cells of two units at the same place.
    """

    num_cells: int
    num_positive: Int64[Tensor, " unit"]
    smallest: Float32[Tensor, " unit"]
    largest: Float32[Tensor, " unit"]
    sum: Float64[Tensor, " unit"]
    product: Float64[Tensor, "unit unit"]

    @classmethod
    def none(cls, units: int, device: torch.device | str = "cpu") -> "Moments":
        return cls(
            0,
            torch.zeros(units, dtype=torch.int64, device=device),
            torch.full((units,), torch.inf, device=device),
            torch.full((units,), -torch.inf, device=device),
            torch.zeros(units, dtype=torch.float64, device=device),
            torch.zeros(units, units, dtype=torch.float64, device=device),
        )

    def __add__(self, other: "Moments") -> "Moments":
        return Moments(
            self.num_cells + other.num_cells,
            self.num_positive + other.num_positive,
            torch.minimum(self.smallest, other.smallest),
            torch.maximum(self.largest, other.largest),
            self.sum + other.sum,
            self.product + other.product,
        )

    def cpu(self) -> "Moments":
        tensors = (self.num_positive, self.smallest, self.largest, self.sum, self.product)
        return Moments(self.num_cells, *(tensor.cpu() for tensor in tensors))


def moments(activation: Float32[Tensor, "image unit h w"], center: Float64[Tensor, " unit"]) -> Moments:
    """The moments of a batch, on the activation's device.

    Args:
        activation: raw maps.
        center: what is subtracted first; the same for all batches that are to be added.
    """
    total = Moments.none(len(center), activation.device)
    for part in activation.split(max(1, CELLS // activation[0].numel())):
        cells = part.transpose(0, 1).flatten(1)  # unit cell
        apart = cells.double() - center[:, None]
        total += Moments(
            cells.shape[1], (cells > 0).sum(1), cells.amin(1), cells.amax(1), apart.sum(1), apart @ apart.T
        )
    return total


def correlations(moments: Moments) -> Float64[Tensor, "unit unit"]:
    """Pearson's correlation of every two units; NaN where one of them is constant."""
    covariance = moments.product - torch.outer(moments.sum, moments.sum) / moments.num_cells
    spread = covariance.diagonal().sqrt()
    spread = torch.where(moments.smallest == moments.largest, torch.nan, spread)
    return (covariance / torch.outer(spread, spread)).clamp(-1, 1)


def most_alike(
    correlation: Float64[Tensor, "unit unit"],
) -> tuple[Int64[Tensor, " unit"], Float64[Tensor, " unit"]]:
    """The other unit that each correlates with most, and how far; of equals the lowest.

    Returns:
        -1 and NaN where the unit is constant, or all others are.
    """
    others = correlation.clone().fill_diagonal_(torch.nan).nan_to_num(nan=-torch.inf)
    unit = others.argmax(1)
    value = others.gather(1, unit[:, None])[:, 0]
    none = value == -torch.inf
    return torch.where(none, -1, unit), torch.where(none, torch.nan, value)


def link(correlation: Float64[Tensor, "unit unit"], limit: float) -> Int64[Tensor, " unit"]:
    """The lowest unit that each is linked to by correlations above a limit, over any number of others; often itself."""
    linked = correlation > limit
    linked.fill_diagonal_(True)
    lowest = torch.arange(len(linked))
    while True:
        found = torch.where(linked, lowest, len(lowest)).amin(1)
        if torch.equal(found, lowest):
            return lowest
        lowest = found


def is_aliased(
    share: Float[Tensor, " unit"], share_of_images: Float[Tensor, " unit"], share_of_noise: float, limit: float
) -> Bool[Tensor, " unit"]:
    """Whether so much more of a unit's patterns lies about the Nyquist frequency than of their images, and of noise.

    Images that hold fast patterns have fast patterns projected from them; and patterns that look like white noise, as
    before training, or as fine strokes do, are no more about this frequency than about any other.
    """
    return share - share_of_images.clamp(min=share_of_noise) > limit

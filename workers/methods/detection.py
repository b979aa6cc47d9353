"""From pixel counts to detectors: IoU, best concepts, jackknife interval, null p-value.

    IoU[u,c] = I[u,c] / (A'[u,c] + G[c] - I[u,c])

Bau et al. 2017, Eq. 1, summed over the data set before dividing. A' is what the published codes differ
in (DESIGN 5). The interval is the delete-one-shard jackknife (Efron & Stein 1981); the p-value compares
with best IoUs of masks that met other images' labels. Neither is in the references.
"""

from fractions import Fraction
from typing import Literal

import torch
from jaxtyping import Bool, Float64, Int64
from torch import Tensor

Union = Literal["annotated", "all", "under_mask", "concept"]

NORMAL_95 = 1.959963984540054
"""Half-width of the central 95% of a normal distribution, in standard deviations."""


def unions(
    intersection: Int64[Tensor, "unit concept"],
    mask_pixels: Int64[Tensor, "unit concept"],
    label_pixels: Int64[Tensor, "... concept"],
) -> Int64[Tensor, "unit concept"]:
    """A' + G - I; G of each concept, or of each unit's own concepts."""
    return (mask_pixels + label_pixels).sub_(intersection)


def ious(intersection: Int64[Tensor, "..."], union: Int64[Tensor, "..."]) -> Float64[Tensor, "..."]:
    """I / U; 0 where both are empty."""
    return intersection.double().div_(union.clamp(min=1))


def best_concepts(
    intersection: Int64[Tensor, "unit concept"],
    union: Int64[Tensor, "unit concept"],
    among: Bool[Tensor, " concept"],
) -> Int64[Tensor, " unit"]:
    """The concept of largest IoU among some (at least one); ties go to the lowest place, that is the lowest id.

    Two IoUs that differ may round to one float64, so that ties are compared as fractions.
    """
    places = among.nonzero().flatten()
    intersection, union = intersection[:, places], union[:, places]
    iou = ious(intersection, union)
    largest = iou.amax(1, keepdim=True)
    tied = iou == largest
    best = tied.int().argmax(1)
    for unit in ((tied.sum(1) > 1) & (largest[:, 0] > 0)).nonzero().flatten().tolist():
        ties = tied[unit].nonzero().flatten().tolist()
        best[unit] = max(ties, key=lambda place: Fraction(int(intersection[unit, place]), int(union[unit, place])))
    return places[best]


def best_of_categories(
    best: Int64[Tensor, "unit category"],
    intersection: Int64[Tensor, "unit category"],
    union: Int64[Tensor, "unit category"],
) -> Int64[Tensor, " unit"]:
    """The concept of largest IoU of all, as `best_concepts` finds it, from the best of every category.

    Args:
        best: the best concept of each category; no concept is in two of them.
        intersection: I of these concepts.
        union: U of them.
    """
    concepts, order = best.sort(1)  # ties go to the lowest concept
    every = torch.ones(best.shape[1], dtype=torch.bool)
    category = best_concepts(intersection.gather(1, order), union.gather(1, order), every)
    return concepts.gather(1, category[:, None])[:, 0]


class Jackknife:
    """Delete-one-shard jackknife of many IoUs at once, one shard at a time.

    theta_s = (I - I_s) / (U - U_s); variance = (S-1)/S * sum_s (theta_s - mean theta)^2; the interval is
    IoU -/+ 1.96 standard errors, within [0, 1]. Welford's update, in the order of the shards.

    Args:
        intersection: I over all shards.
        union: U over all shards.
    """

    def __init__(self, intersection: Int64[Tensor, "*iou"], union: Int64[Tensor, "*iou"]) -> None:
        self._intersection, self._union = intersection, union
        self._mean = torch.zeros(intersection.shape, dtype=torch.float64)
        self._squares = torch.zeros_like(self._mean)
        self._shards = 0

    def leave_out(self, intersection: Int64[Tensor, "*iou"], union: Int64[Tensor, "*iou"]) -> None:
        """Take in one shard's own counts."""
        theta = ious(self._intersection - intersection, self._union - union)
        self._shards += 1
        delta = theta - self._mean
        self._mean += delta / self._shards
        self._squares += delta * (theta - self._mean)

    def interval(self) -> tuple[Float64[Tensor, "*iou"], Float64[Tensor, "*iou"]] | None:
        """Lower and upper ends; None with fewer than two shards."""
        if self._shards < 2:
            return None
        error = NORMAL_95 * (self._squares * (self._shards - 1) / self._shards).sqrt()
        iou = ious(self._intersection, self._union)
        return (iou - error).clamp(0, 1), (iou + error).clamp(0, 1)


def p_values(iou: Float64[Tensor, "*iou"], null: Float64[Tensor, " draw"]) -> Float64[Tensor, "*iou"]:
    """(r + 1) / (n + 1), r = how many of the n null IoUs are at least as large (North et al. 2002)."""
    ascending = null.sort().values
    at_least = len(null) - torch.searchsorted(ascending, iou.contiguous(), right=False)
    return (at_least + 1).double() / (len(null) + 1)

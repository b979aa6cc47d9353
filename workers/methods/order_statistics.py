"""The exact (k+1)-th largest cell of every unit, from cells that arrive in any order and any portions.

    T_u = the (k+1)-th largest of all cells, k = floor(quantile * N_u)      (DESIGN 5; Bau et al. 2017, 2.2)

A radix selection over the 32 bits of a float: each pass counts cells by the next few bits and finds the
bin the wanted cell lies in; the next pass looks at that bin alone. Memory is 2,048 counters a unit,
whatever the number of cells; nothing is rounded or sampled.
"""

import torch
from jaxtyping import Float32, Int64
from torch import Tensor

DIGITS = (11, 11, 10)
"""Bits looked at in each pass, from the highest."""


def ordered_keys(values: Float32[Tensor, " cell"]) -> Int64[Tensor, " cell"]:
    """Whole numbers in [0, 2^32) in the order of the floats; -0 counts as 0."""
    bits = (values + 0.0).view(torch.int32).long() & 0xFFFFFFFF
    return torch.where(bits >= 1 << 31, 0xFFFFFFFF - bits, bits + (1 << 31))


def from_keys(keys: Int64[Tensor, " unit"]) -> Float32[Tensor, " unit"]:
    """The floats of `ordered_keys`."""
    bits = torch.where(keys >= 1 << 31, keys - (1 << 31), 0xFFFFFFFF - keys)
    return torch.where(bits >= 1 << 31, bits - (1 << 32), bits).to(torch.int32).view(torch.float32)


class Selection:
    """Selects one order statistic a unit in `len(DIGITS)` passes over the same cells.

    In each pass call `count` with every cell, then `narrow`; after the last, `result`.

    Args:
        rank: how many cells lie before the wanted one in descending order, for each unit.
    """

    def __init__(self, rank: Int64[Tensor, " unit"]) -> None:
        self._rank = rank.clone()
        self._above = torch.zeros_like(rank)
        self._prefix = torch.zeros_like(rank)
        self._unseen = sum(DIGITS)  # bits below the prefix
        self._digits = iter(DIGITS)
        self._begin(next(self._digits))

    def count(self, units: Int64[Tensor, " cell"], cells: Float32[Tensor, " cell"]) -> None:
        """Take in some cells: the unit of each, and its value."""
        keys = ordered_keys(cells)
        if self._unseen < sum(DIGITS):
            inside = (keys >> self._unseen) == self._prefix[units]
            units, keys = units[inside], keys[inside]
        places = units * self._bins + ((keys >> (self._unseen - self._digit)) & (self._bins - 1))
        self._counts.scatter_add_(0, places, torch.ones_like(places))

    def narrow(self) -> None:
        """End a pass: find the bin that holds the wanted cell, and count what lies above it.

        Raises:
            ValueError: a unit has no cell of the wanted rank.
        """
        from_top = self._counts.view(len(self._rank), self._bins).flip(1).cumsum(1)  # unit bin
        if short := (from_top[:, -1] <= self._rank).nonzero().flatten().tolist():
            raise ValueError(f"units {short[:9]} have too few cells for the wanted rank")
        place = (from_top > self._rank[:, None]).int().argmax(1)
        before = torch.where(place > 0, from_top.gather(1, (place - 1).clamp(min=0)[:, None])[:, 0], 0)
        self._rank -= before
        self._above += before
        self._prefix = (self._prefix << self._digit) + self._bins - 1 - place
        self._unseen -= self._digit
        self._begin(next(self._digits, 0))

    def result(self) -> tuple[Float32[Tensor, " unit"], Int64[Tensor, " unit"]]:
        """The order statistics, and how many cells lie strictly above each.

        Raises:
            ValueError: there were fewer passes than `DIGITS`.
        """
        if self._unseen:
            raise ValueError(f"{self._unseen} bits are undecided: {len(DIGITS)} passes over the cells are needed")
        return from_keys(self._prefix), self._above.clone()

    def _begin(self, digit: int) -> None:
        self._digit, self._bins = digit, 1 << digit
        self._counts = torch.zeros(len(self._rank) * self._bins, dtype=torch.int64)

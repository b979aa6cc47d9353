"""A layer's units on several pages, where one would be too long to open."""

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Part:
    """Some units of a layer on one page.

    Args:
        page: file name of the page, without suffix.
        units: their numbers.
    """

    page: str
    units: list[int]

    @property
    def words(self) -> str:
        """The units in words."""
        first, last = self.units[0], self.units[-1]
        return f"{first} to {last}" if last > first else str(first)


class Parts(list[Part]):
    """All units of a layer, in order, about as many on each page; a layer without units has one page too.

    Args:
        page: file name of the first page; the others add a tilde and their number, which no layer's name can.
        units: their numbers.
        most: units on a page, at the most.
    """

    def __init__(self, page: str, units: Sequence[int], most: int) -> None:
        pages = math.ceil(len(units) / max(most, 1))
        length = math.ceil(len(units) / max(pages, 1))
        starts = range(0, len(units), max(length, 1))
        parts = [Part(f"{page}~{i + 1}" if i else page, list(units[at : at + length])) for i, at in enumerate(starts)]
        super().__init__(parts or [Part(page, [])])
        self._pages = {unit: part.page for part in parts for unit in part.units}

    def page_of(self, unit: int) -> str | None:
        """The page that shows a unit; None for one that is on none."""
        return self._pages.get(unit)

"""What in images drives a unit, on pages: the DeconvNet's rows of one layer and rule, their pictures as files."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import median
from typing import Any

from pipeline.report.contact_sheet import ContactSheet
from pipeline.report.data import PatternsData
from pipeline.report.download import plain_columns, write_csv
from pipeline.report.parts import Parts
from pipeline.report.pictures import decoding, write_picture
from pipeline.report.rows import finite, iterate_rows, results_of, spread

RULES = ("deconvnet", "guided", "gradient")
"""In the order of pages: the first that a layer has is on the layer's own."""
CURE = "project the layer's units back again"
SMALL = 64
"""Pictures up to this many pixels a side are scaled up pixel by pixel."""
NUM_PREVIEWS = 6
MOST_PICTURES = 4608
"""On a page: 9 patterns and their crops of 256 units."""
MOST_SIDE = 5
SHEET_TILE = 48

_NUMBERS = (
    "unit", "rank", "keep", "image_id", "image", "activation", "y", "x", "top", "left", "bottom", "right", "is_clipped",
    "outside", "nyquist_share", "nyquist_share_image",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Pattern:
    """One row of `deconvnet`; of its pictures the names of their files."""

    unit: int
    rank: int
    keep: str
    image_id: int
    image: str
    activation: float
    y: int
    x: int
    top: int
    left: int
    bottom: int
    right: int
    is_clipped: bool
    outside: int
    nyquist_share: float | None
    nyquist_share_image: float | None
    pattern: str
    crop: str

    @property
    def side(self) -> int:
        """The larger one of the box, in pixels."""
        return max(self.bottom - self.top, self.right - self.left)


@dataclass(frozen=True)
class PatternSheet:
    """A layer's patterns by one rule.

    Args:
        layer: dotted module name.
        rule: of ReLUs on the way back.
        page: file name of its first page, without suffix, and of the folder of its pictures.
        settings: of the result.
        results: ids of the results.
        units: the patterns of each unit by rank, units by number.
    """

    layer: str
    rule: str
    page: str
    settings: dict[str, Any]
    results: list[str]
    units: dict[int, list[Pattern]]

    @cached_property
    def parts(self) -> Parts:
        """The units on one page or several."""
        return Parts(self.page, list(self.units), MOST_PICTURES // (2 * self.most))

    @cached_property
    def most(self) -> int:
        """Patterns of the unit that has most."""
        return max(map(len, self.units.values()), default=1)

    @property
    def side(self) -> int:
        """Patterns side by side in a unit's grid."""
        return columns_for(self.most)

    @cached_property
    def is_small(self) -> bool:
        """Whether all boxes are so small that their pixels can be told apart."""
        return all(row.side <= SMALL for rows in self.units.values() for row in rows)

    @property
    def num_patterns(self) -> int:
        return sum(map(len, self.units.values()))

    @property
    def previews(self) -> list[Pattern]:
        """The first patterns of units spread evenly over the layer."""
        return spread([rows[0] for rows in self.units.values()], NUM_PREVIEWS)

    @property
    def aliasing(self) -> float | None:
        """Median share of the patterns' energy near the Nyquist frequency of the first stride."""
        return _median(row.nyquist_share for rows in self.units.values() for row in rows)

    @property
    def aliasing_images(self) -> float | None:
        """The same of the crops."""
        return _median(row.nyquist_share_image for rows in self.units.values() for row in rows)

    @property
    def num_outside(self) -> int:
        """Patterns that are not 0 outside their box, as they must be."""
        return sum(row.outside > 0 for rows in self.units.values() for row in rows)


def write_patterns(folder: Path, data: PatternsData, page: str) -> PatternSheet:
    """Write a layer's patterns and crops, all of them as one JPEG, and their numbers as CSV.

    Args:
        folder: of the report.
        data: the layer.
        page: file name of its first page, without suffix, and of the folder of its pictures.

    Raises:
        InputError: a picture is missing, neither JPEG nor PNG, or broken.
    """
    table = data.read()
    pictures = folder / "pictures" / page
    pictures.mkdir(parents=True, exist_ok=True)
    keys = sorted(zip(table["unit"].to_pylist(), table["rank"].to_pylist(), strict=True))
    ranks: dict[int, list[int]] = {}
    for unit, rank in keys:
        ranks.setdefault(unit, []).append(rank)
    most = max(map(len, ranks.values()), default=1)
    title = f"{data.layer}: {len(ranks)} units, {data.rule}, the images beside"
    contact = ContactSheet(title, list(ranks), most, columns_for(most), blocks=2, tile=SHEET_TILE)
    units: dict[int, list[Pattern]] = {unit: [] for unit in ranks}
    for row in iterate_rows(table):
        unit, rank = row["unit"], row["rank"]
        where = f"of unit {unit}, rank {rank}, image {row['image_id']} in layer {row['layer']}, {row['variant']}"
        files = {}
        for place, column in enumerate(("pattern", "crop")):
            path = pictures / f"unit-{unit}-rank-{rank}{'-crop' if place else ''}"
            files[column] = write_picture(path, row[column], f"{column} {where}", CURE)
            with decoding(f"{column} {where}", CURE):
                contact.paste(unit, ranks[unit].index(rank), row[column]["bytes"], place)
        units[unit].append(Pattern(**{name: row[name] for name in _NUMBERS}, **files))
    contact.save(folder / "layers" / f"{page}.jpg")
    write_csv(folder / "layers" / f"{page}.csv", plain_columns(table))
    by_rank = {unit: sorted(rows, key=lambda row: row.rank) for unit, rows in units.items()}
    return PatternSheet(data.layer, data.rule, page, data.settings, results_of(table), by_rank)


def columns_for(count: int) -> int:
    """Pictures side by side in a grid of so many."""
    return min(math.ceil(math.sqrt(count)), MOST_SIDE)


def order_rules(rule: str) -> tuple[int, str]:
    """Sorts the known rules, then the others in the order of the alphabet."""
    return (RULES.index(rule) if rule in RULES else len(RULES), rule)


def describe_pattern(row: Pattern, rule: str) -> str:
    """What a picture's tooltip says."""
    words = [
        f"unit {row.unit}",
        f"place {row.rank + 1}: image {row.image_id}, {row.image}",
        f"activation {row.activation:.4g} at row {row.y}, column {row.x} of the grid",
        box_words(row.top, row.left, row.bottom, row.right)
        + (", cut off by the image’s edge" if row.is_clipped else ""),
        rule,
    ]
    if row.keep == "map":
        words.append("the whole map")
    if row.outside:
        words.append(f"{row.outside} values outside the box")
    return " · ".join(words)


def box_words(top: int, left: int, bottom: int, right: int) -> str:
    """A box of the network's input in words."""
    return f"{bottom - top} × {right - left} pixels from row {top}, column {left}"


def _median(values: Iterable[float | None]) -> float | None:
    found = finite(values)
    return median(found) if found else None

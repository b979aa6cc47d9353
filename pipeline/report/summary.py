"""The layers side by side: key numbers and the stacked bars of detectors by category."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.report.data import LayerData
from pipeline.report.units import ConceptCount, Unit, count_concepts

NUM_TOP_CONCEPTS = 5
BAR_WIDTH = 1000


@dataclass(frozen=True)
class CategoryCounts:
    """One row of `layer_summary`."""

    num_detectors: int
    num_unique_concepts: int
    num_detectors_within: int
    num_unique_concepts_within: int


@dataclass(frozen=True)
class LayerSummary:
    """A layer's numbers on the index page.

    Args:
        name: dotted module name.
        page: file name of its page, without folder and suffix.
        layer: its row of `layers`.
        num_dead: units whose map is one constant.
        categories: counts of each category in the table.
        top_concepts: the concepts most units detect.
    """

    name: str
    page: str
    layer: dict[str, Any]
    num_dead: int
    categories: dict[str, CategoryCounts]
    top_concepts: list[ConceptCount]

    def total(self, count: str) -> int:
        """A count of `CategoryCounts` summed over categories."""
        return sum(getattr(counts, count) for counts in self.categories.values())


@dataclass(frozen=True)
class Segment:
    """One category's part of a stacked bar, in units of a bar `BAR_WIDTH` wide."""

    category: str
    count: int
    x: float
    width: float


def summarize(page: str, data: LayerData, units: Sequence[Unit]) -> LayerSummary:
    """The index page's numbers of one layer."""
    names = CategoryCounts.__dataclass_fields__
    return LayerSummary(
        name=data.layer["layer"],
        page=page,
        layer=data.layer,
        num_dead=sum(unit.is_dead for unit in units),
        categories={
            row["category"]: CategoryCounts(**{name: row[name] for name in names}) for row in data.summary.to_pylist()
        },
        top_concepts=count_concepts(units)[:NUM_TOP_CONCEPTS],
    )


def stack(summary: LayerSummary, count: str, categories: Sequence[str], largest: int) -> list[Segment]:
    """The stacked bar of one layer.

    Args:
        summary: the layer.
        count: which count of `CategoryCounts`.
        categories: the order of the stack.
        largest: the total that a full bar stands for.
    """
    segments: list[Segment] = []
    start = 0
    for category in categories:
        counts = summary.categories.get(category)
        number = getattr(counts, count) if counts else 0
        if number:
            x, end = (round(BAR_WIDTH * edge / largest, 2) for edge in (start, start + number))
            segments.append(Segment(category, number, x, round(end - x, 2)))
            start += number
    return segments

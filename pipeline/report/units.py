"""The units of one layer, as the tables on its page show them."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from pipeline.report.data import LayerData

CATEGORIES = ("object", "part", "scene", "material", "texture", "color")
"""Broden's categories in the order of stacks and legends; the style sheet has a color for each place."""
NUM_COLORS = 10


@dataclass(frozen=True)
class Match:
    """A unit and a concept: one row of `detectors`."""

    concept: str
    category: str
    iou: float
    iou_low: float | None
    iou_high: float | None
    p_value: float | None
    intersection: int
    union: int


@dataclass(frozen=True)
class Unit:
    """One unit: its threshold, its best concept, and the best ones of other categories.

    Args:
        unit: channel of the layer.
        threshold: T_u, the shortest decimal that reads back as the stored float32.
        is_dead: whether the map is one constant.
        is_detector: whether the best concept's IoU exceeds min_iou.
        best: the best concept; None where the mask meets no concept.
        others: in other categories, best first, with an IoU above min_iou.
    """

    unit: int
    threshold: float
    is_dead: bool
    is_detector: bool = False
    best: Match | None = None
    others: list[Match] = field(default_factory=list)


@dataclass(frozen=True)
class ConceptCount:
    """A concept and how many units of the layer detect it."""

    concept: str
    category: str
    units: int


def read_units(data: LayerData) -> list[Unit]:
    """All units of a layer, the largest IoU first; those without a concept last, by number."""
    matches: dict[int, list[dict[str, Any]]] = {}
    for row in data.detectors.to_pylist():
        matches.setdefault(row["unit"], []).append(row)
    units = [_to_unit(row, matches.get(row["unit"], [])) for row in _threshold_rows(data.thresholds)]
    return sorted(units, key=lambda unit: (-unit.best.iou if unit.best else 1.0, unit.unit))


def _threshold_rows(thresholds: pa.Table) -> list[dict[str, Any]]:
    rows = thresholds.select(["unit", "is_dead"]).to_pylist()
    exact = thresholds["threshold"].to_numpy()
    return [{**row, "threshold": float(str(value))} for row, value in zip(rows, exact, strict=True)]


def _to_unit(threshold: dict[str, Any], rows: list[dict[str, Any]]) -> Unit:
    best = next((row for row in rows if row["is_best_overall"] and row["intersection"] > 0), None)
    others = [row for row in rows if row["is_detector"] and row is not best]
    return Unit(
        **threshold,
        is_detector=best is not None and best["is_detector"],
        best=_to_match(best) if best else None,
        others=[_to_match(row) for row in sorted(others, key=lambda row: (-row["iou"], row["category"]))],
    )


def _to_match(row: dict[str, Any]) -> Match:
    return Match(**{name: row[name] for name in Match.__dataclass_fields__})


def count_concepts(units: Sequence[Unit]) -> list[ConceptCount]:
    """The concepts that units detect: the most frequent first, ties in the order of the alphabet."""
    found = Counter((unit.best.concept, unit.best.category) for unit in units if unit.best and unit.is_detector)
    ordered = sorted(found.items(), key=lambda item: (-item[1], item[0]))
    return [ConceptCount(concept, category, count) for (concept, category), count in ordered]


def order_categories(names: set[str]) -> list[str]:
    """Broden's categories in their fixed order, then the others in the order of the alphabet."""
    return [name for name in CATEGORIES if name in names] + sorted(names - set(CATEGORIES))


def color_classes(names: set[str]) -> dict[str, str]:
    """The style sheet's class of each category: Broden's have fixed ones, others share what is left."""
    fixed = {name: place for place, name in enumerate(CATEGORIES)}
    left = NUM_COLORS - len(CATEGORIES)
    others = {name: len(CATEGORIES) + i % left for i, name in enumerate(sorted(names - set(CATEGORIES)))}
    return {name: f"category-{place}" for name, place in {**fixed, **others}.items()}


def join_thresholds(detectors: pa.Table, units: Sequence[Unit]) -> pa.Table:
    """The table `detectors` with a column of the units' thresholds."""
    thresholds = {unit.unit: unit.threshold for unit in units}
    column = [thresholds.get(unit) for unit in detectors["unit"].to_pylist()]
    return detectors.append_column("threshold", pa.array(column, pa.float64()))

"""Units over training on pages: the rows of one layer, a checkpoint a column, their pictures as files."""

import hashlib
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa

from pipeline.errors import InputError
from pipeline.report.chart import Chart, Series, draw_lines
from pipeline.report.data import EvolutionData
from pipeline.report.download import plain_columns, write_csv
from pipeline.report.parts import Parts
from pipeline.report.patterns import SMALL, box_words
from pipeline.report.pictures import write_whole_picture
from pipeline.report.rows import iterate_rows, results_of
from pipeline.report.sparkline import Sparkline, draw

CURE = "follow the layer over training again"
MOST_MOMENTS = 2048
"""On a page: 85 units at 24 checkpoints."""
NUM_DEPTHS = 8
"""Colors of lines from the first layer to the last."""

_NUMBERS = (
    "unit", "place", "image_id", "activation", "y", "x", "same_image", "anchor_image_id", "cosine", "cosine_last", "concept",
    "category", "iou", "is_detector", "top", "left", "bottom", "right",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Moment:
    """A unit at one checkpoint: a row of `evolution`; of its pictures the names of their files."""

    unit: int
    place: int
    image_id: int
    activation: float
    y: int
    x: int
    same_image: bool | None
    anchor_image_id: int | None
    cosine: float | None
    cosine_last: float | None
    concept: str | None
    category: str | None
    iou: float | None
    is_detector: bool
    top: int
    left: int
    bottom: int
    right: int
    pattern: str
    crop: str

    @property
    def detects(self) -> tuple[str, str] | None:
        """Category and concept of a detector."""
        named = self.is_detector and self.category is not None and self.concept is not None
        return (self.category or "", self.concept or "") if named else None


@dataclass(frozen=True)
class Checkpoint:
    """One row of `evolution_layers`."""

    place: int
    checkpoint: str
    epoch: int | None
    checkpoint_study_id: str
    num_units: int
    num_compared: int
    cosine: float | None
    cosine_low: float | None
    cosine_high: float | None
    cosine_last: float | None
    same_image: float | None
    num_detectors: int
    num_unique_concepts: int
    is_settled: bool

    @property
    def label(self) -> str:
        """Its epoch; without one its number, from 1."""
        return str(self.place + 1 if self.epoch is None else self.epoch)


@dataclass(frozen=True)
class Evolution:
    """A layer over training.

    Args:
        layer: dotted module name.
        page: file name of its first page, without suffix, and of the folder of its pictures.
        settings: of the result.
        results: ids of the results.
        checkpoints: in order.
        units: the moments of each unit by place, units by number.
    """

    layer: str
    page: str
    settings: dict[str, Any]
    results: list[str]
    checkpoints: list[Checkpoint]
    units: dict[int, dict[int, Moment]]

    @cached_property
    def parts(self) -> Parts:
        """The units on one page or several."""
        return Parts(self.page, list(self.units), MOST_MOMENTS // max(len(self.checkpoints), 1))

    @cached_property
    def is_small(self) -> bool:
        """Whether all boxes are so small that their pixels can be told apart."""
        boxes = (one for moments in self.units.values() for one in moments.values())
        return all(max(one.bottom - one.top, one.right - one.left) <= SMALL for one in boxes)

    @property
    def labels(self) -> list[str]:
        return [one.label for one in self.checkpoints]

    @property
    def unit_of_labels(self) -> str:
        """What the labels count."""
        return "checkpoint" if any(one.epoch is None for one in self.checkpoints) else "epoch"

    @property
    def settled(self) -> Checkpoint | None:
        """The first checkpoint from which the layer is settled."""
        return next((one for one in self.checkpoints if one.is_settled), None)

    @property
    def limit(self) -> float | None:
        """What the median cosine stays at in a settled layer."""
        value = self.settings.get("settled")
        return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None

    @property
    def is_dissected(self) -> bool:
        """Whether any unit has a concept at any checkpoint."""
        return any(one.concept is not None for moments in self.units.values() for one in moments.values())

    @property
    def categories(self) -> set[str]:
        """Of detectors."""
        return {found[0] for moments in self.units.values() for one in moments.values() if (found := one.detects)}

    @cached_property
    def detectors(self) -> list[dict[str, int]]:
        """Detectors by category, one count a checkpoint."""
        return [
            dict(Counter(category for category, _ in self._detected(one.place).elements())) for one in self.checkpoints
        ]

    @cached_property
    def unique_concepts(self) -> list[dict[str, int]]:
        """Distinct concepts that they detect by category, likewise."""
        return [dict(Counter(category for category, _ in self._detected(one.place))) for one in self.checkpoints]

    def _detected(self, place: int) -> Counter[tuple[str, str]]:
        moments = (moments[place] for moments in self.units.values() if place in moments)
        return Counter(found for one in moments if (found := one.detects))


def write_evolution(folder: Path, data: EvolutionData, page: str) -> tuple[Evolution, pa.Table]:
    """Write a layer's pictures and its numbers as CSV.

    Args:
        folder: of the report.
        data: the layer.
        page: file name of its first page, without suffix, and of the folder of its pictures.

    Returns:
        the layer, and its rows of `evolution_layers`.

    Raises:
        InputError: a picture is missing, neither JPEG nor PNG, or broken, or the two tables do not fit together.
    """
    rows = data.read_checkpoints()
    names = list(Checkpoint.__dataclass_fields__)
    checkpoints = [Checkpoint(**row) for row in rows.select(names).to_pylist()]
    checkpoints.sort(key=lambda one: one.place)
    table = data.read()
    if unknown := sorted({*table["place"].to_pylist()} - {one.place for one in checkpoints}):
        raise InputError(
            f"evolution of layer {data.layer} has rows of checkpoint {unknown[0]}, evolution_layers has none: {CURE}"
        )
    pictures = folder / "pictures" / page
    pictures.mkdir(parents=True, exist_ok=True)
    units: dict[int, dict[int, Moment]] = {unit: {} for unit in sorted(set(table["unit"].to_pylist()))}
    crops: dict[tuple[int, bytes], str] = {}
    for row in iterate_rows(table):
        unit, place = row["unit"], row["place"]
        where = f"of unit {unit} at checkpoint {row['checkpoint']!r} in layer {row['layer']}"
        path = pictures / f"unit-{unit}-place-{place}"
        pattern = write_whole_picture(path, row["pattern"], f"pattern {where}", CURE)
        key = (unit, hashlib.sha256((row["crop"] or {}).get("bytes") or b"").digest())
        if key not in crops:  # an image that stays the unit's top one is written once
            path = path.with_name(f"{path.name}-crop")
            crops[key] = write_whole_picture(path, row["crop"], f"crop {where}", CURE)
        units[unit][place] = Moment(**{name: row[name] for name in _NUMBERS}, pattern=pattern, crop=crops[key])
    write_csv(folder / "layers" / f"{page}.csv", plain_columns(table))
    return Evolution(data.layer, page, data.settings, results_of(table, rows), checkpoints, units), rows


def describe_moment(one: Moment, checkpoint: Checkpoint) -> str:
    """What a picture's tooltip says."""
    words = [
        f"unit {one.unit}",
        checkpoint.checkpoint if checkpoint.epoch is None else f"epoch {checkpoint.epoch}, {checkpoint.checkpoint}",
        f"image {one.image_id}{'' if one.same_image is not False else ', another than before'}",
        f"activation {one.activation:.4g} at row {one.y}, column {one.x} of the grid",
        box_words(one.top, one.left, one.bottom, one.right),
    ]
    for value, other in ((one.cosine, "checkpoint before"), (one.cosine_last, "last checkpoint")):
        if value is not None and math.isfinite(value):
            words.append(f"cosine {value:.3f} with the {other}")
    if one.concept is not None and one.iou is not None:
        words.append(f"{one.concept}, IoU {one.iou:.3f}{'' if one.is_detector else ', no detector'}")
    return " · ".join(words)


def draw_unit(evolution: Evolution, unit: int) -> Sparkline | None:
    """A unit's cosine with the last checkpoint, beside what settles a layer."""
    moments = evolution.units[unit]
    values = [moments[one.place].cosine_last if one.place in moments else None for one in evolution.checkpoints]
    return draw([values], evolution.limit)


def draw_layer(evolution: Evolution) -> Chart:
    """A layer's cosines over training."""
    found = evolution.checkpoints
    settled = evolution.settled
    series = [
        Series(
            "with the checkpoint before",
            "before",
            [one.cosine for one in found],
            [one.cosine_low for one in found],
            [one.cosine_high for one in found],
        ),
        Series(
            "with the last checkpoint",
            "last",
            [one.cosine_last for one in found],
            mark=found.index(settled) if settled else None,
        ),
    ]
    return draw_lines(series, evolution.labels, evolution.limit)


def draw_all(evolutions: Sequence[Evolution]) -> Chart:
    """The layers' cosines with the last checkpoint; all have the same checkpoints."""
    series = [
        Series(
            one.layer,
            depth_class(place, len(evolutions)),
            [checkpoint.cosine_last for checkpoint in one.checkpoints],
            mark=one.checkpoints.index(one.settled) if one.settled else None,
        )
        for place, one in enumerate(evolutions)
    ]
    limits = {one.limit for one in evolutions}
    return draw_lines(series, evolutions[0].labels, limits.pop() if len(limits) == 1 else None)


def depth_class(place: int, count: int) -> str:
    """The style sheet's class of a layer's line: from the first layer's to the last's."""
    return f"depth-{round(place * (NUM_DEPTHS - 1) / max(count - 1, 1))}"


def group_evolutions(evolutions: Sequence[Evolution]) -> list[list[Evolution]]:
    """Layers that were followed over the same checkpoints together."""
    groups: dict[tuple[tuple[str, str], ...], list[Evolution]] = {}
    for one in evolutions:
        key = tuple((checkpoint.label, checkpoint.checkpoint) for checkpoint in one.checkpoints)
        groups.setdefault(key, []).append(one)
    return list(groups.values())

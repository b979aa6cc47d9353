"""What is wrong with a layer's units, on pages."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pyarrow as pa

from pipeline.report.data import DiagnosisData
from pipeline.report.rows import finite, results_of

STRIP_WIDTH = 1000
AILMENTS = ("dead", "saturated", "duplicates", "aliased")


@dataclass(frozen=True, slots=True)
class UnitDiagnosis:
    """One row of `diagnosis`."""

    unit: int
    max: float
    is_dead: bool
    is_saturated: bool
    num_positive: int
    num_cells: int
    most_alike: int | None
    correlation: float | None
    duplicate_of: int | None
    aliasing: float | None
    aliasing_images: float | None
    is_aliased: bool | None

    @property
    def is_ailing(self) -> bool:
        return self.is_dead or self.is_saturated or self.duplicate_of is not None or bool(self.is_aliased)


@dataclass(frozen=True)
class LayerDiagnosis:
    """A layer's units and what is said of the layer.

    Args:
        layer: dotted module name.
        settings: of the result.
        results: ids of the results.
        verdict: in words.
        first_stride: of the network's first convolution; None where it is not known.
        aliasing: median over units; None where no unit has a value.
        aliasing_images: median over units.
        units: by number.
    """

    layer: str
    settings: dict[str, Any]
    results: list[str]
    verdict: str
    first_stride: int | None
    aliasing: float | None
    aliasing_images: float | None
    units: dict[int, UnitDiagnosis]

    @cached_property
    def dead(self) -> list[UnitDiagnosis]:
        return [unit for unit in self.units.values() if unit.is_dead]

    @cached_property
    def saturated(self) -> list[UnitDiagnosis]:
        return [unit for unit in self.units.values() if unit.is_saturated]

    @cached_property
    def duplicates(self) -> list[UnitDiagnosis]:
        """Units with a `duplicate_of`, those of one unit together."""
        found = [unit for unit in self.units.values() if unit.duplicate_of is not None]
        return sorted(found, key=lambda unit: (unit.duplicate_of, unit.unit))

    @cached_property
    def aliased(self) -> list[UnitDiagnosis]:
        """The largest share first."""
        found = [unit for unit in self.units.values() if unit.is_aliased]
        return sorted(found, key=lambda unit: (-(unit.aliasing or 0.0), unit.unit))

    @property
    def is_measured(self) -> bool:
        """Whether any unit has a value of aliasing."""
        return bool(self.shares)

    @property
    def shares(self) -> list[float]:
        """Of aliasing, a value a unit."""
        return finite(unit.aliasing for unit in self.units.values())

    @property
    def largest(self) -> float:
        """The largest value that its strip shows."""
        return max([*self.shares, *finite([self.aliasing, self.aliasing_images])], default=0.0)


@dataclass(frozen=True)
class Strip:
    """Aliasing of one layer as a drawing `STRIP_WIDTH` wide; widths and places from the left.

    Args:
        patterns: of the median over units; None without one.
        images: of the images' own share.
        ticks: an SVG path with a tick a unit.
        aliased: the same of those that are aliased.
    """

    patterns: float | None
    images: float | None
    ticks: str
    aliased: str


def read_diagnosis(data: DiagnosisData) -> tuple[LayerDiagnosis, pa.Table, pa.Table]:
    """A layer's diagnosis with its rows of `diagnosis` and `diagnosis_layers`."""
    table, layer = data.read(), data.read_layer()
    said = layer.to_pylist()[0] if layer.num_rows else {}
    units = [
        UnitDiagnosis(**{name: row[name] for name in UnitDiagnosis.__dataclass_fields__})
        for row in table.select(list(UnitDiagnosis.__dataclass_fields__)).to_pylist()
    ]
    diagnosis = LayerDiagnosis(
        layer=data.layer,
        settings=data.settings,
        results=results_of(table, layer),
        verdict=said.get("verdict", ""),
        first_stride=said.get("first_stride"),
        aliasing=said.get("aliasing"),
        aliasing_images=said.get("aliasing_images"),
        units={unit.unit: unit for unit in sorted(units, key=lambda unit: unit.unit)},
    )
    return diagnosis, table, layer


def draw_strip(diagnosis: LayerDiagnosis, largest: float) -> Strip:
    """A layer's strip.

    Args:
        diagnosis: of the layer.
        largest: the value at the right end.
    """

    def place(value: float | None) -> float | None:
        (found,) = finite([value]) or [None]
        return None if found is None or largest <= 0 else round(STRIP_WIDTH * found / largest, 1)

    def ticks(units: Iterable[UnitDiagnosis]) -> str:
        places = sorted({at for at in (place(unit.aliasing) for unit in units) if at is not None})
        return " ".join(f"M{at:g} 0V10" for at in places)

    aliased = {unit.unit for unit in diagnosis.aliased}
    return Strip(
        place(diagnosis.aliasing),
        place(diagnosis.aliasing_images),
        ticks(unit for unit in diagnosis.units.values() if unit.unit not in aliased),
        ticks(diagnosis.aliased),
    )

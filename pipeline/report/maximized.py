"""Activation maximization on pages: the rows of one layer and preset, their pictures as files."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import median
from typing import Any

import pyarrow as pa

from pipeline.report.contact_sheet import ContactSheet
from pipeline.report.data import MaximizationData
from pipeline.report.download import plain_columns, write_csv
from pipeline.report.pictures import decoding, write_picture
from pipeline.report.rows import finite, iterate_rows, results_of, spread
from pipeline.report.sparkline import Sparkline, draw

DRAWN = "drawn"
REASONS = {"dead": "dead", "relu_blocked": "blocked"}
"""Outcomes without a picture, in a word."""
MEANINGS = {
    "dead": "no image, real or made, gets the unit above 0",
    "relu_blocked": "a ReLU stops the gradient at every start that was tried",
}
CURE = "maximize the layer again"
NUM_PREVIEWS = 6

_NUMBERS = (
    "unit", "seed", "target", "pre_relu", "outcome", "objective", "best_step", "best_real", "ratio", "argmax_step",
    "redirected_steps", "contrast", "filter_cosine",
)  # fmt: skip
_FILES = {"picture": "", "last_picture": "-last", "filter": "-filter", "animation": "-animation"}


@dataclass(frozen=True)
class Maximized:
    """One row of `activation_maximization`; of its pictures the names of their files, None where there is none."""

    unit: int
    seed: int
    target: str
    pre_relu: bool
    outcome: str
    objective: float | None
    best_step: int | None
    best_real: float | None
    ratio: float | None
    argmax_step: int | None
    redirected_steps: int
    contrast: float | None
    filter_cosine: float | None
    trace: list[float | None]
    picture: str | None = None
    last_picture: str | None = None
    filter: str | None = None
    animation: str | None = None

    @property
    def is_drawn(self) -> bool:
        return self.outcome == DRAWN


@dataclass(frozen=True)
class Sheet:
    """A layer's pictures of one preset.

    Args:
        layer: dotted module name.
        variant: the preset.
        page: file name of its page, without suffix, and of the folder of its pictures.
        settings: of the result.
        results: ids of the results.
        units: the rows of each unit by seed, units by number.
    """

    layer: str
    variant: str
    page: str
    settings: dict[str, Any]
    results: list[str]
    units: dict[int, list[Maximized]]

    @property
    def outcomes(self) -> Counter[str]:
        """Units by outcome: drawn if any of a unit's seeds is, else the first seed's."""
        return Counter(DRAWN if any(row.is_drawn for row in rows) else rows[0].outcome for rows in self.units.values())

    @cached_property
    def drawn(self) -> dict[int, list[Maximized]]:
        """The rows that have a picture, by unit."""
        drawn = {unit: [row for row in rows if row.is_drawn] for unit, rows in self.units.items()}
        return {unit: rows for unit, rows in drawn.items() if rows}

    @property
    def not_drawn(self) -> dict[str, dict[int, list[Maximized]]]:
        """The rows that have none, by outcome, then by unit."""
        rows = [row for rows in self.units.values() for row in rows if not row.is_drawn]
        found: dict[str, dict[int, list[Maximized]]] = {outcome: {} for outcome in _in_order(rows)}
        for row in rows:
            found[row.outcome].setdefault(row.unit, []).append(row)
        return found

    @property
    def ratios(self) -> list[float]:
        """Objective over the best real image's value, of every picture that has it."""
        return finite(row.ratio for rows in self.drawn.values() for row in rows)

    @property
    def median_ratio(self) -> float | None:
        return median(self.ratios) if self.ratios else None

    @property
    def share_above(self) -> float | None:
        """Share of the pictures whose ratio is at least 1."""
        return sum(ratio >= 1 for ratio in self.ratios) / len(self.ratios) if self.ratios else None

    @property
    def median_cosine(self) -> float | None:
        """Of the first layer's filters with their pictures."""
        found = finite(row.filter_cosine for rows in self.drawn.values() for row in rows)
        return median(found) if found else None

    @property
    def previews(self) -> list[Maximized]:
        """The first pictures of units spread evenly over the layer."""
        return spread([rows[0] for rows in self.drawn.values()], NUM_PREVIEWS)

    @property
    def columns(self) -> int:
        """Pictures side by side in a cell of the page, filters included."""
        return max((len(rows) + bool(filter_of(rows)) for rows in self.drawn.values()), default=1)

    def reason(self, unit: int) -> str | None:
        """Why a unit has no picture, in words; None where it has one, or was not asked for."""
        outcomes = {row.outcome: None for row in self.units.get(unit, [])}
        return None if DRAWN in outcomes else "; ".join(map(explain, outcomes)) or None


def write_sheet(folder: Path, data: MaximizationData, page: str) -> Sheet:
    """Write a layer's pictures, their contact sheet as one JPEG, and their numbers as CSV.

    Args:
        folder: of the report.
        data: the layer.
        page: file name of its page, without suffix, and of the folder of its pictures.

    Raises:
        InputError: a picture that must be there is missing, in another format than the column's, or broken.
    """
    table = data.read()
    pictures = folder / "pictures" / page
    pictures.mkdir(parents=True, exist_ok=True)
    seeds = _seeds(table)
    title = f"{data.layer}: {len(seeds)} units, {data.variant}"
    contact = ContactSheet(title, list(seeds), max(map(len, seeds.values()), default=1))
    units: dict[int, list[Maximized]] = {unit: [] for unit in seeds}
    for row in iterate_rows(table):
        where = f"unit {row['unit']}, seed {row['seed']} in layer {row['layer']}, variant {row['variant']}"
        files = _write_files(pictures, row, where)
        place = seeds[row["unit"]].index(row["seed"])
        _paste(contact, row, place, where)
        values: dict[str, Any] = {name: row[name] for name in _NUMBERS} | files
        units[row["unit"]].append(Maximized(**values, trace=row["trace"] or []))
    contact.save(folder / "layers" / f"{page}.jpg")
    write_csv(folder / "layers" / f"{page}.csv", plain_columns(table))
    by_seed = {unit: sorted(rows, key=lambda row: row.seed) for unit, rows in units.items()}
    return Sheet(data.layer, data.variant, page, data.settings, results_of(table), by_seed)


def _seeds(table: pa.Table) -> dict[int, list[int]]:
    """The seeds of each unit, both in order."""
    found: dict[int, list[int]] = {}
    for unit, seed in sorted(zip(table["unit"].to_pylist(), table["seed"].to_pylist(), strict=True)):
        found.setdefault(unit, []).append(seed)
    return found


def _write_files(folder: Path, row: dict[str, Any], where: str) -> dict[str, str]:
    """Write a row's pictures; the names of the files by column."""
    files = {}
    for column, ending in _FILES.items() if row["outcome"] == DRAWN else ():
        if row[column] is None and column != "picture":
            continue
        path = folder / f"unit-{row['unit']}-seed-{row['seed']}{ending}"
        formats = ("WebP",) if column == "animation" else ("JPEG", "PNG")
        files[column] = write_picture(path, row[column], f"{column} of {where}", CURE, formats)
    return files


def _paste(contact: ContactSheet, row: dict[str, Any], place: int, where: str) -> None:
    if row["outcome"] != DRAWN:
        contact.write(row["unit"], place, REASONS.get(row["outcome"], "not drawn"))
        return
    with decoding(f"picture of {where}", CURE):
        contact.paste(row["unit"], place, row["picture"]["bytes"])


def explain(outcome: str) -> str:
    """An outcome without a picture in words; one that is not known is left as it is."""
    return f"{REASONS[outcome]}: {MEANINGS[outcome]}" if outcome in REASONS else outcome


def filter_of(rows: Sequence[Maximized]) -> Maximized | None:
    """The first row of a unit that holds its filter; a filter has no seed."""
    return next((row for row in rows if row.filter), None)


def trace_of(rows: Sequence[Maximized]) -> Sparkline | None:
    """The traces of a unit's seeds beside the best real image's value."""
    return draw([row.trace for row in rows], rows[0].best_real)


def title_of(row: Maximized, variant: str) -> str:
    """What a picture's tooltip says."""
    words = [f"unit {row.unit}", variant, f"seed {row.seed}"]
    if row.objective is not None:
        words.append(
            f"{row.target}{' before its ReLU' if row.pre_relu else ''} {row.objective:.4g} at step {row.best_step}"
        )
    if row.ratio is not None:
        words.append(f"{row.ratio:.3g} times the best real image’s {row.best_real:.4g}")
    words.append(
        "never its layer’s argmax" if row.argmax_step is None else f"its layer’s argmax from step {row.argmax_step}"
    )
    if row.contrast is not None and row.contrast != 1:
        words.append(f"contrast times {row.contrast:.3g}")
    if row.redirected_steps:
        words.append(f"{row.redirected_steps} steps through redirected ReLUs")
    return " · ".join(words)


def _in_order(rows: Sequence[Maximized]) -> list[str]:
    """The known outcomes of some rows, then the others in the order of the alphabet."""
    found = {row.outcome for row in rows}
    return [name for name in REASONS if name in found] + sorted(found - set(REASONS))

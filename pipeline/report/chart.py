"""Charts over checkpoints: lines with bands, and stacked columns, on one horizontal scale.

Places from the left are percent of the width, so that a chart fits any screen while its words keep their size;
places from the top are pixels.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from pipeline.report.rows import finite

HEIGHT = 150
COLUMNS_HEIGHT = 96
MOST_TICKS = 6
STEP = 0.25
"""Between lines of the grid."""


@dataclass(frozen=True)
class Dot:
    """One value.

    Args:
        x: percent from the left.
        y: pixels from the top.
        words: what it stands for.
        is_marked: whether it is drawn larger.
    """

    x: float
    y: float
    words: str
    is_marked: bool = False


@dataclass(frozen=True)
class Line:
    """Values from left to right; where one is missing the path has a gap.

    Args:
        style: class in the style sheet.
        path: of the line.
        dots: the values.
        band: a path around it, empty without one.
    """

    style: str
    path: str
    dots: list[Dot]
    band: str = ""


@dataclass(frozen=True)
class Tick:
    """A label under a chart."""

    x: float
    words: str


@dataclass(frozen=True)
class Chart:
    """Lines on one scale.

    Args:
        grid: places from the top with what they stand for.
        ticks: under it.
        lines: the last one on top.
        limit: a dashed line's place from the top; None without one.
    """

    grid: list[tuple[float, str]]
    ticks: list[Tick]
    lines: list[Line]
    limit: float | None = None
    height: int = HEIGHT


@dataclass(frozen=True)
class Series:
    """What a line is made of.

    Args:
        name: begins the words of its dots.
        style: class in the style sheet.
        values: one a checkpoint; None where there is none.
        low, high: ends of the band.
        mark: place of the dot to mark.
    """

    name: str
    style: str
    values: Sequence[float | None]
    low: Sequence[float | None] = ()
    high: Sequence[float | None] = ()
    mark: int | None = None


@dataclass(frozen=True)
class Piece:
    """One category's part of a stacked column."""

    category: str
    count: int
    y: float
    height: float


@dataclass(frozen=True)
class Column:
    """One checkpoint's stack; `words` say what it holds."""

    x: float
    width: float
    words: str
    pieces: list[Piece] = field(default_factory=list)


def draw_lines(series: Sequence[Series], labels: Sequence[str], limit: float | None = None) -> Chart:
    """Values of at most 1, such as cosines, on a scale that holds 0 and 1.

    Args:
        series: the lines, each with a value a label.
        labels: of the checkpoints.
        limit: a value to compare with.
    """
    values = finite(value for one in series for part in (one.values, one.low, one.high) for value in part)
    lowest = min([0.0, *(math.floor(value / STEP) * STEP for value in values)])
    highest = max([1.0, *values])

    def height(value: float) -> float:
        return round(HEIGHT - HEIGHT * (value - lowest) / (highest - lowest), 1)

    steps = range(round(lowest / STEP), round(1 / STEP) + 1)
    grid = [(height(step * STEP), f"{step * STEP:g}") for step in steps if step % 2 == 0 or len(steps) < 8]
    lines = []
    for one in series:
        points = [(_x(place, len(labels)), value) for place, value in enumerate(one.values)]
        dots = [
            Dot(x, height(value), f"{one.name}, {labels[place]}: {value:.3f}", place == one.mark)
            for place, (x, value) in enumerate(points)
            if value is not None and math.isfinite(value)
        ]
        path = "".join(_path([(x, height(v)) for x, v in run]) for run in _runs(points))
        lines.append(Line(one.style, path, dots, _band(one, len(labels), height)))
    shown = limit is not None and math.isfinite(limit) and lowest <= limit <= highest
    return Chart(grid, draw_ticks(labels), lines, height(limit) if shown and limit is not None else None)


def draw_ticks(labels: Sequence[str]) -> list[Tick]:
    """Labels under the checkpoints at even steps, so few that they do not meet; under the last too, if there is room."""
    last = len(labels) - 1
    step = max(math.ceil(last / (MOST_TICKS - 1)), 1)
    places = list(range(0, len(labels), step))
    if places and 2 * (last - places[-1]) >= step and places[-1] != last:
        places.append(last)
    return [Tick(_x(place, len(labels)), labels[place]) for place in places]


def stack_columns(
    counts: Sequence[dict[str, int]], labels: Sequence[str], categories: Sequence[str], largest: int
) -> list[Column]:
    """A stacked column a checkpoint.

    Args:
        counts: by category, one a label.
        labels: of the checkpoints.
        categories: the order of the stack, from the bottom.
        largest: the total that a full column stands for.
    """
    slot = 100 / max(len(labels), 1)
    columns = []
    for place, (found, label) in enumerate(zip(counts, labels, strict=True)):
        words = ", ".join(f"{name} {found[name]}" for name in categories if found.get(name)) or "none"
        pieces, below = [], 0
        for name in categories:
            if number := found.get(name, 0):
                top, bottom = (
                    round(COLUMNS_HEIGHT * (1 - edge / max(largest, 1)), 2) for edge in (below + number, below)
                )
                pieces.append(Piece(name, number, top, round(bottom - top, 2)))
                below += number
        x, width = round((place + 0.1) * slot, 3), round(0.8 * slot, 3)
        columns.append(Column(x, width, f"{label}: {words}", pieces))
    return columns


def _x(place: int, count: int) -> float:
    """The middle of a checkpoint's slot."""
    return round(100 * (place + 0.5) / max(count, 1), 3)


def _runs(points: Sequence[tuple[float, float | None]]) -> list[list[tuple[float, float]]]:
    """Neighbors that all have a finite value."""
    runs: list[list[tuple[float, float]]] = [[]]
    for x, value in points:
        if value is None or not math.isfinite(value):
            runs.append([])
        else:
            runs[-1].append((x, value))
    return [run for run in runs if run]


def _path(points: Sequence[tuple[float, float]]) -> str:
    return "M" + " ".join(f"{x:g},{y:g}" for x, y in points)


def _band(series: Series, count: int, height: Callable[[float], float]) -> str:
    """A closed path around each run of checkpoints that have both ends."""
    ends = zip(series.low, series.high, strict=True)
    both = [
        (_x(place, count), place if len(finite([low, high])) == 2 else None) for place, (low, high) in enumerate(ends)
    ]
    path = ""
    for run in _runs(both):
        above = [(x, height(series.high[int(place)] or 0.0)) for x, place in run]
        below = [(x, height(series.low[int(place)] or 0.0)) for x, place in reversed(run)]
        path += _path([*above, *below]) + "Z"
    return path

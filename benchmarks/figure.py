"""A figure: what was measured in every round, and the bar it is held against."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Literal

Unit = Literal["x", "%", "s", "ms", "images/s", "image-steps/s", "MB", "kB"]


@dataclass(frozen=True)
class Bar:
    """What a figure's median must not exceed, or must reach; from the project's issue on speed."""

    limit: float
    at_least: bool = False
    aim: float | None = None

    def holds(self, value: float) -> bool:
        return value >= self.limit if self.at_least else value <= self.limit

    def __str__(self) -> str:
        sign = ">=" if self.at_least else "<="
        return f"{sign} {self.limit:.2f}" + (f", aim {self.aim:.2f}" if self.aim is not None else "")


@dataclass(frozen=True)
class Figure:
    """One row of the table: a value a round."""

    name: str
    values: tuple[float, ...]
    unit: Unit = "x"
    bar: Bar | None = None

    def __post_init__(self) -> None:
        if not self.values:
            raise ValueError(f"figure {self.name!r} has no values, must have one a round")

    @property
    def median(self) -> float:
        return median(self.values)

    @property
    def verdict(self) -> str:
        """holds or misses; nothing where there is no bar."""
        if self.bar is None:
            return ""
        return "holds" if self.bar.holds(self.median) else "misses"

    def cells(self) -> tuple[str, ...]:
        """As `COLUMNS` has them."""
        low, high = (format_value(value, self.unit) for value in (min(self.values), max(self.values)))
        spread = "" if len(self.values) == 1 else f"{low} .. {high}"
        bar = "" if self.bar is None else str(self.bar)
        return self.name, bar, format_value(self.median, self.unit), spread, str(len(self.values)), self.verdict


COLUMNS = ("figure", "bar", "median", "min .. max", "rounds", "verdict")


def format_value(value: float, unit: Unit) -> str:
    """A value as people read it; `%` is a share, as `x` is a ratio.

    >>> format_value(1.234, "x"), format_value(0.07, "%"), format_value(12345, "kB")
    ('1.23', '7%', '12345 kB')
    """
    if unit == "x":
        return f"{value:.2f}"
    if unit == "%":
        return f"{value:.0%}"
    return f"{value:.3g} {unit}" if abs(value) < 1000 else f"{value:.0f} {unit}"


def interleave(rounds: int, *sides: Callable[[], float]) -> list[tuple[float, ...]]:
    """Measure the sides in turn, A B A B ..., so that what slows the machine slows both.

    Returns:
        What each side returned, by side.
    """
    measured = [tuple(side() for side in sides) for _ in range(rounds)]
    return list(zip(*measured, strict=True))


def ratios(above: Iterable[float], below: Iterable[float]) -> tuple[float, ...]:
    """Round by round: the two of a round had the same machine."""
    return tuple(a / b for a, b in zip(above, below, strict=True))


def rates(number: float, seconds: Sequence[float]) -> tuple[float, ...]:
    """So many a second, round by round."""
    return tuple(number / one for one in seconds)

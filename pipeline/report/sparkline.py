"""The value of a target on its way up, as a small drawing."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

WIDTH, HEIGHT = 100, 24
MAX_POINTS = 48


@dataclass(frozen=True)
class Sparkline:
    """Traces on one scale, in a box of `WIDTH` by `HEIGHT`.

    Args:
        paths: one SVG path a trace.
        limit: where the best real image's value lies, from the top; None without one.
    """

    paths: list[str]
    limit: float | None


def draw(traces: Sequence[Sequence[float | None]], limit: float | None) -> Sparkline | None:
    """Traces of one unit, and the value to compare them with; None without two finite values in a trace."""
    points = [kept for kept in (_thin(trace) for trace in traces) if len(kept) > 1]
    if not points:
        return None
    limit = limit if limit is not None and math.isfinite(limit) else None
    values = [value for kept in points for _, value in kept] + ([] if limit is None else [limit])
    low, high = min(values), max(values)

    def height(value: float) -> float:
        share = (value - low) / (high - low) if high > low else 0.5
        return round(1 + (HEIGHT - 2) * (1 - share), 1)

    paths = ["M" + " ".join(f"{x:g},{height(value):g}" for x, value in kept) for kept in points]
    return Sparkline(paths, None if limit is None else height(limit))


def _thin(trace: Sequence[float | None]) -> list[tuple[float, float]]:
    """At most `MAX_POINTS` finite values of a trace with their place from the left; the last is kept."""
    last = len(trace) - 1
    count = min(len(trace), MAX_POINTS)
    places = sorted({round(i * last / max(count - 1, 1)) for i in range(count)})
    kept = [(place, trace[place]) for place in places]
    return [
        (round(place * WIDTH / max(last, 1), 1), value)
        for place, value in kept
        if value is not None and math.isfinite(value)
    ]

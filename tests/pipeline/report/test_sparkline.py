"""The small drawings of traces."""

import re

import pytest

from pipeline.report.sparkline import HEIGHT, MAX_POINTS, WIDTH, draw


def points_of(path: str) -> list[tuple[float, float]]:
    return [(float(x), float(y)) for x, y in re.findall(r"([\d.]+),([\d.]+)", path)]


def test_a_trace_goes_from_left_to_right_and_up() -> None:
    line = draw([[0.0, 1.0, 4.0]], 2.0)
    assert line is not None
    assert points_of(line.paths[0]) == [(0, HEIGHT - 1), (50, 17.5), (WIDTH, 1)]
    assert line.limit == HEIGHT / 2


def test_traces_of_one_unit_share_a_scale() -> None:
    line = draw([[0.0, 1.0], [0.0, 2.0]], None)
    assert line is not None
    assert [points_of(path)[-1] for path in line.paths] == [(WIDTH, 12), (WIDTH, 1)]
    assert line.limit is None


def test_long_traces_are_thinned_and_keep_both_ends() -> None:
    line = draw([[float(i) for i in range(1001)]], None)
    assert line is not None
    points = points_of(line.paths[0])
    assert len(points) == MAX_POINTS
    assert (points[0], points[-1]) == ((0, HEIGHT - 1), (WIDTH, 1))


@pytest.mark.parametrize("trace", [[], [1.0], [None, 1.0], [float("nan"), float("inf"), 1.0]])
def test_too_few_values_are_not_drawn(trace: list[float | None]) -> None:
    assert draw([trace], 1.0) is None


def test_values_that_are_not_finite_are_left_out() -> None:
    line = draw([[0.0, float("nan"), 2.0], [3.0, 3.0]], float("inf"))
    assert line is not None
    assert [len(points_of(path)) for path in line.paths] == [2, 2]
    assert line.limit is None


def test_a_flat_trace_lies_in_the_middle() -> None:
    line = draw([[3.0, 3.0]], None)
    assert line is not None
    assert {y for _, y in points_of(line.paths[0])} == {HEIGHT / 2}

"""Charts over checkpoints: where values lie, what is left out, that columns add up."""

import re
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.report.chart import (
    COLUMNS_HEIGHT,
    HEIGHT,
    MOST_TICKS,
    Series,
    draw_lines,
    draw_ticks,
    stack_columns,
)

NAN = float("nan")


def labels(count: int) -> list[str]:
    return [str(i) for i in range(count)]


def points_of(path: str) -> list[tuple[float, float]]:
    return [(float(x), float(y)) for x, y in re.findall(r"([\d.-]+),([\d.-]+)", path)]


def test_a_line_goes_from_slot_to_slot_on_a_scale_from_0_to_1() -> None:
    chart = draw_lines([Series("a", "last", [0.0, 0.5, 1.0, 1.0], mark=2)], labels(4), 0.75)
    (line,) = chart.lines
    assert points_of(line.path) == [(12.5, HEIGHT), (37.5, HEIGHT / 2), (62.5, 0), (87.5, 0)]
    assert [(dot.x, dot.y) for dot in line.dots] == points_of(line.path)
    assert [dot.words for dot in line.dots][1] == "a, 1: 0.500"
    assert [dot.is_marked for dot in line.dots] == [False, False, True, False]
    assert chart.limit == HEIGHT / 4
    assert chart.grid == [(150, "0"), (112.5, "0.25"), (75, "0.5"), (37.5, "0.75"), (0, "1")]


def test_negative_cosines_lower_the_scale() -> None:
    chart = draw_lines([Series("a", "last", [-0.9, 1.0])], labels(2))
    assert points_of(chart.lines[0].path) == [(25, pytest.approx(142.5)), (75, 0)]
    assert [words for _, words in chart.grid] == ["-1", "-0.5", "0", "0.5", "1"]


def test_missing_values_leave_gaps() -> None:
    chart = draw_lines([Series("a", "last", [None, 0.5, NAN, 0.5, 1.0, None])], labels(6))
    (line,) = chart.lines
    assert line.path.count("M") == 2
    assert len(points_of(line.path)) == len(line.dots) == 3
    nothing = draw_lines([Series("a", "last", [None, None])], labels(2), NAN)
    assert (nothing.lines[0].path, nothing.lines[0].dots, nothing.limit) == ("", [], None)


def test_a_band_surrounds_the_checkpoints_that_have_both_ends() -> None:
    series = Series("a", "before", [None, 0.5, 0.6, 0.7], [None, 0.4, 0.5, None], [None, 0.6, 0.7, 0.8])
    (line,) = draw_lines([series], labels(4)).lines
    assert points_of(line.band) == [(37.5, 60), (62.5, 45), (62.5, 75), (37.5, 90)]
    assert line.band.endswith("Z")
    assert draw_lines([Series("a", "b", [0.5])], labels(1)).lines[0].band == ""


def test_a_limit_outside_of_the_scale_is_not_drawn() -> None:
    assert draw_lines([Series("a", "b", [0.5])], labels(1), 2.0).limit is None


@given(st.integers(0, 500))
def test_few_labels_at_even_steps(count: int) -> None:
    ticks = draw_ticks(labels(count))
    assert len(ticks) <= MOST_TICKS + 1
    places = [int(tick.words) for tick in ticks]
    assert places[:1] == [0][:count]
    steps = [after - before for before, after in pairwise(places)]
    assert len(set(steps[:-1])) <= 1
    assert count < 2 or steps[-1] * 2 >= steps[0]
    assert all(0 < tick.x < 100 for tick in ticks)


def test_columns_add_up_and_keep_the_order_of_categories() -> None:
    counts = [{}, {"part": 1, "object": 2}, {"object": 4}]
    columns = stack_columns(counts, ["5", "10", "15"], ["object", "part"], 4)
    assert [column.words for column in columns] == ["5: none", "10: object 2, part 1", "15: object 4"]
    assert [[piece.category for piece in column.pieces] for column in columns] == [[], ["object", "part"], ["object"]]
    below, above = columns[1].pieces
    assert below.y + below.height == COLUMNS_HEIGHT
    assert above.y + above.height == below.y
    assert (above.height, below.height) == (COLUMNS_HEIGHT / 4, COLUMNS_HEIGHT / 2)
    (full,) = columns[2].pieces
    assert (full.y, full.height) == (0, COLUMNS_HEIGHT)
    assert all(column.x >= 0 and column.x + column.width <= 100 for column in columns)


def test_no_columns_of_nothing() -> None:
    assert stack_columns([], [], [], 0) == []
    assert stack_columns([{}], ["1"], [], 0)[0].pieces == []

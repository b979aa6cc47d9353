"""The arithmetic of the benchmarks, and the table they end in."""

import pytest
from rich.console import Console

from benchmarks import __main__ as command
from benchmarks.bench import Bench
from benchmarks.figure import Bar, Figure, format_value, interleave, rates, ratios
from benchmarks.table import append, describe, to_markdown


def test_sides_are_measured_in_turn_and_come_back_by_side():
    calls = []

    def side(name: str) -> float:
        calls.append(name)
        return float(len(calls))

    assert interleave(2, lambda: side("a"), lambda: side("b")) == [(1.0, 3.0), (2.0, 4.0)]
    assert calls == ["a", "b", "a", "b"]


def test_ratios_are_of_paired_rounds():
    assert ratios([2.0, 9.0], [1.0, 3.0]) == (2.0, 3.0)
    assert rates(10, [2.0, 5.0]) == (5.0, 2.0)
    with pytest.raises(ValueError, match=r"shorter|longer"):
        ratios([1.0], [1.0, 2.0])


@pytest.mark.parametrize(
    ("values", "bar", "verdict"),
    [
        ((1.0, 1.2, 9.0), Bar(1.2), "holds"),
        ((1.0, 1.21, 1.3), Bar(1.2), "misses"),
        ((1.6, 1.7, 1.9), Bar(1.7, at_least=True), "holds"),
        ((1.6, 1.69, 1.9), Bar(1.7, at_least=True), "misses"),
        ((5.0,), None, ""),
    ],
)
def test_the_median_is_held_against_the_bar(values: tuple[float, ...], bar: Bar | None, verdict: str):
    assert Figure("one", values, bar=bar).verdict == verdict


def test_cells_say_the_spread_only_where_there_is_one():
    assert Figure("f", (2.0, 1.0, 4.0), bar=Bar(1.7, True, 1.85)).cells() == (
        "f", ">= 1.70, aim 1.85", "2.00", "1.00 .. 4.00", "3", "holds",
    )  # fmt: skip
    assert Figure("f", (0.25,), "%").cells() == ("f", "", "25%", "", "1", "")
    with pytest.raises(ValueError, match="'f' has no values"):
        Figure("f", ())


def test_values_are_written_with_their_unit():
    written = [format_value(0.01234, "s"), format_value(12345.6, "kB"), format_value(316.4, "images/s")]
    assert written == ["0.0123 s", "12346 kB", "316 images/s"]


def test_markdown_is_appended_and_earlier_tables_stay(tmp_path):
    path = tmp_path / "new" / "bench.md"
    for name in ("first", "second"):
        append(path, to_markdown([name, "a machine", "a torch"], [Figure(name, (1.0,))]))
    text = path.read_text()
    assert text.startswith("### first\n\na machine. a torch.\n\n| figure | bar |")
    assert "|\n\n### second\n" in text
    assert "| second |  | 1.00 |  | 1 |  |\n" in text


def test_what_was_measured_is_written_even_if_a_benchmark_fails(tmp_path, monkeypatch):
    def fail(bench: Bench):
        yield Figure("before", (1.0,))
        raise RuntimeError("broken")

    monkeypatch.setattr(command, "BENCHMARKS", {"fail": fail})
    bench = Bench(tmp_path, rounds=1, images=7)
    with pytest.raises(RuntimeError, match="broken"):
        command.measure(bench, ["fail"], Console(quiet=True), tmp_path / "out.md")
    assert "| before |" in (tmp_path / "out.md").read_text()
    assert any(line.startswith("7 images of scenes") for line in describe(bench))

"""The DeconvNet's patterns in the report: beside their crops, on the pages of layers and on pages of their own."""

import csv
import io
import re
from html import escape
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from PIL import Image

from pipeline.errors import InputError
from pipeline.report import PatternsData, ReportData, write_report
from pipeline.report.parts import Parts
from pipeline.report.patterns import Pattern, PatternSheet, describe_pattern, write_patterns
from schemas import DECONVNET
from tests.pipeline.report.elements import Elements, check_links, check_nothing_inline, read_page, words_of
from tests.pipeline.report.synthetic import ATTACK, FORMULA, STUDY, make_layer
from tests.pipeline.report.synthetic_maximized import CUT_SHORT, as_cell
from tests.pipeline.report.synthetic_patterns import (
    CLIPPED,
    NUM_RANKS,
    blob,
    make_patterns,
    make_patterns_data,
    pattern_row,
    pattern_rows,
    to_pattern_table,
)

SHEETS = (
    "features.0-patterns-deconvnet", "features.1-patterns-deconvnet", "features.1-patterns-guided",
    "classifier.6-patterns-deconvnet",
)  # fmt: skip


def sheet_of(folder: Path, rows: list[dict[str, Any]]) -> PatternSheet:
    (folder / "layers").mkdir()
    return write_patterns(folder, make_patterns("conv1", rows), "conv1-patterns-deconvnet")


def part_of(text: str, unit: int) -> str:
    """The part of a page that shows one unit."""
    return text.split(f'id="unit-{unit}"')[1].split('id="unit-')[0]


def pictures_of(text: str, kind: str) -> list[str]:
    """The names of the pictures in a grid, in order."""
    grid = text.split(f'<ol class="{kind}"')[1].split("</ol>")[0]
    return re.findall(r'<img src="[^"]*/([^"/]+)"', grid)


def test_files_of_a_report_with_patterns(patterns_report: Path) -> None:
    layers = {path.name for path in (patterns_report / "layers").iterdir()}
    assert {f"{name}{suffix}" for name in SHEETS for suffix in (".html", ".jpg", ".csv")} <= layers
    shown = {path.name for path in (patterns_report / "pictures/features.0-patterns-deconvnet").glob("unit-0-*")}
    assert shown == {f"unit-0-rank-{rank}{end}.png" for rank in range(NUM_RANKS - 1) for end in ("", "-crop")}
    crop = patterns_report / "pictures/features.1-patterns-guided/unit-7-rank-2-crop.jpg"
    assert crop.read_bytes() == blob(7, 2, 96, 96)


def test_addresses_exist_and_nothing_is_inline(patterns_report: Path) -> None:
    pages = check_links(patterns_report)
    assert len(pages) == 1 + 2 + 1 + len(SHEETS)
    for page in pages:
        check_nothing_inline(page)
        assert ATTACK not in page.read_text(encoding="utf-8")


def test_patterns_and_crops_are_in_the_same_order(patterns_report: Path) -> None:
    for name in SHEETS:
        text = read_page(patterns_report, name)
        suffix = "png" if "features.0" in name else "jpg"
        for unit in (0, 1):
            cell = part_of(text, unit)
            ranks = range(NUM_RANKS - (unit == 0))
            assert pictures_of(cell, "pattern") == [f"unit-{unit}-rank-{rank}.{suffix}" for rank in ranks]
            assert pictures_of(cell, "crop") == [f"unit-{unit}-rank-{rank}-crop.{suffix}" for rank in ranks]
            assert "grid-3" in cell


def test_rows_of_a_unit_are_by_rank_whatever_their_order(tmp_path: Path) -> None:
    table = to_pattern_table("conv1", pattern_rows(2))
    (tmp_path / "layers").mkdir()
    backwards = table.take(list(reversed(range(table.num_rows))))
    sheet = write_patterns(tmp_path, PatternsData("conv1", "deconvnet", {}, lambda: backwards), "page")
    assert list(sheet.units) == [0, 1]
    assert [row.rank for row in sheet.units[1]] == list(range(NUM_RANKS))


def test_small_boxes_are_scaled_up_pixel_by_pixel(patterns_report: Path) -> None:
    assert Elements(patterns_report / "layers/features.0-patterns-deconvnet.html").of_class("pixelated")
    assert Elements(patterns_report / "layers/features.0.html").of_class("pixelated")
    assert not Elements(patterns_report / "layers/features.1-patterns-deconvnet.html").of_class("pixelated")


def test_head_of_a_page(patterns_report: Path) -> None:
    text = words_of(read_page(patterns_report, "features.1-patterns-deconvnet"))
    assert (
        "Patterns, deconvnet features.1 11 of 12 units 98 patterns 0.350 median aliasing, 0.050 in the images" in text
    )
    assert "dissection of this layer guided contact sheet.jpg numbers.csv" in text
    assert "rule deconvnet on the way back a ReLU lets through what is positive there" in text
    assert "keep cell the map&#39;s maximum alone goes back to pixels" in text
    assert "aliasing, " not in words_of(read_page(patterns_report, "classifier.6-patterns-deconvnet"))


def test_card_shows_the_first_rule_and_links_the_others(patterns_report: Path) -> None:
    card = part_of(read_page(patterns_report, "features.1"), 7)
    figure = card.split('<figure class="patterns">')[1].split("</figure>")[0]
    assert len(pictures_of(figure, "pattern")) == len(pictures_of(figure, "crop")) == NUM_RANKS
    assert "features.1-patterns-deconvnet/unit-7-rank-0.jpg" in figure
    assert "patterns-guided/" not in figure
    assert re.findall(r'<a href="([^"]*html[^"]*)"', figure) == [
        "features.1-patterns-deconvnet.html#unit-7", "features.1-patterns-guided.html#unit-7",
    ]  # fmt: skip
    missing = part_of(read_page(patterns_report, "features.1"), 11)
    assert "no pattern" in missing
    assert 'class="pairs' not in missing


def test_card_keeps_nine_of_more(tmp_path: Path) -> None:
    data = ReportData(STUDY, [make_layer()], patterns=[make_patterns("features.0", pattern_rows(2, ranks=16))])
    write_report(tmp_path, data)
    assert len(pictures_of(part_of(read_page(tmp_path, "features.0"), 1), "crop")) == 9
    cell = part_of(read_page(tmp_path, "features.0-patterns-deconvnet"), 1)
    assert len(pictures_of(cell, "crop")) == 16
    assert "grid-4" in cell


def test_tooltip_has_the_numbers_of_a_pattern() -> None:
    row = pattern_row(CLIPPED, 1, keep="map", outside=2)
    values = {name: row[name] for name in Pattern.__dataclass_fields__}
    assert describe_pattern(Pattern(**values), "guided") == (
        f"unit 3 · place 2: image 31, {ATTACK}/3.jpg · activation 8 at row 1, column 2 of the grid · "
        "11 × 6 pixels from row 8, column 0, cut off by the image’s edge · guided · the whole map · "
        "2 values outside the box"
    )


def test_patterns_that_leave_their_box_are_counted(tmp_path: Path) -> None:
    rows = [
        pattern_row(0),
        pattern_row(1, outside=3),
        pattern_row(2, nyquist_share=None, nyquist_share_image=float("nan")),
    ]
    sheet = sheet_of(tmp_path, rows)
    assert (sheet.num_outside, sheet.num_patterns, sheet.side) == (1, 3, 1)
    assert sheet.aliasing == pytest.approx(0.125)
    assert sheet.aliasing_images == pytest.approx(0.05)


def test_layer_without_patterns_has_a_page(tmp_path: Path) -> None:
    index = write_report(tmp_path, ReportData(STUDY, [], patterns=[make_patterns("conv1", [])]))
    assert "No unit of this layer has a pattern." in read_page(tmp_path, "conv1-patterns-deconvnet")
    text = index.read_text(encoding="utf-8")
    assert "<title>mininet on mini: patterns</title>" in text
    assert "conv1 deconvnet 0 of 0 units none" in words_of(text)


def test_many_units_are_on_several_pages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.report.patterns.MOST_PICTURES", 4 * 2 * NUM_RANKS)
    data = ReportData(STUDY, [make_layer()], patterns=[make_patterns("features.0", pattern_rows(9))])
    write_report(tmp_path, data)
    check_links(tmp_path)
    pages = [f"features.0-patterns-deconvnet{end}" for end in ("", "~2", "~3")]
    for page, units in zip(pages, ((0, 1, 2), (3, 4, 5), (6, 7, 8)), strict=True):
        found = [one for one in Elements(tmp_path / f"layers/{page}.html").ids if one.startswith("unit-")]
        assert found == [f"unit-{unit}" for unit in units]
        assert "units 0 to 2 3 to 5 6 to 8" in words_of(read_page(tmp_path, page))
    assert f"{pages[2]}.html#unit-7" in read_page(tmp_path, "features.0")


@pytest.mark.parametrize(("units", "most", "lengths"), [(0, 3, [0]), (3, 3, [3]), (7, 3, [3, 3, 1]), (4, 0, [1] * 4)])
def test_parts_hold_every_unit_once(units: int, most: int, lengths: list[int]) -> None:
    parts = Parts("page", range(units), most)
    assert [len(part.units) for part in parts] == lengths
    assert [unit for part in parts for unit in part.units] == list(range(units))
    assert parts[0].page == "page"
    assert parts.page_of(units) is None


@pytest.mark.parametrize("units", [1, 5])
def test_contact_sheet_has_patterns_beside_crops(tmp_path: Path, units: int) -> None:
    rows = []
    for unit in range(units):
        for rank in range(4):
            pair = {
                name: as_cell(flat(shade)) for name, shade in (("pattern", 40 + 50 * rank), ("crop", 45 + 50 * rank))
            }
            rows.append(pattern_row(unit, rank, **pair))
    sheet_of(tmp_path, rows)
    with Image.open(tmp_path / "layers/conv1-patterns-deconvnet.jpg") as image:
        block = 2 * 48 + 8
        places = [
            (8 + b * block + 48 * (rank % 2) + 24, 48 + 48 * (rank // 2) + 24) for rank in range(4) for b in (0, 1)
        ]
        shades = [image.getpixel(place)[0] for place in places]
    assert shades == pytest.approx([40, 45, 90, 95, 140, 145, 190, 195], abs=2)


def flat(shade: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (40, 40), (shade, shade, shade)).save(buffer, "PNG")
    return buffer.getvalue()


def test_csv_has_the_numbers_and_no_pictures(tmp_path: Path) -> None:
    rows = [pattern_row(0, image=FORMULA), pattern_row(1, nyquist_share=None)]
    write_report(tmp_path, ReportData(STUDY, [], patterns=[make_patterns("conv1", rows)]))
    with (tmp_path / "layers/conv1-patterns-deconvnet.csv").open(encoding="utf-8", newline="") as file:
        found = list(csv.DictReader(file))
    assert list(found[0]) == [name for name in DECONVNET.schema.names if name not in ("pattern", "crop")]
    assert found[0]["image"] == f"'{FORMULA}"
    assert [row["nyquist_share"] for row in found] == ["0.1", ""]


def test_hostile_names_stay_text(tmp_path: Path) -> None:
    rows = [pattern_row(0, rule=ATTACK)]
    first, second = make_patterns(f"../{ATTACK}", rows, ATTACK), make_patterns("features.0", rows, ATTACK)
    second.settings[ATTACK] = ATTACK
    write_report(tmp_path / "report", ReportData(STUDY, [make_layer()], patterns=[first, second]))
    for page in check_links(tmp_path / "report"):
        text = page.read_text(encoding="utf-8")
        assert ATTACK not in text
        assert escape(ATTACK) in text
        check_nothing_inline(page)
    assert [path.name for path in tmp_path.iterdir()] == ["report"]


@pytest.mark.parametrize("column", ["pattern", "crop"])
@pytest.mark.parametrize(
    ("cell", "words"),
    [
        ({"bytes": b"<svg onload='alert(1)'/>", "path": ""}, "begin b'<svg onl', must be JPEG or PNG"),
        ({"bytes": None, "path": ""}, "is 0 bytes that begin b'', must be JPEG or PNG"),
        ({"bytes": CUT_SHORT, "path": ""}, ""),
    ],
)
def test_picture_that_is_none_is_an_error_that_names_it_and_the_cure(
    tmp_path: Path, column: str, cell: dict[str, Any], words: str
) -> None:
    place = r"of unit 3, rank 1, image 31 in layer conv1, deconvnet"
    with pytest.raises(InputError, match=rf"^{column} {place} .*{words}.*: project the layer's units back again$"):
        sheet_of(tmp_path, [pattern_row(3, 1, **{column: cell})])


def test_one_result_is_read_at_a_time(tmp_path: Path) -> None:
    order: list[str] = []

    def reader(name: str) -> Any:
        def read() -> pa.Table:
            assert len(list((tmp_path / "layers").glob("*.jpg"))) == len(order)
            order.append(name)
            return to_pattern_table(name, [pattern_row(0)])

        return read

    data = [PatternsData(name, "deconvnet", {}, reader(name)) for name in ("b", "a")]
    write_report(tmp_path, ReportData(STUDY, [], patterns=data))
    assert order == ["b", "a"]


def test_same_tables_give_the_same_bytes(patterns_report: Path, tmp_path: Path) -> None:
    write_report(tmp_path, make_patterns_data())
    files = sorted(path.relative_to(patterns_report) for path in patterns_report.rglob("*") if path.is_file())
    assert files == sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*") if path.is_file())
    for file in files:
        assert (patterns_report / file).read_bytes() == (tmp_path / file).read_bytes(), file


def test_pages_without_patterns_know_nothing_of_them(report: Path) -> None:
    for page in (report / "index.html", *(report / "layers").glob("*.html")):
        assert "pattern" not in page.read_text(encoding="utf-8").lower()

"""Activation maximization in the report: on the pages of layers, on pages of its own, and without detectors."""

import csv
import io
import re
from dataclasses import replace
from html import escape
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from PIL import Image

from pipeline.errors import InputError
from pipeline.report import MaximizationData, ReportData, write_report
from pipeline.report.download import plain_columns
from pipeline.report.maximized import Maximized, Sheet, title_of, write_sheet
from schemas import ACTIVATION_MAXIMIZATION
from tests.pipeline.report.elements import (
    Elements,
    check_links,
    check_nothing_inline,
    page_addresses,
    read_page,
    words_of,
)
from tests.pipeline.report.synthetic import ATTACK, FORMULA, STUDY, make_layer
from tests.pipeline.report.synthetic_maximized import (
    BLOCKED,
    CUT_SHORT,
    DEAD,
    HALF_BLOCKED,
    as_cell,
    make_maximized,
    make_maximized_data,
    make_maximized_only,
    maximized_row,
    maximized_rows,
    moving,
    not_drawn_row,
    to_maximized_table,
    waves,
    with_filter,
)

SHEETS = (
    "features.0-maximized-plain", "features.1-maximized-fourier", "features.1-maximized-plain",
    "classifier.6-maximized-plain",
)  # fmt: skip


def sheet_of(folder: Path, rows: list[dict[str, Any]]) -> Sheet:
    (folder / "layers").mkdir()
    return write_sheet(folder, make_maximized("conv1", rows), "conv1-maximized-plain")


def cell_of(text: str, unit: int) -> str:
    """The part of a page that shows one unit."""
    return text.split(f'id="unit-{unit}"')[1].split('id="unit-')[0]


def test_files_of_a_report_with_pictures(maximized_report: Path) -> None:
    files = {path.relative_to(maximized_report).as_posix() for path in maximized_report.rglob("*") if path.is_file()}
    layers = {file for file in files if file.startswith("layers/")}
    assert layers == {
        *(f"layers/{name}{suffix}" for name in SHEETS for suffix in (".html", ".jpg", ".csv")),
        *(f"layers/features.{i}{suffix}" for i in (0, 1) for suffix in (".html", "-detectors.csv")),
    }
    shown = {file for file in files if file.startswith("pictures/features.0-maximized-plain/unit-0-")}
    assert {Path(file).name for file in shown} == {
        f"unit-0-seed-{seed}{ending}" for seed in (0, 1) for ending in (".jpg", "-last.jpg", "-filter.png")
    } | {"unit-0-seed-0-animation.webp"}
    assert not [file for file in files if f"/unit-{DEAD}-seed-" in file or f"/unit-{BLOCKED}-seed-" in file]
    picture = maximized_report / "pictures/features.1-maximized-fourier/unit-7-seed-2.jpg"
    assert picture.read_bytes() == waves(7, 2)


def test_addresses_exist_and_ids_are_unique(maximized_report: Path) -> None:
    assert len(check_links(maximized_report)) == 1 + 2 + len(SHEETS)


def test_every_unit_of_a_sheet_can_be_linked_to(maximized_report: Path) -> None:
    for name, count in zip(SHEETS, (8, 12, 12, 10), strict=True):
        assert {f"unit-{unit}" for unit in range(count)} <= set(Elements(maximized_report / f"layers/{name}.html").ids)


def test_numbers_of_a_sheet(tmp_path: Path) -> None:
    sheet = sheet_of(tmp_path, [with_filter(row) for row in maximized_rows(8)])
    assert sheet.outcomes == {"drawn": 6, "dead": 1, "relu_blocked": 1}
    assert sheet.ratios == [0.5, 0.5, 1.0, 1.0, 2.0, 2.5, 2.5, 3.5, 3.5, 4.0, 4.0]
    assert sheet.median_ratio == 2.5
    assert sheet.share_above == pytest.approx(9 / 11)
    assert sheet.median_cosine == pytest.approx(0.94)
    assert {outcome: list(units) for outcome, units in sheet.not_drawn.items()} == {
        "dead": [DEAD],
        "relu_blocked": [BLOCKED, HALF_BLOCKED],
    }
    assert [row.unit for row in sheet.previews] == [0, 1, 3, 4, 6, 7]
    assert sheet.columns == 3


def test_ratios_that_are_not_there_do_not_count(tmp_path: Path) -> None:
    rows = [maximized_row(unit, ratio=ratio) for unit, ratio in enumerate([None, float("nan"), 0.8])]
    sheet = sheet_of(tmp_path, rows)
    assert (sheet.median_ratio, sheet.share_above, sheet.median_cosine) == (pytest.approx(0.8), 0.0, None)


def test_head_of_a_sheet(maximized_report: Path) -> None:
    text = words_of(read_page(maximized_report, "features.0-maximized-plain"))
    assert "8 units 6 drawn 1 dead 1 blocked 2.50× median ratio 82% at least 1× 0.940 median cosine" in text
    assert "neuron the map&#39;s center cell" in text
    assert "cosine with the filter" not in words_of(read_page(maximized_report, "features.1-maximized-plain"))


def test_cell_shows_filter_seeds_and_links(maximized_report: Path) -> None:
    page = read_page(maximized_report, "features.0-maximized-plain")
    cell = cell_of(page, 0)
    pictures = ["unit-0-seed-0-filter.png", "unit-0-seed-0.jpg", "unit-0-seed-1.jpg"]
    assert re.findall(r'<img[^>]* src="[^"]*/([^"/]+)"', cell) == pictures
    assert 'class="pixelated"' in cell
    assert {"unit-0-seed-0-last.jpg", "unit-0-seed-0-animation.webp"} <= set(re.findall(r'href="[^"]*/([^"/]+)"', cell))
    assert words_of(cell).startswith("> 0 car filter 0.50× last animation cosine 0.900 0.50× last cosine 0.900")
    assert cell.count('class="trace"') == 2
    assert 'class="limit"' in cell
    assert "animation.webp" not in cell_of(page, 1)
    assert cell_of(page, HALF_BLOCKED).count("<img") == 2  # the filter and one seed


def test_units_that_are_not_drawn_say_why(maximized_report: Path) -> None:
    page = read_page(maximized_report, "features.0-maximized-plain")
    text = words_of(page.split('id="not-drawn"')[1])
    assert "dead: no image, real or made, gets the unit above 0 1 5" in text
    assert "blocked: a ReLU stops the gradient at every start that was tried 2 2 3 seed 0" in text
    assert "<img" not in page.split('id="not-drawn"')[1]


def test_tooltip_has_the_numbers_of_a_picture() -> None:
    values = {"unit": 7, "seed": 2, "target": "channel", "pre_relu": True, "outcome": "drawn", "objective": 16.0}
    values |= {"best_step": 40, "best_real": 4.0, "ratio": 4.0, "argmax_step": None, "redirected_steps": 3}
    row = Maximized(**values, contrast=1.5, filter_cosine=None, trace=[])
    assert title_of(row, "fourier") == (
        "unit 7 · fourier · seed 2 · channel before its ReLU 16 at step 40 · 4 times the best real image’s 4 · "
        "never its layer’s argmax · contrast times 1.5 · 3 steps through redirected ReLUs"
    )


def test_card_shows_the_first_picture_large_and_the_others_small(maximized_report: Path) -> None:
    page = read_page(maximized_report, "features.1")
    card = cell_of(page, 7)
    figure, exemplars = card.split('<ol class="exemplars">')
    pictures = [f"features.1-maximized-fourier/unit-7-seed-{seed}.jpg" for seed in range(4)]
    pictures.append("features.1-maximized-plain/unit-7-seed-0.jpg")
    assert re.findall(r'<img src="../pictures/([^"]+)" width="(\d+)"', figure) == [
        (picture, "32" if place else "112") for place, picture in enumerate(pictures)
    ]
    assert "maximized 4.00×" in words_of(figure)
    assert "maximized" not in exemplars
    assert "outlined" not in figure
    assert "median 4.00×" in words_of(page.split("<main>")[0])


def test_card_takes_the_first_picture_there_is(maximized_report: Path) -> None:
    card = cell_of(read_page(maximized_report, "features.1"), HALF_BLOCKED)  # blocked in plain, and in fourier's seed 0
    assert re.findall(r'<img src="../pictures/([^"]+)" width="112" height="112" [^>]*maximized', card) == [
        "features.1-maximized-fourier/unit-3-seed-1.jpg"
    ]


def test_card_says_why_a_unit_is_not_drawn(tmp_path: Path) -> None:
    rows = [
        not_drawn_row(0, 0, "dead"),
        not_drawn_row(3, 0, "relu_blocked"),
        maximized_row(1),
        not_drawn_row(4, 0, ATTACK),
    ]
    write_report(
        tmp_path,
        ReportData(STUDY, [make_layer()], [make_maximized("features.1", []), make_maximized("features.0", rows)]),
    )
    page = read_page(tmp_path, "features.0")
    for unit, words in (
        (0, "not drawn, dead: no image, real or made, gets the unit above 0"),
        (3, "not drawn, blocked: a ReLU stops the gradient at every start that was tried"),
        (4, f"not drawn, {escape(ATTACK)}"),
        (7, "not maximized"),
    ):
        figure = cell_of(page, unit).split('<figure class="maximized">')[1].split("</figure>")[0]
        assert words_of(figure) == words
        assert "<img" not in figure


def test_report_without_detectors(tmp_path: Path) -> None:
    index = write_report(tmp_path, make_maximized_only())
    text = index.read_text(encoding="utf-8")
    assert "<title>mininet on mini: activation maximization</title>" in text
    assert "Detectors by layer" not in text
    assert 'aria-label="Layers"' not in text
    rows = re.findall(r"<tr>(.*?)</tr>", text, re.DOTALL)
    assert [words_of(row) for row in rows[1:]] == [
        "conv1 plain 5 of 8 units 2.50× median, 80% at least 1×", "conv2 plain 0 of 0 units – none",
    ]  # fmt: skip
    assert {path.name for path in (tmp_path / "layers").glob("*.html")} == {
        "conv1-maximized-plain.html", "conv2-maximized-plain.html",
    }  # fmt: skip
    assert "No unit of this layer was drawn." in read_page(tmp_path, "conv2-maximized-plain")
    assert "dissection of this layer" not in read_page(tmp_path, "conv1-maximized-plain")


def test_index_lists_sheets_in_the_order_of_the_network(maximized_report: Path) -> None:
    section = (maximized_report / "index.html").read_text(encoding="utf-8").split('id="maximized"')[1]
    assert list(dict.fromkeys(re.findall(r'href="layers/([^"#]*-maximized-[^"#]*).html"', section))) == list(SHEETS)
    assert "classifier.6 plain 7 of 10 units 3.50× median, 86% at least 1×" in words_of(section)


def test_pages_without_pictures_know_nothing_of_them(report: Path) -> None:
    for page in (report / "index.html", *(report / "layers").glob("*.html")):
        assert "maximiz" not in page.read_text(encoding="utf-8")


def test_contact_sheet_holds_every_unit(maximized_report: Path) -> None:
    with Image.open(maximized_report / "layers/classifier.6-maximized-plain.jpg") as image:
        assert image.format == "JPEG"
        colors = {image.getpixel((8 + 104 * column + 30, 32 + 16 + 30)) for column in range(3)}
        assert image.size == (5 * 104 + 8, 32 + 2 * 120 + 8)
    assert len(colors) == 3


def test_contact_sheet_of_many_units_keeps_first_seeds(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("pipeline.report.contact_sheet.MAX_TILES", 16)
    sheet_of(tmp_path, maximized_rows(9, seeds=3))
    with Image.open(tmp_path / "layers/conv1-maximized-plain.jpg") as image:
        assert image.size == (4 * 104 + 8, 32 + 3 * 120 + 8)


def test_csv_has_the_numbers_and_no_pictures(tmp_path: Path) -> None:
    rows = [with_filter(row) for row in maximized_rows(8)]
    write_report(tmp_path, ReportData(STUDY, [], [make_maximized("conv1", rows, FORMULA)]))
    (path,) = (tmp_path / "layers").glob("*.csv")
    with path.open(encoding="utf-8", newline="") as file:
        found = list(csv.DictReader(file))
    pictures = {"picture", "last_picture", "filter", "animation", "trace"}
    assert list(found[0]) == [name for name in ACTIVATION_MAXIMIZATION.schema.names if name not in pictures]
    assert len(found) == len(rows)
    assert [row["ratio"] for row in found if row["unit"] == "7"] == ["4.0", "4.0"]
    assert found[0]["filter_cosine"] == "0.9"
    assert {row["outcome"] for row in found if row["objective"] == ""} == {"dead", "relu_blocked"}


def test_float32_are_the_shortest_decimals() -> None:
    table = pa.table({"ratio": pa.array([0.1, None], pa.float32()), "trace": [[1.0], []]})
    assert plain_columns(table).to_pydict() == {"ratio": [0.1, None]}


def test_hostile_labels_stay_text(tmp_path: Path) -> None:
    rows = [maximized_row(0, variant=ATTACK, target=ATTACK), not_drawn_row(1, 0, ATTACK, ATTACK)]
    first, second = make_maximized(f"../{ATTACK}", rows, ATTACK), make_maximized("features.0", rows, ATTACK)
    second.settings[ATTACK] = ATTACK
    write_report(tmp_path / "report", ReportData(STUDY, [make_layer()], [first, second]))
    pages = [tmp_path / "report/index.html", *(tmp_path / "report/layers").glob("*.html")]
    assert len(pages) == 4
    for page in pages:
        text = page.read_text(encoding="utf-8")
        assert ATTACK not in text
        assert escape(ATTACK) in text
        check_nothing_inline(page)
        for address in page_addresses(page):
            assert (page.parent / address.partition("#")[0]).is_file() or address.startswith("#"), address
    assert [path.name for path in tmp_path.iterdir()] == ["report"]


def test_names_of_sheets_do_not_take_those_of_layers(tmp_path: Path) -> None:
    maximized = [
        make_maximized("features.0", [maximized_row(0)]),
        make_maximized("b", [], "c"),
        make_maximized("B", [], "c"),
    ]
    layers = [make_layer(), make_layer("features.0-maximized-plain")]
    write_report(tmp_path, ReportData(STUDY, layers, maximized))
    assert "<h1>features.0-maximized-plain</h1>" in read_page(tmp_path, "features.0-maximized-plain")
    names = [path.name.casefold() for path in (tmp_path / "layers").glob("*.html")]
    assert len(names) == len(set(names)) == 5


def test_names_of_sheets_of_long_layers_keep_their_variant(tmp_path: Path) -> None:
    write_report(tmp_path, ReportData(STUDY, [], [make_maximized("l" * 80, []), make_maximized("l" * 300, [])]))
    pages = sorted(path.name for path in (tmp_path / "layers").glob("*.html"))
    assert len(pages) == 2
    assert all(re.fullmatch(r"l{80}(-[0-9a-f]{8})?-maximized-plain\.html", page) for page in pages)


@pytest.mark.parametrize(
    ("column", "data", "words"),
    [
        ("picture", b"<svg onload='alert(1)'/>", r"begin b'<svg onl', must be JPEG or PNG: maximize the layer again"),
        ("picture", moving(), "must be JPEG or PNG"),
        ("picture", None, "is 0 bytes that begin b'', must be JPEG or PNG"),
        ("picture", CUT_SHORT, "maximize the layer again"),
        ("last_picture", moving(), "must be JPEG or PNG"),
        ("filter", b"GIF89a", "must be JPEG or PNG"),
        ("animation", waves(0, 0), "must be WebP"),
        ("animation", b"RIFF....WAVE", "must be WebP"),
    ],
)
def test_picture_of_another_format_is_an_error_that_names_it(
    tmp_path: Path, column: str, data: bytes | None, words: str
) -> None:
    rows = [maximized_row(3, 1, **{column: None if data is None else as_cell(data)})]
    with pytest.raises(InputError, match=rf"^{column} of unit 3, seed 1 in layer conv1, variant plain .*{words}"):
        sheet_of(tmp_path, rows)


def test_pictures_may_be_png_of_any_shape(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    Image.new("L", (1, 300)).save(buffer, "PNG")
    sheet = sheet_of(tmp_path, [maximized_row(0, picture=as_cell(buffer.getvalue()))])
    assert sheet.drawn[0][0].picture == "unit-0-seed-0.png"


def test_one_result_is_read_at_a_time(tmp_path: Path) -> None:
    order: list[str] = []
    data = []
    for name in ("b", "a"):

        def read(name: str = name) -> pa.Table:
            order.append(name)
            assert not (tmp_path / f"layers/{name}-maximized-plain.jpg").exists()
            assert len(list((tmp_path / "layers").glob("*.jpg"))) == len(order) - 1
            return to_maximized_table(name, [maximized_row(0)])

        data.append(MaximizationData(name, "plain", {}, read))
    write_report(tmp_path, ReportData(STUDY, [], data))
    assert order == ["b", "a"]


def test_same_tables_give_the_same_bytes(maximized_report: Path, tmp_path: Path) -> None:
    write_report(tmp_path, make_maximized_data())
    files = sorted(path.relative_to(maximized_report) for path in maximized_report.rglob("*") if path.is_file())
    assert files == sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*") if path.is_file())
    for file in files:
        assert (maximized_report / file).read_bytes() == (tmp_path / file).read_bytes(), file


def test_settings_of_any_kind_are_shown(tmp_path: Path) -> None:
    one = make_maximized("features.0", [maximized_row(2)])
    one.settings.update(units=[2, 3], target="channel", weights={"a": 1}, animate=None)
    layer = make_layer()
    layer = replace(layer, settings=layer.settings | {"splits": ["train", "val"]})  # as JSON gives it
    write_report(tmp_path, ReportData(STUDY, [layer], [one]))
    text = words_of(read_page(tmp_path, "features.0-maximized-plain"))
    assert "units [2, 3]" in text
    assert "target channel the map&#39;s mean" in text
    assert "animate – " in text
    assert "1 of 12 units 1 drawn" in text
    assert "splits [&#39;train&#39;, &#39;val&#39;]" in words_of(read_page(tmp_path, "features.0"))


def test_card_of_many_pictures_leaves_the_rest_to_the_sheet(tmp_path: Path) -> None:
    rows = [maximized_row(7, seed) for seed in range(12)]
    write_report(tmp_path, ReportData(STUDY, [make_layer()], [make_maximized("features.0", rows)]))
    figure = cell_of(read_page(tmp_path, "features.0"), 7).split("</figure>")[0]
    assert figure.count("<img") == 9
    assert words_of(figure).endswith("maximized 4.00× +3")
    assert cell_of(read_page(tmp_path, "features.0-maximized-plain"), 7).count("<img") == 12

"""Units over training in the report: a page a layer, a row a unit, and all layers on one page."""

import csv
import re
from dataclasses import replace
from html import escape
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from pipeline.errors import InputError
from pipeline.report import EvolutionData, ReportData, write_report
from pipeline.report.evolution import (
    Evolution,
    depth_class,
    describe_moment,
    draw_layer,
    draw_unit,
    group_evolutions,
    write_evolution,
)
from schemas import EVOLUTION, EVOLUTION_LAYERS
from tests.pipeline.report.elements import Elements, check_links, check_nothing_inline, read_page, words_of
from tests.pipeline.report.synthetic import ATTACK, FORMULA, STUDY, make_layer
from tests.pipeline.report.synthetic_evolution import (
    LATE,
    NUM_PLACES,
    checkpoint_rows,
    make_evolution,
    make_evolution_data,
    moment_row,
    moment_rows,
)
from tests.pipeline.report.synthetic_maximized import CUT_SHORT
from tests.pipeline.report.synthetic_patterns import blob

NULLS = ("same_image", "anchor_image_id", "cosine", "cosine_last", "concept", "category", "iou")


def evolution_of(folder: Path, rows: list[dict[str, Any]], checkpoints: list[dict[str, Any]]) -> Evolution:
    (folder / "layers").mkdir(exist_ok=True)
    return write_evolution(folder, make_evolution("conv1", rows, checkpoints), "conv1-evolution")[0]


def row_of(page: str, unit: int) -> list[str]:
    """The cells of one unit's row, without its heading."""
    row = page.split(f'<tr class="pairs" id="unit-{unit}">')[1].split("</tr>")[0]
    return re.findall(r"<td.*?</td>", row, re.DOTALL)


def test_numbers_of_a_layer(tmp_path: Path) -> None:
    one = evolution_of(tmp_path, moment_rows(8), checkpoint_rows(8))
    assert one.labels == ["5", "15", "25", "35", "45", "55"]
    assert one.unit_of_labels == "epoch"
    assert one.settled is not None
    assert (one.settled.place, one.limit) == (4, 0.9)
    assert one.categories == {"object", "animal", "texture"}
    assert one.detectors[-1] == {"object": 4, "animal": 2, "texture": 2}
    assert one.unique_concepts[-1] == {"object": 2, "animal": 1, "texture": 1}
    assert one.detectors[0] == one.unique_concepts[0] == {}
    assert (one.is_small, one.is_dissected) == (True, True)
    assert sorted(one.units[LATE]) == [2, 3, 4, 5]


def test_layer_that_never_settles_and_settings_without_a_limit(tmp_path: Path) -> None:
    checkpoints = [row | {"is_settled": False, "epoch": None} for row in checkpoint_rows(2)]
    one = evolution_of(tmp_path, moment_rows(2), checkpoints)
    assert one.settled is None
    assert (one.labels[0], one.unit_of_labels) == ("1", "checkpoint")
    for value in ("0.9", None, True):
        assert replace(one, settings={"settled": value}).limit is None
    assert not [dot for line in draw_layer(one).lines for dot in line.dots if dot.is_marked]


def test_files_of_a_layer(evolution_report: Path) -> None:
    shown = {path.name for path in (evolution_report / "pictures/features.0-evolution").glob("unit-1-*")}
    patterns = {f"unit-1-place-{place}.png" for place in range(NUM_PLACES)}
    assert shown == patterns | {"unit-1-place-0-crop.png", "unit-1-place-1-crop.png"}  # the later ones are the same
    crop = evolution_report / "pictures/features.0-evolution/unit-1-place-1-crop.png"
    assert crop.read_bytes() == blob(100, 0, 7, 7)
    assert not list((evolution_report / "pictures/features.0-evolution").glob(f"unit-{LATE}-place-0*"))


def test_addresses_exist_and_nothing_is_inline(evolution_report: Path) -> None:
    pages = check_links(evolution_report)
    assert len(pages) == 1 + 1 + 2 + 3
    for page in pages:
        check_nothing_inline(page)
        assert ATTACK not in page.read_text(encoding="utf-8")
    assert escape(ATTACK) in read_page(evolution_report, "classifier.6-evolution")


def test_svg_holds_nothing_but_numbers(evolution_report: Path) -> None:
    pages = [evolution_report / "evolution.html", *(evolution_report / "layers").glob("*-evolution.html")]
    for page in pages:
        for tag, attributes in Elements(page).tags:
            if tag not in ("svg", "line", "path", "circle", "rect", "text", "g"):
                continue
            for name, value in attributes.items():
                if name in (
                    "class",
                    "role",
                    "aria-label",
                    "aria-hidden",
                    "text-anchor",
                    "preserveaspectratio",
                    "overflow",
                ):
                    continue
                assert re.fullmatch(r"[MZHV\d.,% -]*", value or ""), (page, tag, name, value)


def test_a_row_is_a_unit_and_a_column_a_checkpoint(evolution_report: Path) -> None:
    page = read_page(evolution_report, "features.0-evolution")
    for unit in range(8):
        cells = row_of(page, unit)
        assert len(cells) == NUM_PLACES
        for place, cell in enumerate(cells):
            if unit == LATE and place < LATE:
                assert words_of(cell) == "–"
                continue
            assert f"unit-{unit}-place-{place}.png" in cell
            assert cell.count("<img") == 2
            assert ('class="changed"' in cell) == (unit % 2 == 1 and place == 1)
            assert ("another image" in words_of(cell)) == (unit % 2 == 1 and place == 1)
    assert words_of(row_of(page, 0)[0]) == ""
    assert words_of(row_of(page, 0)[1]) == "0.44"
    assert words_of(row_of(page, 0)[5]) == "0.99 car"
    assert 'class="swatch category-0"' in row_of(page, 0)[5]
    assert words_of(row_of(page, 1)[5]) == f"0.99 {escape(ATTACK)}"
    assert all(
        image["loading"] == "lazy"
        for image in Elements(evolution_report / "layers/features.0-evolution.html").named("img")
    )


def test_head_and_chart_of_a_layer(evolution_report: Path) -> None:
    page = read_page(evolution_report, "features.0-evolution")
    text = words_of(page)
    assert "8 units 6 checkpoints settled from epoch 35 0 → 5 detectors" in text
    assert "settled 0.9" in text
    assert "epoch-5 5 – – 0.200 – 0 0" in text
    assert page.count(" marked") == 1
    assert 'class="limit"' in page
    assert page.count('class="band before"') == 1
    assert "35: object 4, texture 2, animal 2" in text  # of a column


def test_layer_without_concepts_has_no_columns(evolution_report: Path) -> None:
    page = read_page(evolution_report, "classifier.6-evolution")
    assert "columns-chart" not in page
    assert "by checkpoint" in words_of(page)
    assert "detectors" not in words_of(page.split("<main>")[0])


def test_all_layers_on_one_page(evolution_report: Path) -> None:
    page = (evolution_report / "evolution.html").read_text(encoding="utf-8")
    assert page.count('aria-label="Convergence"') == 2  # epochs, and checkpoints without numbers
    assert len(re.findall(r'<path class="line depth-\d"', page)) == 3
    table = page.split('id="settled"')[1].split("</table>")[0]
    rows = [words_of(row) for row in re.findall(r"<tr>(.*?)</tr>", table, re.DOTALL)]
    assert rows[1:] == [
        "features.0 8 6 epoch 35 0.200 0 → 5 0 → 4", "features.1 12 6 epoch 45 0.200 0 → 5 0 → 4",
        "classifier.6 3 6 checkpoint 5 0.200 – –",
    ]  # fmt: skip
    assert page.count("columns-chart") == 4
    assert page.count(">12</text>") == 2  # detectors of both layers are on one scale


def test_settings_that_layers_share_are_on_their_page(tmp_path: Path) -> None:
    points = [[{"name": f"{ATTACK}-{i}", "epoch": i}, {"name": "last", "epoch": 9}] for i in range(2)]
    data = [make_evolution(f"conv{i}", [], checkpoint_rows(0), points=points[i], rule=ATTACK) for i in range(2)]
    write_report(tmp_path, ReportData(STUDY, [], evolutions=data))
    text = words_of((tmp_path / "evolution.html").read_text(encoding="utf-8"))
    assert f"settled 0.9 checkpoints [&#39;epoch-1.pt&#39;, &#39;epoch-2.pt&#39;] count 1 rule {escape(ATTACK)}" in text
    assert " points " not in text
    assert f"points {escape(ATTACK)}-1, last" in words_of(read_page(tmp_path, "conv1-evolution"))


def test_index_says_where_layers_settle(evolution_report: Path) -> None:
    text = words_of((evolution_report / "index.html").read_text(encoding="utf-8"))
    assert "features.0 8 units over 6 checkpoints, settled from epoch 35" in text
    assert "layers 3" in text


def test_layer_page_links_units_over_training(evolution_report: Path) -> None:
    page = read_page(evolution_report, "features.1")
    assert 'href="features.1-evolution.html"' in page
    assert 'href="features.1-evolution.html#unit-7"' in page


def test_nulls_are_left_out(tmp_path: Path) -> None:
    rows = [
        moment_row(unit, place, **dict.fromkeys(NULLS), is_detector=False) for unit in range(2) for place in range(6)
    ]
    empty = dict.fromkeys(("epoch", "cosine", "cosine_low", "cosine_high", "cosine_last", "same_image"))
    checkpoints = [row | empty | {"is_settled": False} for row in checkpoint_rows(2)]
    data = make_evolution("conv1", rows, checkpoints)
    write_report(tmp_path, ReportData(STUDY, [], evolutions=[data]))
    check_links(tmp_path)
    page = read_page(tmp_path, "conv1-evolution")
    assert [words_of(cell) for cell in row_of(page, 1)] == [""] * NUM_PLACES
    assert "<circle" not in page
    assert "sparkline" not in page
    assert "None" not in words_of(page)
    overview = words_of((tmp_path / "evolution.html").read_text(encoding="utf-8"))
    assert "conv1 2 6 – – – –" in overview


def test_category_without_a_concept_is_no_detector(tmp_path: Path) -> None:
    rows = [moment_row(0, 5, concept=None), moment_row(1, 5, is_detector=False), moment_row(3, 5)]
    assert evolution_of(tmp_path, rows, checkpoint_rows(3)).detectors[5] == {"texture": 1}


def test_tooltip_has_the_numbers_of_a_moment(tmp_path: Path) -> None:
    one = evolution_of(tmp_path, moment_rows(2), checkpoint_rows(2))
    assert describe_moment(one.units[1][1], one.checkpoints[1]) == (
        "unit 1 · epoch 15, epoch-15 · image 100, another than before · activation 3 at row 1, column 2 of the grid · "
        f"11 × 11 pixels from row 8, column 16 · cosine 0.438 with the checkpoint before · "
        f"cosine 0.280 with the last checkpoint · {ATTACK}, IoU 0.024, no detector"
    )


def test_line_of_a_unit_skips_checkpoints_without_it(tmp_path: Path) -> None:
    one = evolution_of(tmp_path, moment_rows(3), checkpoint_rows(3))
    line = draw_unit(one, LATE)
    assert line is not None
    assert line.paths[0].startswith("M40,")
    assert line.limit is not None


def test_empty_tables_have_pages(tmp_path: Path) -> None:
    data = [make_evolution("conv1", [], checkpoint_rows(0)), make_evolution("conv2", [], [])]
    index = write_report(tmp_path, ReportData(STUDY, [], evolutions=data))
    check_links(tmp_path)
    for name in ("conv1", "conv2"):
        assert "No unit of this layer was followed." in read_page(tmp_path, f"{name}-evolution")
    text = index.read_text(encoding="utf-8")
    assert "<title>mininet on mini: evolution over training</title>" in text
    assert "conv2 0 units over 0 checkpoints" in words_of(text)


def test_many_units_are_on_several_pages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.report.evolution.MOST_MOMENTS", 4 * NUM_PLACES)
    data = ReportData(
        STUDY, [make_layer()], evolutions=[make_evolution("features.0", moment_rows(8), checkpoint_rows(8))]
    )
    write_report(tmp_path, data)
    check_links(tmp_path)
    for page, units in (("features.0-evolution", range(4)), ("features.0-evolution~2", range(4, 8))):
        found = [one for one in Elements(tmp_path / f"layers/{page}.html").ids if one.startswith("unit-")]
        assert found == [f"unit-{unit}" for unit in units]
    assert 'href="features.0-evolution~2.html#unit-7"' in read_page(tmp_path, "features.0")


def test_layers_are_compared_over_the_same_checkpoints(tmp_path: Path) -> None:
    (tmp_path / "layers").mkdir()
    found = [evolution_of(tmp_path, [], checkpoint_rows(1, places=places)) for places in (6, 4, 6)]
    assert [len(group) for group in group_evolutions(found)] == [2, 1]


def test_lines_are_colored_from_the_first_layer_to_the_last() -> None:
    assert [depth_class(place, 3) for place in range(3)] == ["depth-0", "depth-4", "depth-7"]
    assert depth_class(0, 1) == "depth-0"
    assert len({depth_class(place, 30) for place in range(30)}) == 8


@pytest.mark.parametrize("column", ["pattern", "crop"])
@pytest.mark.parametrize(
    ("cell", "words"),
    [
        ({"bytes": b"GIF89a", "path": ""}, "must be JPEG or PNG"),
        ({"bytes": None, "path": ""}, "is 0 bytes"),
        ({"bytes": CUT_SHORT, "path": ""}, ""),
    ],
)
def test_picture_that_is_none_is_an_error_that_names_it_and_the_cure(
    tmp_path: Path, column: str, cell: dict[str, Any], words: str
) -> None:
    place = r"of unit 3 at checkpoint 'epoch-15' in layer conv1"
    with pytest.raises(InputError, match=rf"^{column} {place} .*{words}.*: follow the layer over training again$"):
        evolution_of(tmp_path, [moment_row(3, 1, **{column: cell})], checkpoint_rows(4))


def test_tables_that_do_not_fit_together_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"layer conv1 has rows of checkpoint 3, evolution_layers has none: follow"):
        evolution_of(tmp_path, [moment_row(0, 3)], checkpoint_rows(1, places=3))


def test_csv_files_hold_the_numbers(evolution_report: Path) -> None:
    with (evolution_report / "layers/features.0-evolution.csv").open(encoding="utf-8", newline="") as file:
        found = list(csv.DictReader(file))
    assert list(found[0]) == [name for name in EVOLUTION.schema.names if name not in ("pattern", "crop")]
    assert len(found) == 8 * NUM_PLACES - LATE
    assert {row["concept"] for row in found if row["category"] == "animal"} == {f"'{FORMULA}"}
    with (evolution_report / "evolution.csv").open(encoding="utf-8", newline="") as file:
        layers = list(csv.DictReader(file))
    assert list(layers[0]) == EVOLUTION_LAYERS.schema.names
    assert len(layers) == 3 * NUM_PLACES


def test_one_result_is_read_at_a_time(tmp_path: Path) -> None:
    order: list[str] = []

    def reader(data: EvolutionData) -> Any:
        def read() -> pa.Table:
            assert len(list((tmp_path / "layers").glob("*.csv"))) == len(order)
            order.append(data.layer)
            return data.read()

        return read

    found = [make_evolution(name, moment_rows(1), checkpoint_rows(1)) for name in ("b", "a")]
    write_report(tmp_path, ReportData(STUDY, [], evolutions=[replace(one, read=reader(one)) for one in found]))
    assert order == ["b", "a"]


def test_same_tables_give_the_same_bytes(evolution_report: Path, tmp_path: Path) -> None:
    write_report(tmp_path, make_evolution_data())
    files = sorted(path.relative_to(evolution_report) for path in evolution_report.rglob("*") if path.is_file())
    assert files == sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*") if path.is_file())
    for file in files:
        assert (evolution_report / file).read_bytes() == (tmp_path / file).read_bytes(), file


def test_pages_without_an_evolution_know_nothing_of_it(report: Path) -> None:
    assert not (report / "evolution.html").exists()
    for page in (report / "index.html", *(report / "layers").glob("*.html")):
        text = page.read_text(encoding="utf-8").lower()
        assert "evolution" not in text
        assert "training" not in text

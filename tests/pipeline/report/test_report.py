"""The report: what is on its pages, that labels stay text, that it is reproducible."""

import csv
import re
import weakref
from collections.abc import Iterator
from html import escape
from itertools import pairwise
from pathlib import Path

import pyarrow as pa
import pytest

from pipeline.errors import InputError
from pipeline.report import LayerData, ReportData, write_report
from pipeline.report.download import safe_cell, write_csv
from pipeline.report.names import page_names
from pipeline.report.pictures import write_pictures
from pipeline.report.summary import BAR_WIDTH, stack, summarize
from pipeline.report.units import Unit, color_classes, order_categories, read_units
from schemas import DETECTORS, EXEMPLARS
from tests.pipeline.report.elements import Elements, check_nothing_inline
from tests.pipeline.report.synthetic import (
    ATTACK,
    DEAD,
    FORMULA,
    NUM_UNITS,
    RANKS,
    SILENT,
    STUDY,
    exemplar_rows,
    make_data,
    make_layer,
    picture,
    to_table,
)  # fmt: skip


def test_units_are_ordered_by_iou_and_keep_every_unit() -> None:
    units = {unit.unit: unit for unit in read_units(make_layer())}
    assert list(units) == [0, 7, 3, 1, 4, 9, 8, 10, 11, 2, DEAD, SILENT]
    assert [unit.unit for unit in units.values() if unit.is_detector] == [0, 7, 3, 1, 4, 9, 8, 10, 11]
    assert units[DEAD] == Unit(DEAD, -0.5, True)
    assert units[SILENT].best is None
    assert [other.concept for other in units[0].others] == ["wheel"]
    assert units[1].others == []


def test_thresholds_are_the_shortest_decimals_of_their_float32() -> None:
    assert [unit.threshold for unit in sorted(read_units(make_layer()), key=lambda unit: unit.unit)][:4] == [
        0.0, -0.1, -0.2, -0.3,
    ]  # fmt: skip


def test_bars_add_up_to_the_total_and_keep_the_order_of_categories() -> None:
    data = make_layer()
    categories = order_categories(set(data.summary["category"].to_pylist()))
    summary = summarize("page", data, read_units(data))
    bar = stack(summary, "num_detectors", categories, summary.total("num_detectors"))
    assert [segment.category for segment in bar] == [
        "object", "part", "scene", "material", "texture", "color", "animal",
    ]  # fmt: skip
    assert [segment.count for segment in bar] == [3, 1, 1, 1, 1, 1, 1]
    assert bar[-1].x + bar[-1].width == pytest.approx(BAR_WIDTH)
    for left, right in pairwise(bar):
        assert left.x + left.width == pytest.approx(right.x)


def test_categories_of_broden_have_fixed_colors() -> None:
    alone, together = color_classes({"part"}), color_classes({"part", "animal", "zebra"})
    assert alone["part"] == together["part"]
    assert len({together[name] for name in ("part", "animal", "zebra")}) == 3


@pytest.mark.parametrize(
    "names", [("a/b", "a_b"), ("Conv", "conv"), ("../../x", "x"), ("", "."), ("a", "a", "a"), ("l" * 90, "l" * 91)]
)
def test_page_names_are_plain_and_distinct(names: tuple[str, ...]) -> None:
    pages = page_names(names)
    assert len({page.casefold() for page in pages}) == len(names)
    assert all(re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9._-]*", page) for page in pages)


def test_report_is_made_of_these_files(report: Path) -> None:
    files = {path.relative_to(report).as_posix() for path in report.rglob("*") if path.is_file()}
    pictures = {file for file in files if file.startswith("pictures/")}
    assert files - pictures == {
        "index.html", "static/report.css", "static/report.js",
        "layers/features.0.html", "layers/features.0-detectors.csv",
        "layers/features.1.html", "layers/features.1-detectors.csv",
    }  # fmt: skip
    detectors = {"features.0": (0, 1, 3, 4, 7), "features.1": (0, 1, 3, 4, 7, 8, 9, 10, 11)}
    assert pictures == {
        f"pictures/{layer}/unit-{unit}-rank-{rank}.jpg"
        for layer, units in detectors.items()
        for unit in units
        for rank in range(RANKS)
    }
    assert (report / "pictures/features.1/unit-7-rank-2.jpg").read_bytes() == picture(7, 2)


def test_addresses_are_relative_and_exist(report: Path) -> None:
    for page in (report / "index.html", *sorted((report / "layers").glob("*.html"))):
        ids = {attributes["id"] for _, attributes in Elements(page).tags if attributes.get("id")}
        for _, attributes in Elements(page).tags:
            for address in (attributes.get("href"), attributes.get("src")):
                if address is None:
                    continue
                if address.startswith("#"):
                    assert address[1:] in ids
                else:
                    assert (page.parent / address).is_file(), address


def test_ids_are_unique_and_every_unit_has_one(report: Path) -> None:
    found = [
        attributes["id"] for _, attributes in Elements(report / "layers/features.1.html").tags if "id" in attributes
    ]
    assert len(found) == len(set(found))
    assert {f"unit-{unit}" for unit in range(NUM_UNITS)} <= set(found)


def test_labels_stay_text_and_nothing_is_inline(report: Path) -> None:
    for page in (report / "index.html", *sorted((report / "layers").glob("*.html"))):
        text = page.read_text(encoding="utf-8")
        assert ATTACK not in text
        assert escape(ATTACK) in text
        check_nothing_inline(page)


def test_pictures_are_lazy_and_described(report: Path) -> None:
    images = Elements(report / "layers/features.1.html").named("img")
    assert len(images) == 9 * RANKS
    for image in images:
        assert image["loading"] == "lazy"
        assert re.fullmatch(r"image \d+, mask of unit \d+ outlined, activation [\d.]+", image["alt"])


def test_all_units_on_request(tmp_path: Path) -> None:
    data = ReportData(STUDY, [make_layer()])
    write_report(tmp_path, data, all_units=True)
    assert len(list((tmp_path / "pictures/features.0").iterdir())) == NUM_UNITS * RANKS
    assert len(Elements(tmp_path / "layers/features.0.html").named("article")) == NUM_UNITS


def test_same_tables_give_the_same_bytes(report: Path, tmp_path: Path) -> None:
    write_report(tmp_path, make_data())
    files = sorted(path.relative_to(report) for path in report.rglob("*") if path.is_file())
    assert files == sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*") if path.is_file())
    for file in files:
        assert (report / file).read_bytes() == (tmp_path / file).read_bytes(), file


def test_study_without_layers_and_layer_without_detectors(tmp_path: Path) -> None:
    assert write_report(tmp_path / "empty", ReportData(STUDY, [])).is_file()
    layer = make_layer()
    silent = LayerData(
        layer.layer | {"stride_y": None, "stride_x": None, "field_y": None, "field_x": None},
        layer.summary.slice(0, 0), layer.detectors.slice(0, 0), [], layer.thresholds, {},
    )  # fmt: skip
    write_report(tmp_path / "silent", ReportData(STUDY, [silent]))
    page = (tmp_path / "silent/layers/features.0.html").read_text(encoding="utf-8")
    assert "No unit of this layer is a detector." in page
    assert "the whole input" in page


def test_exemplars_are_read_one_part_at_a_time(tmp_path: Path) -> None:
    table = make_layer().exemplars
    given: list[weakref.ref[pa.Table]] = []

    def parts() -> Iterator[pa.Table]:
        for i in reversed(range(table.num_rows)):
            assert all(part() is None for part in given[:-1])
            part = table.slice(i, 1)
            given.append(weakref.ref(part))
            yield part
            del part

    found = write_pictures(tmp_path, parts(), {0, 7})
    assert {unit: [exemplar.rank for exemplar in found[unit]] for unit in found} == {0: [0, 1, 2], 7: [0, 1, 2]}


def test_picture_that_is_no_picture_is_an_error_that_names_it(tmp_path: Path) -> None:
    rows = exemplar_rows(1)
    rows[1]["picture"]["bytes"] = b"<svg onload='alert(1)'/>"
    with pytest.raises(InputError, match=r"unit 0, rank 1, .* in layer features\.0 .* must be JPEG or PNG"):
        write_pictures(tmp_path, to_table(EXEMPLARS, "features.0", rows), {0})
    rows[1]["picture"]["bytes"] = picture(0, 1, "PNG")
    found = write_pictures(tmp_path, to_table(EXEMPLARS, "features.0", rows), {0})
    assert [exemplar.file for exemplar in found[0]][1] == "unit-0-rank-1.png"


@pytest.mark.parametrize("start", ["=", "+", "-", "@", "\t", "\r"])
def test_cells_start_no_formula(start: str, tmp_path: Path) -> None:
    write_csv(tmp_path / "a.csv", pa.table({"concept": [f"{start}1", f"a{start}", None], "iou": [-0.5, 1.0, 2.0]}))
    with (tmp_path / "a.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["concept"] for row in rows] == [f"'{start}1", f"a{start}", ""]
    assert rows[0]["iou"] == "-0.5"


def test_numbers_are_no_formulas() -> None:
    assert safe_cell(-1.5) == -1.5


def test_csv_holds_every_row_of_detectors(report: Path) -> None:
    with (report / "layers/features.1-detectors.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == [*DETECTORS.schema.names, "threshold"]
    assert len(rows) == make_layer().detectors.num_rows
    assert {row["concept"] for row in rows if row["category"] == "animal"} == {f"'{FORMULA}"}
    assert [float(row["iou"]) for row in rows] == make_layer("features.1").detectors["iou"].to_pylist()
    assert rows[-1]["threshold"] == "-1.1"

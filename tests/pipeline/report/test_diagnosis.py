"""The diagnosis in the report: a page of its own, and a word on the units of a layer's page."""

import csv
import re
from dataclasses import replace
from html import escape
from pathlib import Path

import pytest

from pipeline.report import ReportData, write_report
from pipeline.report.diagnosis import STRIP_WIDTH, draw_strip, read_diagnosis
from schemas import DIAGNOSIS, DIAGNOSIS_LAYERS
from tests.pipeline.report.elements import Elements, check_links, check_nothing_inline, read_page, words_of
from tests.pipeline.report.synthetic import ATTACK, FORMULA, STUDY, make_layer
from tests.pipeline.report.synthetic_diagnosis import (
    ALIASED,
    DEAD,
    DUPLICATE,
    LINKED,
    SATURATED,
    diagnosis_row,
    diagnosis_rows,
    make_diagnosis,
    sound_rows,
)
from tests.pipeline.report.synthetic_patterns import make_patterns, pattern_rows


def read_text(report: Path, name: str = "diagnosis.html") -> str:
    return (report / name).read_text(encoding="utf-8")


def section_of(report: Path, place: int) -> str:
    return read_text(report).split(f'aria-labelledby="layer-{place}"')[1].split("</section>")[0]


def test_units_by_what_ails_them() -> None:
    found, table, layer = read_diagnosis(make_diagnosis("conv1", diagnosis_rows()))
    assert [unit.unit for unit in found.dead] == [DEAD]
    assert [unit.unit for unit in found.saturated] == [SATURATED]
    assert [unit.unit for unit in found.duplicates] == [DUPLICATE, LINKED]
    assert [unit.unit for unit in found.aliased] == [ALIASED, DUPLICATE]  # the largest share first
    assert [unit.unit for unit in found.units.values() if unit.is_ailing] == [1, 3, 5, 7, 8]
    assert (len(found.shares), found.first_stride) == (11, 4)
    assert found.largest == pytest.approx(0.41)
    assert (table.num_rows, layer.num_rows) == (12, 1)


def test_duplicates_of_one_unit_are_together() -> None:
    pairs = {5: 2, 3: 1, 4: 2, 6: 1}
    rows = [diagnosis_row(unit, duplicate_of=pairs.get(unit)) for unit in range(7)]
    found, _, _ = read_diagnosis(make_diagnosis("conv1", rows))
    assert [(unit.unit, unit.duplicate_of) for unit in found.duplicates] == [(3, 1), (6, 1), (4, 2), (5, 2)]


def test_strip_is_on_the_scale_of_all_layers() -> None:
    rows = [
        diagnosis_row(0, aliasing=0.25),
        diagnosis_row(1, aliasing=0.5, is_aliased=True),
        diagnosis_row(2, aliasing=None),
    ]
    found, _, _ = read_diagnosis(make_diagnosis("conv1", rows, aliasing=0.375, aliasing_images=float("nan")))
    strip = draw_strip(found, 1.0)
    assert (strip.patterns, strip.images) == (0.375 * STRIP_WIDTH, None)
    assert (strip.ticks, strip.aliased) == ("M250 0V10", "M500 0V10")
    nothing = draw_strip(found, 0.0)
    assert (nothing.patterns, nothing.ticks, nothing.aliased) == (None, "", "")


def test_layers_are_in_the_order_of_the_network_with_their_counts(diagnosis_report: Path) -> None:
    table = read_text(diagnosis_report).split('aria-label="Layers"')[1].split("</table>")[0]
    rows = [words_of(row) for row in re.findall(r"<tr>(.*?)</tr>", table, re.DOTALL)]
    assert rows[0] == "Layer Units Dead Saturated Duplicates Aliased Verdict"
    assert rows[1] == "features.0 8 1 1 0 1 1 dead, 1 saturated, 2 duplicates"
    assert rows[2].startswith("features.1 12 1 1 2 2 much is wrong")
    assert rows[3] == f"classifier.6 4 0 0 0 – nothing was found {escape(ATTACK)}"
    assert "24 units 2 dead 2 saturated 2 duplicates 3 aliased" in words_of(read_text(diagnosis_report))


def test_units_of_a_layer(diagnosis_report: Path) -> None:
    text = section_of(diagnosis_report, 1)
    assert "dead 1 5 saturated 1 1 at 6.000 duplicates 2 7 = 0 0.999 8 = 0 0.970 with 7 aliased 2" in words_of(text)
    assert "3 0.410, images 0.080 7 0.350, images 0.080" in words_of(text)
    links = re.findall(r'href="(layers/[^"]*#[^"]*)"', text)
    assert links == [f"layers/features.1.html#unit-{unit}" for unit in (5, 1, 7, 0, 8, 0, 7, 3, 7)]
    sound = section_of(diagnosis_report, 2)
    assert "<li>" not in sound
    assert "href" not in sound


def test_strips_of_layers_that_have_values(diagnosis_report: Path) -> None:
    table = read_text(diagnosis_report).split('<table class="bars strips">')[1].split("</table>")[0]
    assert table.count('<svg class="strip"') == 2
    assert "classifier.6" not in table
    assert re.findall(r'<rect class="images" x="0" y="13" width="([^"]*)"', table) == ["195.1", "195.1"]
    assert not [
        one for one in re.findall(r' (?:x|y|width|height)="([^"]*)"', table) if not re.fullmatch(r"[\d.]+%?", one)
    ]


def test_addresses_exist_and_nothing_is_inline(diagnosis_report: Path) -> None:
    pages = check_links(diagnosis_report)
    assert {page.name for page in pages} == {"index.html", "diagnosis.html", "features.0.html", "features.1.html"}
    for page in pages:
        check_nothing_inline(page)
        assert ATTACK not in page.read_text(encoding="utf-8")


def test_unit_of_a_layer_without_dissection_is_linked_to_its_patterns(tmp_path: Path) -> None:
    data = ReportData(
        STUDY, [], patterns=[make_patterns("conv1", pattern_rows(7))], diagnoses=[make_diagnosis("conv1", diagnosis_rows())]
    )  # fmt: skip
    write_report(tmp_path, data)
    check_links(tmp_path)
    text = read_text(tmp_path)
    assert 'href="layers/conv1-patterns-deconvnet.html#unit-5"' in text
    assert "#unit-8" not in text


def test_card_and_row_of_a_layer_say_what_ails_a_unit(diagnosis_report: Path) -> None:
    page = read_page(diagnosis_report, "features.1")
    rows = {int(unit): row for unit, row in re.findall(r'<tr[^>]* data-unit="(\d+)"(.*?)</tr>', page, re.DOTALL)}
    cells = {
        unit: re.findall(r'<td class="ails" data-value="([^"]*)">(.*?)</td>', row, re.DOTALL)
        for unit, row in rows.items()
    }
    assert all(len(found) == 1 for found in cells.values())
    words = {unit: words_of(found[0][1]) for unit, found in cells.items()}
    assert {unit: word for unit, word in words.items() if word} == {
        1: "saturated", 3: "aliased", 7: "duplicate of 0, aliased", 8: "duplicate of 0",
    }  # fmt: skip
    assert cells[7][0][0] == "duplicate of 0, aliased"
    assert cells[0][0][0] == ""
    cards = page.split('<article class="card" ')[1:]
    ailing = {re.search(r'id="unit-(\d+)"', card).group(1): card for card in cards if 'class="ails"' in card}  # type: ignore[union-attr]
    assert set(ailing) == {"1", "3", "7", "8"}
    assert "duplicate of 0 , aliased 0.350" in words_of(ailing["7"])
    head = words_of(page.split("<main>")[0])
    assert "1 dead 1 saturated 2 duplicates 2 aliased Diagnosis : much is wrong" in head


def test_every_row_of_the_table_has_as_many_cells_as_the_head(diagnosis_report: Path) -> None:
    table = read_page(diagnosis_report, "features.1").split('<table class="data units">')[1].split("</table>")[0]
    counts = {len(re.findall(r"<t[hd][ >]", row)) for row in re.findall(r"<tr.*?</tr>", table, re.DOTALL)}
    assert counts == {11}


def test_csv_files_hold_units_and_layers(diagnosis_report: Path) -> None:
    for name, table, rows in (("diagnosis", DIAGNOSIS, 24), ("diagnosis-layers", DIAGNOSIS_LAYERS, 3)):
        with (diagnosis_report / f"{name}.csv").open(encoding="utf-8", newline="") as file:
            found = list(csv.DictReader(file))
        assert list(found[0]) == table.schema.names
        assert len(found) == rows
        assert list(dict.fromkeys(row["layer"] for row in found)) == ["features.0", "features.1", "classifier.6"]


def test_formulas_in_the_csv_are_text(tmp_path: Path) -> None:
    write_report(tmp_path, ReportData(STUDY, [], diagnoses=[make_diagnosis(FORMULA, sound_rows(1), verdict=FORMULA)]))
    with (tmp_path / "diagnosis-layers.csv").open(encoding="utf-8", newline="") as file:
        (row,) = csv.DictReader(file)
    assert (row["layer"], row["verdict"]) == (f"'{FORMULA}", f"'{FORMULA}")


def test_empty_tables_have_a_page(tmp_path: Path) -> None:
    data = make_diagnosis("features.0", [])
    data = replace(data, read_layer=DIAGNOSIS_LAYERS.schema.empty_table)
    write_report(tmp_path, ReportData(STUDY, [make_layer()], diagnoses=[data]))
    check_links(tmp_path)
    assert "Nothing was found." in read_text(tmp_path)
    assert "<svg" not in read_text(tmp_path)
    assert "0 saturated 0 duplicates" in words_of(read_page(tmp_path, "features.0"))


def test_settings_that_layers_share_are_shown(diagnosis_report: Path, tmp_path: Path) -> None:
    assert "aliasing_limit 0.3" in words_of(read_text(diagnosis_report))
    other = make_diagnosis("conv2", sound_rows(1), verdict="sound")
    data = [
        make_diagnosis("conv1", sound_rows(1), verdict="sound"),
        replace(other, settings={"correlation": 0.5, "other": ATTACK}),
    ]
    write_report(tmp_path, ReportData(STUDY, [], diagnoses=data))
    text = words_of(read_text(tmp_path))
    assert "conv1 sound Settings correlation 0.95" in text
    assert f"conv2 sound Settings correlation 0.5 other {escape(ATTACK)}" in text


def test_report_of_a_diagnosis_only(tmp_path: Path) -> None:
    index = write_report(
        tmp_path, ReportData(STUDY, [], diagnoses=[make_diagnosis("conv1", sound_rows(2), verdict="sound")])
    )
    text = index.read_text(encoding="utf-8")
    assert "<title>mininet on mini: diagnosis</title>" in text
    assert "conv1 sound" in words_of(text)
    assert Elements(index).ids == ["study", "diagnosis"]


def test_pages_without_a_diagnosis_know_nothing_of_it(report: Path) -> None:
    assert not (report / "diagnosis.html").exists()
    for page in (report / "index.html", *(report / "layers").glob("*.html")):
        text = page.read_text(encoding="utf-8").lower()
        assert "diagnosis" not in text
        assert "ails" not in words_of(text)

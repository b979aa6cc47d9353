"""Patterns, diagnosis and evolution in Chromium, opened from a disk."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipeline.report import ReportData, write_report
from tests.pipeline.report.browser import check_width, load_all
from tests.pipeline.report.synthetic import ATTACK, STUDY, make_layer
from tests.pipeline.report.synthetic_diagnosis import make_diagnosis_data
from tests.pipeline.report.synthetic_evolution import checkpoint_rows, make_evolution, moment_rows
from tests.pipeline.report.synthetic_maximized import make_maximized, maximized_rows
from tests.pipeline.report.synthetic_patterns import make_patterns, make_patterns_data, pattern_rows

pytestmark = pytest.mark.browser

NAMES = (
    "index", "diagnosis", "evolution", "layers/features.0", "layers/features.1", "layers/features.0-patterns-deconvnet",
    "layers/features.1-patterns-guided", "layers/features.0-evolution", "layers/features.1-evolution",
)  # fmt: skip


@pytest.fixture(scope="module")
def whole_report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report that has all there is, with more checkpoints than a screen is wide."""
    moments = moment_rows(8, 7, places=24)
    moments[-1]["same_image"] = False  # of the last checkpoint, far to the right
    evolutions = [
        make_evolution("features.0", moments, checkpoint_rows(8, places=24, speed=1.6)),
        make_evolution("features.1", moment_rows(12, 70, True), checkpoint_rows(12, True)),
    ]
    data = replace(make_patterns_data(), diagnoses=make_diagnosis_data().diagnoses, evolutions=evolutions)
    return write_report(tmp_path_factory.mktemp("whole"), data).parent


@pytest.fixture(scope="module")
def visit(whole_report: Path, open_page: Callable[..., Any]) -> Callable[..., Any]:
    """Opens a page of the report."""
    return lambda address, *how: open_page(whole_report, address, *how)


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("name", NAMES)
def test_page_opens_from_a_disk(visit: Callable[..., Any], whole_report: Path, name: str, width: int) -> None:
    page = visit(f"{name}.html", width, "dark" if width == 390 else "light")
    load_all(page)
    check_width(page)
    assert page.locator("img[src='x']").count() == 0
    assert all(address.startswith(whole_report.as_uri()) for address in page.requested)
    assert page.complaints == []
    page.close()


@pytest.mark.parametrize("width", [1280, 900, 390])
def test_grids_are_side_by_side_and_their_pictures_at_the_same_places(visit: Callable[..., Any], width: int) -> None:
    page = visit("layers/features.1.html", width)
    page.locator("#unit-7").scroll_into_view_if_needed()
    first, second = (page.locator(f"#unit-7 .pairs .{kind}").bounding_box() for kind in ("pattern", "crop"))
    assert first["x"] + first["width"] <= second["x"]
    for place in (1, 5, 9):
        one, other = (
            page.locator(f"#unit-7 .pairs .{kind} li:nth-child({place}) img").bounding_box()
            for kind in ("pattern", "crop")
        )
        assert one["y"] == pytest.approx(other["y"], abs=0.5)
        assert one["x"] - first["x"] == pytest.approx(other["x"] - second["x"], abs=0.5)
        assert one["width"] == pytest.approx(one["height"], abs=0.5)
    page.close()


def test_pointing_at_a_pattern_marks_its_crop(visit: Callable[..., Any]) -> None:
    page = visit("layers/features.1-patterns-deconvnet.html")
    outline = "image => getComputedStyle(image).outlineStyle"
    crops = page.locator("#unit-7 .crop img")
    page.locator("#unit-7 .pattern li:nth-child(5)").hover()
    assert [crops.nth(place).evaluate(outline) for place in range(9)] == ["none"] * 4 + ["solid"] + ["none"] * 4
    page.close()


def test_tiny_crops_are_scaled_up_pixel_by_pixel(visit: Callable[..., Any]) -> None:
    for name in ("features.0-patterns-deconvnet", "features.0", "features.0-evolution"):
        page = visit(f"layers/{name}.html")
        crop = page.locator(".crop img").first
        crop.scroll_into_view_if_needed()
        page.wait_for_function("() => document.querySelector('.crop img').naturalWidth > 0")
        assert crop.evaluate("image => getComputedStyle(image).imageRendering") == "pixelated"
        assert crop.evaluate("image => image.naturalWidth") == 7
        assert crop.bounding_box()["width"] > 20
        page.close()
    page = visit("layers/features.1-patterns-deconvnet.html")
    assert page.locator(".crop img").first.evaluate("image => getComputedStyle(image).imageRendering") == "auto"
    page.close()


@pytest.mark.parametrize("width", [1280, 390])
def test_a_click_shows_a_pattern_and_its_crop_large(visit: Callable[..., Any], width: int) -> None:
    page = visit("layers/features.0-patterns-deconvnet.html", width)
    page.locator("#unit-4 .crop li:nth-child(2) a").click()
    dialog = page.locator("dialog.zoom")
    assert dialog.is_visible()
    assert [Path(image.get_attribute("src")).name for image in dialog.locator("img").all()] == [
        "unit-4-rank-1.png", "unit-4-rank-1-crop.png",
    ]  # fmt: skip
    text = dialog.locator("figcaption").text_content()
    assert text.startswith(f"unit 4 · place 2: image 41, {ATTACK}/4.jpg · activation 8 ")
    page.wait_for_function("() => document.querySelector('dialog .pixelated')")
    assert dialog.locator("img").first.bounding_box()["width"] > 120
    page.keyboard.press("ArrowRight")
    assert "place 3: image 42" in dialog.locator("figcaption").text_content()
    dialog.get_by_role("button", name="Before").click()
    dialog.get_by_role("button", name="Before").click()
    dialog.get_by_role("button", name="Before").click()
    assert "place 1: image 40" in dialog.locator("figcaption").text_content()
    check_width(page)
    page.keyboard.press("Escape")
    assert not dialog.is_visible()
    page.locator("#unit-5 .pattern li:nth-child(1) a").click()
    dialog.get_by_role("button", name="Close").click()
    assert not dialog.is_visible()
    assert page.complaints == []
    page.close()


def test_a_click_in_a_row_goes_on_over_checkpoints(visit: Callable[..., Any]) -> None:
    page = visit("layers/features.0-evolution.html")
    page.locator("#unit-1 td:nth-of-type(1) .pattern a").click()
    caption = page.locator("dialog.zoom figcaption")
    assert "epoch 5, " in caption.text_content()
    page.keyboard.press("ArrowRight")
    assert "epoch 15, " in caption.text_content()
    assert "another than before" in caption.text_content()
    page.close()


def test_from_a_card_to_other_rules_and_over_training_and_back(visit: Callable[..., Any]) -> None:
    page = visit("layers/features.1.html")
    page.locator("#unit-7 .patterns figcaption").get_by_role("link", name="guided").click()
    page.wait_for_url("**/features.1-patterns-guided.html#unit-7")
    page.click("#unit-7 h3 a")
    page.wait_for_url("**/features.1.html#unit-7")
    page.locator("#unit-7").get_by_role("link", name="over training").click()
    page.wait_for_url("**/features.1-evolution.html#unit-7")
    page.locator("#unit-7 th a").click()
    page.wait_for_url("**/features.1.html#unit-7")
    assert page.complaints == []
    page.close()


def test_from_the_index_to_what_ails_a_unit(visit: Callable[..., Any]) -> None:
    page = visit("index.html")
    page.get_by_role("link", name="What ails units").click()
    page.wait_for_url("**/diagnosis.html")
    page.locator("[aria-labelledby=layer-1] .ailment").get_by_role("link", name="8", exact=True).click()
    page.wait_for_url("**/features.1.html#unit-8")
    assert "duplicate of 0" in page.text_content("#unit-8 .ails")
    page.go_back()
    page.wait_for_url("**/diagnosis.html")
    page.locator("[aria-labelledby=layer-1] .ailment").get_by_role("link", name="5", exact=True).first.click()
    page.wait_for_url("**/features.1.html#unit-5")
    assert page.is_visible("#unit-5")  # a row that the filter hid
    page.close()


def test_units_are_sorted_by_what_ails_them(visit: Callable[..., Any]) -> None:
    page = visit("layers/features.1.html")
    page.get_by_role("button", name="Ails").click()
    rows = page.query_selector_all("tbody tr:not([hidden])")
    assert [int(row.get_attribute("data-unit")) for row in rows][:4] == [3, 8, 7, 1]
    page.close()


def test_from_all_layers_over_training_to_one(visit: Callable[..., Any]) -> None:
    page = visit("index.html")
    page.get_by_role("link", name="Layers over training").click()
    page.wait_for_url("**/evolution.html")
    page.locator(".legend").get_by_role("link", name="features.0").first.click()
    page.wait_for_url("**/layers/features.0-evolution.html")
    page.get_by_role("link", name="Evolution over training").click()
    page.wait_for_url("**/evolution.html")
    assert page.complaints == []
    page.close()


@pytest.mark.parametrize("width", [1280, 390])
def test_rows_scroll_inside_their_region_and_their_units_stay(visit: Callable[..., Any], width: int) -> None:
    page = visit("layers/features.0-evolution.html", width)
    region = page.locator(".taller")
    assert region.evaluate("element => element.scrollWidth > element.clientWidth")
    region.evaluate("element => element.scrollTo(element.scrollWidth, 200)")
    assert region.evaluate("element => element.scrollLeft") > 0
    box, unit, head = (
        region.locator(one).first.bounding_box() for one in ("xpath=.", "tbody th", "thead th:nth-child(24)")
    )
    assert unit["x"] == pytest.approx(box["x"], abs=2)
    assert head["y"] == pytest.approx(box["y"], abs=2)
    page.close()


def test_a_chart_is_as_wide_as_its_columns_and_inside_the_page(visit: Callable[..., Any]) -> None:
    page = visit("layers/features.0-evolution.html", 390)
    for plot in page.locator(".plot").all():
        box = plot.bounding_box()
        for label in plot.locator("text").all():
            inner = label.bounding_box()
            assert inner["x"] >= 0
            assert inner["x"] + inner["width"] <= 390
        assert box["x"] + box["width"] <= 390
    page.close()


def test_pictures_are_links_without_the_script(whole_report: Path) -> None:
    text = (whole_report / "layers/features.0-patterns-deconvnet.html").read_text(encoding="utf-8")
    assert '<a href="../pictures/features.0-patterns-deconvnet/unit-4-rank-1-crop.png"><img' in text


def test_long_names_do_not_widen_a_phone_page(open_page: Callable[..., Any], tmp_path: Path) -> None:
    name = "features.denseblock4.denselayer16.a_name_longer_than_a_phone_is_wide.conv2"
    diagnosis = make_diagnosis_data().diagnoses[1]
    data = ReportData(
        STUDY,
        [make_layer(name, 1)],
        [make_maximized(name, maximized_rows(1, 1))],
        [make_patterns(name, pattern_rows(1), name)],
        [replace(diagnosis, layer=name)],
        [make_evolution(name, moment_rows(1), checkpoint_rows(1))],
    )
    write_report(tmp_path, data)
    pages = sorted(tmp_path.rglob("*.html"))
    assert len(pages) == 7
    for path in pages:
        page = open_page(tmp_path, path.relative_to(tmp_path).as_posix(), 390)
        check_width(page)
        page.close()

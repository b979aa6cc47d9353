"""Activation maximization in Chromium, opened from a disk."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from pipeline.report import ReportData, write_report
from tests.pipeline.report.browser import load_all
from tests.pipeline.report.synthetic import ATTACK, STUDY, make_layer
from tests.pipeline.report.synthetic_maximized import make_maximized, make_maximized_only, maximized_row

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def visit(maximized_report: Path, open_page: Callable[..., Any]) -> Callable[..., Any]:
    """Opens a page of the report."""
    return partial(open_page, maximized_report)


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize(
    "name",
    [
        "index", "layers/features.0", "layers/features.1", "layers/features.0-maximized-plain",
        "layers/features.1-maximized-fourier", "layers/classifier.6-maximized-plain",
    ],
)  # fmt: skip
def test_page_opens_from_a_disk(visit: Callable[..., Any], maximized_report: Path, name: str, width: int) -> None:
    page = visit(f"{name}.html", width, "dark" if width == 390 else "light")
    load_all(page)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert all(address.startswith(maximized_report.as_uri()) for address in page.requested)
    assert page.complaints == []
    page.close()


@pytest.mark.parametrize("width", [1280, 390])
def test_report_without_detectors_opens(open_page: Callable[..., Any], tmp_path: Path, width: int) -> None:
    write_report(tmp_path, make_maximized_only())
    page = open_page(tmp_path, "index.html", width)
    page.get_by_role("link", name="plain").first.click()
    page.wait_for_url("**/*-maximized-plain.html*")
    assert page.text_content("h1") == "conv1"
    load_all(page)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert page.complaints == []
    page.close()


def test_from_a_card_to_the_sheet_and_back(visit: Callable[..., Any]) -> None:
    page = visit("layers/features.1.html")
    page.click("#unit-7 .maximized figcaption a")
    page.wait_for_url("**/features.1-maximized-fourier.html#unit-7")
    assert "car" in page.text_content("#unit-7")
    page.click("#unit-7 h3 a")
    page.wait_for_url("**/features.1.html#unit-7")
    assert page.is_visible("#unit-7 .maximized")
    assert page.complaints == []
    page.close()


def test_made_picture_is_before_the_real_ones_and_framed(visit: Callable[..., Any]) -> None:
    page = visit("layers/features.1.html")
    made = page.locator("#unit-7 .maximized").bounding_box()
    real = page.locator("#unit-7 .exemplars").bounding_box()
    assert made["x"] + made["width"] <= real["x"]
    assert page.evaluate("getComputedStyle(document.querySelector('.maximized')).borderStyle") == "solid"
    page.close()


def test_filters_are_drawn_pixel_by_pixel(visit: Callable[..., Any]) -> None:
    page = visit("layers/features.0-maximized-plain.html")
    filters = page.locator("img.pixelated")
    assert filters.count() == 6
    assert filters.first.evaluate("image => getComputedStyle(image).imageRendering") == "pixelated"
    assert filters.first.evaluate("image => image.naturalWidth") == 7
    page.close()


def test_animation_moves_in_the_browser(visit: Callable[..., Any]) -> None:
    page = visit("layers/features.0-maximized-plain.html")
    page.get_by_role("link", name="animation").click()
    page.wait_for_url("**/unit-0-seed-0-animation.webp")
    page.close()


def test_hostile_label_shows_as_text(visit: Callable[..., Any]) -> None:
    page = visit("layers/features.1-maximized-plain.html")
    page.goto(page.url.replace("plain", "fourier"))
    assert ATTACK in page.text_content("#unit-3 .concept")
    assert page.locator("img[src='x']").count() == 0
    assert page.complaints == []
    page.close()


def test_long_names_do_not_widen_a_phone_page(open_page: Callable[..., Any], tmp_path: Path) -> None:
    name = "features.denseblock4.denselayer16.a_name_longer_than_a_phone_is_wide.conv2"
    maximized = [make_maximized(layer, [maximized_row(0)], name) for layer in (name, "features.0")]
    write_report(tmp_path, ReportData(STUDY, [make_layer("features.0", 1), make_layer(name, 1)], maximized))
    pages = sorted(tmp_path.rglob("*.html"))
    assert len(pages) == 5
    for path in pages:
        page = open_page(tmp_path, path.relative_to(tmp_path).as_posix(), 390)
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), path
        page.close()

"""The report in Chromium, opened from a disk."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.pipeline.report.synthetic import ATTACK, DEAD, NUM_UNITS

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def visit(report: Path, open_page: Callable[..., Any]) -> Callable[..., Any]:
    """Opens a page of the report."""
    return partial(open_page, report)


def shown_units(page: Any) -> list[int]:
    return [int(row.get_attribute("data-unit")) for row in page.query_selector_all("tbody tr:not([hidden])")]


def shown_cards(page: Any) -> list[int]:
    return [int(card.get_attribute("data-unit")) for card in page.query_selector_all(".card:not([hidden])")]


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("address", ["index.html", "layers/features.1.html"])
def test_page_opens_from_a_disk(visit: Callable[..., Any], address: str, width: int) -> None:
    page = visit(address, width)
    for details in page.query_selector_all("details"):
        details.evaluate("element => { element.open = true }")
    for image in page.query_selector_all("img"):
        image.scroll_into_view_if_needed()
    page.wait_for_function("[...document.images].every(image => image.complete && image.naturalWidth > 0)")
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert page.evaluate("getComputedStyle(document.querySelector('table.data')).borderSpacing") == "0px"
    assert page.complaints == []
    page.close()


def test_sorting(visit: Callable[..., Any]) -> None:
    page = visit("layers/features.1.html")
    by_iou = [0, 7, 3, 1, 4, 9, 8, 10, 11]
    assert shown_units(page) == shown_cards(page) == by_iou
    heading = page.locator("th", has_text="IoU").first
    assert heading.get_attribute("aria-sort") == "descending"
    page.get_by_role("button", name="IoU").press("Enter")
    assert heading.get_attribute("aria-sort") == "ascending"
    assert shown_units(page) == shown_cards(page) == by_iou[::-1]
    page.get_by_role("button", name="p", exact=True).click()
    assert shown_units(page)[-1] == 1  # its p-value is null
    assert heading.get_attribute("aria-sort") == "none"
    page.get_by_role("button", name="Concept").click()
    assert shown_units(page)[2:5] == [0, 7, 8]  # car, car, carpet
    assert page.complaints == []
    page.close()


def test_filtering(visit: Callable[..., Any]) -> None:
    page = visit("layers/features.1.html")
    assert page.text_content("#shown") == "9 of 12 units"
    page.select_option("#category", "object")
    assert shown_units(page) == shown_cards(page) == [0, 7, 3]
    page.click("#clear")
    page.fill("#search", "car")
    assert shown_units(page) == [0, 7, 8]
    page.fill("#search", "1")
    assert shown_units(page) == [3, 1]  # a concept that holds the digit, and the unit
    page.click("#clear")
    page.locator(".chip", has_text="car 2").click()
    assert shown_units(page) == [0, 7]
    page.click("#clear")
    page.uncheck("#only-detectors")
    assert len(shown_units(page)) == NUM_UNITS
    assert len(shown_cards(page)) == 9
    assert page.complaints == []
    page.close()


def test_address_of_a_hidden_unit_shows_it(visit: Callable[..., Any]) -> None:
    page = visit(f"layers/features.1.html#unit-{DEAD}")
    assert page.is_visible(f"#unit-{DEAD}")
    assert "dead unit" in page.text_content(f"#unit-{DEAD}")
    page.close()


def test_hostile_label_shows_as_text(visit: Callable[..., Any]) -> None:
    page = visit("layers/features.1.html")
    assert ATTACK in page.text_content("#unit-3 .concept")
    assert page.locator("img[src='x']").count() == 0
    assert page.complaints == []
    page.close()

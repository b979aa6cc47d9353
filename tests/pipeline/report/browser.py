"""What tests ask of a page in a browser."""

from typing import Any


def load_all(page: Any) -> None:
    """Open what is folded and load every picture; one that cannot be shown fails the test."""
    for details in page.query_selector_all("details"):
        details.evaluate("element => { element.open = true }")
    decoded = """() => Promise.all([...document.images].map(async image => {
        image.loading = 'eager';
        await image.decode();
        return image.naturalWidth;
    }))"""
    assert all(page.evaluate(decoded))


def check_width(page: Any) -> None:
    """The page does not scroll sideways; what is wider scrolls inside its own region."""
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    wide = """() => [...document.querySelectorAll('main *')].filter(element =>
        element.getBoundingClientRect().right > innerWidth + 1
        && !element.closest('.scroll, .bars th, svg, dialog, .visually-hidden')).map(element => element.outerHTML.slice(0, 100))"""
    assert page.evaluate(wide) == []

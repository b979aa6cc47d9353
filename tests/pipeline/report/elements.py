"""What is on a page of a report."""

import re
from html.parser import HTMLParser
from pathlib import Path


class Elements(HTMLParser):
    """All start tags of a page with their attributes."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(page.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def named(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]

    def of_class(self, name: str) -> list[dict[str, str | None]]:
        return [attributes for _, attributes in self.tags if name in (attributes.get("class") or "").split()]

    @property
    def ids(self) -> list[str]:
        return [attributes["id"] for _, attributes in self.tags if attributes.get("id")]


def page_addresses(page: Path) -> list[str]:
    """Every address a page links to or shows."""
    found = [attributes.get(name) for _, attributes in Elements(page).tags for name in ("href", "src")]
    return [address for address in found if address is not None]


def check_nothing_inline(page: Path) -> None:
    """The page's policy refuses what is inline, and nothing is."""
    elements = Elements(page)
    policy = next(meta for meta in elements.named("meta") if meta.get("http-equiv"))
    assert policy["http-equiv"] == "Content-Security-Policy"
    assert policy["content"].startswith("default-src 'none'; img-src 'self'; style-src 'self'; script-src 'self'")
    assert not elements.named("style")
    assert [Path(script["src"]).name for script in elements.named("script")] == ["report.js"]
    for _, attributes in elements.tags:
        assert not [name for name in attributes if name == "style" or name.startswith("on")]


def check_links(report: Path) -> list[Path]:
    """Every address of a report exists, with its fragment, and ids are unique; the pages."""
    pages = sorted(report.rglob("*.html"))
    ids = {page: Elements(page).ids for page in pages}
    for page in pages:
        assert len(ids[page]) == len(set(ids[page])), page
        for address in page_addresses(page):
            path, _, fragment = address.partition("#")
            target = (page.parent / path).resolve() if path else page
            assert target.is_file(), address
            assert not fragment or fragment in ids[target], address
    return pages


def read_page(report: Path, name: str) -> str:
    """A page under `layers`."""
    return (report / "layers" / f"{name}.html").read_text(encoding="utf-8")


def words_of(text: str) -> str:
    """What is left of HTML without its tags."""
    return " ".join(re.sub(r"<[^>]*>", " ", text).split())

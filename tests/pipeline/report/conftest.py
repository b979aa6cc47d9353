import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.report import write_report
from tests.pipeline.report.synthetic import make_data
from tests.pipeline.report.synthetic_diagnosis import make_diagnosis_data
from tests.pipeline.report.synthetic_evolution import make_evolution_data
from tests.pipeline.report.synthetic_maximized import make_maximized_data
from tests.pipeline.report.synthetic_patterns import make_patterns_data


@pytest.fixture(scope="session")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a written report."""
    return write_report(tmp_path_factory.mktemp("report"), make_data()).parent


@pytest.fixture(scope="session")
def maximized_report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a report with activation maximization."""
    return write_report(tmp_path_factory.mktemp("maximized"), make_maximized_data()).parent


@pytest.fixture(scope="session")
def patterns_report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a report with patterns."""
    return write_report(tmp_path_factory.mktemp("patterns"), make_patterns_data()).parent


@pytest.fixture(scope="session")
def diagnosis_report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a report with a diagnosis."""
    return write_report(tmp_path_factory.mktemp("diagnosis"), make_diagnosis_data()).parent


@pytest.fixture(scope="session")
def evolution_report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a report with layers over training."""
    return write_report(tmp_path_factory.mktemp("evolution"), make_evolution_data()).parent


def note_failure(page: Any, request: Any) -> None:
    """A picture that was still loading when the page was left is no complaint."""
    if request.failure != "net::ERR_ABORTED":
        page.complaints.append(f"{request.url}: {request.failure}")


@pytest.fixture(scope="module")
def open_page() -> Iterator[Callable[..., Any]]:
    """Opens a page of a report in Chromium; what it complains about fails the test."""
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("no chromium on PATH")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])

        def visit(folder: Path, address: str, width: int = 1280, scheme: str = "light") -> Any:
            page = browser.new_page(viewport={"width": width, "height": 800}, color_scheme=scheme)
            page.complaints = []
            page.requested = []
            page.on("console", lambda message: page.complaints.append(message.text))
            page.on("pageerror", lambda error: page.complaints.append(str(error)))
            page.on("dialog", lambda dialog: (page.complaints.append("dialog"), dialog.dismiss()))
            page.on("requestfailed", lambda request: note_failure(page, request))
            page.on("request", lambda request: page.requested.append(request.url))
            page.goto(f"{folder.as_uri()}/{address}")
            return page

        yield visit
        browser.close()

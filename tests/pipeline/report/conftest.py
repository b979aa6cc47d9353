from pathlib import Path

import pytest

from pipeline.report import write_report
from tests.pipeline.report.synthetic import make_data


@pytest.fixture(scope="session")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a written report."""
    return write_report(tmp_path_factory.mktemp("report"), make_data()).parent

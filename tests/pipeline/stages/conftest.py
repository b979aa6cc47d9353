"""One dissection of a small data set, and what the oracle starts from."""

import shutil
from pathlib import Path

import pytest

from tests import dissect, small


@pytest.fixture(scope="session")
def source(tmp_path_factory) -> Path:
    return small.write_source(tmp_path_factory.mktemp("small") / "source")


@pytest.fixture(scope="session")
def chosen(source) -> list[str]:
    return small.overrides(source)


@pytest.fixture(scope="session")
def store(tmp_path_factory, chosen) -> Path:
    store = tmp_path_factory.mktemp("small-store")
    dissect.ingest_and_run(store, *chosen)
    return store


@pytest.fixture(scope="session")
def recorded(store, source, chosen) -> dissect.Recorded:
    return dissect.record_everything(source, store, *chosen)


@pytest.fixture(scope="session")
def detected(tmp_path_factory, store, chosen):
    """The same network under every meaning of A', and on one split."""
    store = shutil.copytree(store, tmp_path_factory.mktemp("detected") / "store")
    for more in ("union=all", "union=under_mask", "union=concept", "splits=[val]"):
        dissect.run_only(store, *chosen, "stages=[layer_summary]", more)
    return store

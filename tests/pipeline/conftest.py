"""A small data set and a store in which a small network was dissected on it: read, do not change."""

from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.command import raydissect
from tests.tiny_broden import tiny_images, write_broden

LAYER = "features.12"


@dataclass(frozen=True)
class Small:
    """A source of 40 images, a store, and the words that made one from the other."""

    source: Path
    store: Path

    def ingest(self, store: object) -> list[str]:
        sizes = ["data.shard_size=4", "data.batch_size=4"]
        return ["ingest", "data=broden", f"data.root={self.source}", "data.name=tiny", *sizes, f"store={store}"]

    def run(self, store: object) -> list[str]:
        model = ["model=mininet", "model.weights=random", f"layers={LAYER}"]
        return ["run", "data=tiny", *model, "cluster=inline", f"store={store}"]


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> Small:
    folder = tmp_path_factory.mktemp("small")
    small = Small(write_broden(folder / "source", tiny_images(40)), folder / "store")
    for words in (small.ingest(small.store), small.run(small.store)):
        ended = raydissect(*words)
        assert ended.code == 0, ended.err
    return small

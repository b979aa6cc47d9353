"""Whole dissections of any number of tiny images: `python -m tests.specks STORE` prints the process's peak memory.

The network is one convolution, so that what is measured is what the pipeline does around it.
"""

import sys
from pathlib import Path

from torch import nn

import workers.models
from benchmarks.data import write_specks
from pipeline.ingest import ingest
from pipeline.store import Store
from tests import dissect

SIDE = 32


class SpeckNet(nn.Module):
    """Logits of `num_classes` classes for 32x32 RGB images; its layer `features` has 64 units and a grid of 8x8."""

    def __init__(self, num_classes: int = 2) -> None:
        super().__init__()
        self.features = nn.Conv2d(3, 64, kernel_size=4, stride=4)
        self.classifier = nn.Linear(64, num_classes)

    def forward(self, x):
        return self.classifier(self.features(x).mean((2, 3)))


def _network() -> workers.models._Network:
    size = workers.models.Preprocessing(SIDE, SIDE, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
    return workers.models._Network(SpeckNet, size)


def write_store(folder: Path, images: int) -> Path:
    """A store that holds so many images, in shards of 64 images."""
    source = write_specks(folder / "source", images, side=SIDE)
    chosen = dissect.settings(folder / "store", *overrides(source))
    ingest(chosen.data, Store(chosen.store))
    return folder / "store"


def overrides(source: Path | str = "") -> list[str]:
    data = ["data=broden", f"data.root={source}", "data.name=specks", "data.shard_size=64", "data.batch_size=64"]
    return [*data, "model=any", "model.name=specknet", "model.weights=random", "layers=[features]"]


def main(store: str) -> None:
    workers.models._OWN["specknet"] = _network
    dissect.run_only(store, *overrides(store))
    print(memory("VmHWM"))


def memory(figure: str) -> int:
    """Bytes of this process in memory: now (`VmRSS`), or at most (`VmHWM`).

    Not by `getrusage`, whose maximum counts what the process that started this one ever had.
    """
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(f"{figure}:")]
    return int(line.split()[1]) * 1024


if __name__ == "__main__":
    main(*sys.argv[1:])

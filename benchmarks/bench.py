"""What every benchmark is given: its settings, data sets ingested once, a fresh store a measurement."""

import os
import shutil
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import wraps
from pathlib import Path
from time import perf_counter
from typing import Any
from unittest import mock

import torch

import workers.models
from benchmarks.data import draw_scenes
from benchmarks.networks import Network
from pipeline.compose import RunSettings, compose_settings
from pipeline.executor import Executor, make_executor
from pipeline.ingest import ingest
from pipeline.run import run
from pipeline.stages import GROUPS
from pipeline.store import Store

TO_DETECTORS = ["pilot", "record", *[name for name in GROUPS["dissect"] if name != "exemplars"]]
"""Everything from shards to detectors; not what is drawn of the units afterwards."""

WARM_UP_IMAGES = 32


@dataclass(frozen=True)
class Dissected:
    """A dissection.

    Attributes:
        seconds: of all of it, without loading the network.
        load_seconds: of loading it, however often.
        stages: seconds by stage, without loading the network; what they leave of `seconds` came before the first.
        layers: in the order in which they run.
    """

    seconds: float
    load_seconds: float
    stages: dict[str, float]
    layers: list[str]


@dataclass
class Bench:
    """Settings of a run of the benchmarks, and its folder.

    Attributes:
        folder: for data sets and stores; removed by the caller.
        rounds: how often each side of a comparison is measured.
        images: how many, where a benchmark or a network has no number of its own.
        threads: of torch, on all sides.
        device: cpu or cuda.
        photographs: a Broden folder; None draws scenes.
        only_bars: leave out what no bar is about.
    """

    folder: Path
    rounds: int = 3
    images: int = 768
    threads: int = 1
    device: str = "cpu"
    photographs: Path | None = None
    only_bars: bool = False
    _drawn: dict[int, Path] = field(default_factory=dict)
    _ingested: dict[tuple[Path, int | None, int], Path] = field(default_factory=dict)

    def source(self, images: int) -> Path:
        """A Broden folder that holds at least so many images."""
        if self.photographs is not None:
            return self.photographs
        enough = [folder for number, folder in self._drawn.items() if number >= images]
        if not enough:
            number = max(images, self.images)
            self._drawn[number] = draw_scenes(self.folder / f"scenes-{number}", number)
            enough = [self._drawn[number]]
        return enough[0]

    def ingested(self, images: int, source: Path | None = None, shard_size: int = 64) -> Path:
        """A store that holds so many images of a source as the data set `bench`, and nothing else."""
        root = source or self.source(images)
        key = (root, images, shard_size)
        if key not in self._ingested:
            store = Path(tempfile.mkdtemp(prefix="ingested-", dir=self.folder))
            self.ingest(store, root, "bench", images, shard_size)
            self._ingested[key] = store
        return self._ingested[key]

    def ingest(self, store: Path, root: Path, name: str, images: int, shard_size: int = 64) -> None:
        """Put a data set into a store.

        Raises:
            ValueError: the source has fewer images.
        """
        chosen = compose_settings(
            [f"store={store}", "data=broden", f"data.root={root}", f"data.name={name}", f"data.limit={images}",
             f"data.shard_size={shard_size}", f"data.batch_size={min(32, shard_size)}"]
        )  # fmt: skip
        found = ingest(chosen.data, Store(chosen.store)).num_images
        if found < images:
            raise ValueError(
                f"{root} has {found} good images, {images} are wanted: lower --images, or give other --data"
            )

    @contextmanager
    def copy(self, store: Path) -> Iterator[Path]:
        """A store with the same files, to write into and to throw away; files are linked, they are never changed."""
        with tempfile.TemporaryDirectory(dir=self.folder) as folder:
            yield Path(shutil.copytree(store, Path(folder, "store"), copy_function=os.link))

    def settings(self, store: Path, network: Network, *overrides: str) -> RunSettings:
        """A dissection of the data set `bench`, of the network's one layer unless told otherwise."""
        return compose_settings(
            [f"store={store}", "data=bench", f"model={network.name}", f"model.weights={network.weights}", "model.seed=0",
             "cluster=inline", f"cluster.device={self.device}", f"cluster.threads={self.threads}",
             f"layers={network.layer}", f"stages=[{','.join(TO_DETECTORS)}]", "null_permutations=0", *overrides]
        )  # fmt: skip

    def dissect(self, ingested: Path, network: Network, *overrides: str) -> Dissected:
        """Dissect what a store holds in a copy of it, which is gone afterwards."""
        with self.copy(ingested) as store:
            return self.dissect_in(store, network, *overrides)

    def dissect_in(self, store: Path, network: Network, *overrides: str) -> Dissected:
        """Dissect in this very store, which keeps the results."""
        settings = self.settings(store, network, *overrides)
        with make_executor(settings.cluster) as executor:
            return timed_run(settings, executor)

    def warm_up(self, network: Network, *overrides: str) -> list[str]:
        """Dissect a few images and forget it: torch's first calls, imports, the page cache.

        Returns:
            The layers, in the order in which they run.
        """
        return self.dissect(self.ingested(min(WARM_UP_IMAGES, self.images)), network, *overrides).layers


def timed_run(settings: RunSettings, executor: Executor) -> Dissected:
    """Run, and tell how long it took besides loading the network in this process."""
    stage = ""
    loads: defaultdict[str, float] = defaultdict(float)

    def on_progress(title: str, done: int, total: int) -> None:
        nonlocal stage
        stage = title.partition(" ")[0]  # "record reduce" is of the stage record

    def on_load(seconds: float) -> None:
        loads[stage] += seconds

    with watch_loads(on_load):
        start = perf_counter()
        outcome = run(settings, executor, on_progress)
        if settings.cluster.device == "cuda":
            torch.cuda.synchronize()
        seconds = perf_counter() - start - sum(loads.values())
    stages = {name: taken - loads[name] for name, taken in outcome.seconds.items()}
    return Dissected(seconds, sum(loads.values()), stages, outcome.layers)


@contextmanager
def watch_loads(on_load: Callable[[float], None]) -> Iterator[None]:
    """Time every call of `workers.models.load` in this process.

    How often a run loads its network, and whether it finds it loaded already, must not change a ratio.
    """
    load = workers.models.load

    @wraps(load)
    def timed_load(*arguments: Any, **named: Any) -> Any:
        start = perf_counter()
        try:
            return load(*arguments, **named)
        finally:
            on_load(perf_counter() - start)

    holders = [module for name, module in sys.modules.items() if name.partition(".")[0] in ("pipeline", "workers")]
    with ExitStack() as stack:
        for module in holders:
            if getattr(module, "load", None) is load:
                stack.enter_context(mock.patch.object(module, "load", timed_load))
        yield

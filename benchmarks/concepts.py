"""How quantile and IoU grow with the number of concepts."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from benchmarks.bench import TO_DETECTORS, Bench
from benchmarks.data import TIMES, copy_images, multiply_concepts, split_by_image, split_by_stripe
from benchmarks.figure import Bar, Figure, interleave, ratios
from benchmarks.networks import SQUEEZENET, Network
from pipeline.datasets import load_manifest, summary
from pipeline.store import Store

AFTER_RECORD = [name for name in TO_DETECTORS if name not in ("pilot", "record")]


def concepts(bench: Bench, network: Network = SQUEEZENET) -> Iterator[Figure]:
    """Seconds of quantile and IoU with ten times the concepts, in the data set and then in every image.

    The images are the same, so one recording of them serves all sides and no round runs the network.
    """
    recorded, present = _record(bench, network)

    def side(name: str) -> float:
        with bench.copy(recorded) as store:
            stages = bench.dissect_in(store, network, f"data={name}").stages
        if repeated := stages.keys() & {"pilot", "record"}:
            raise RuntimeError(f"{name} ran {sorted(repeated)} again: its images must be those that are recorded")
        return sum(stages[stage] for stage in AFTER_RECORD)

    side("bench")  # warm
    once, of_set, of_image = interleave(
        bench.rounds, *[lambda name=name: side(name) for name in ("bench", "by-image", "by-stripe")]
    )
    yield Figure(f"quantile + IoU, {network.title} {network.layer}, {present['bench']} concepts", once, "s")
    name = f"quantile + IoU at {{}} concepts ({TIMES}x {{}}) / {present['bench']}"
    yield Figure(name.format(present["by-image"], "in the data set"), ratios(of_set, once), bar=Bar(1.2))
    yield Figure(name.format(present["by-stripe"], "an image"), ratios(of_image, once))


def _record(bench: Bench, network: Network) -> tuple[Path, dict[str, int]]:
    """A store with the three data sets and their one recording, and how many concepts each has."""
    source, folder = bench.source(bench.images), bench.folder / "concepts"
    sources = {
        "bench": copy_images(source, folder / "bench", bench.images),
        "by-image": multiply_concepts(source, folder / "by-image", bench.images, split_by_image(Counter())),
        "by-stripe": multiply_concepts(source, folder / "by-stripe", bench.images, split_by_stripe),
    }
    store, present = folder / "store", {}
    for name, root in sources.items():
        bench.ingest(store, root, name, bench.images)
        opened = Store(str(store))
        present[name] = sum(summary(load_manifest(opened, name), opened).concepts.values())
    for name in sources:  # the first runs the network, the others find what it left
        bench.dissect_in(store, network, "stages=record", f"data={name}")
    return store, present

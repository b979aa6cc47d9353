"""What a dissection costs, in bare forward passes over the same images."""

from collections.abc import Iterator

from benchmarks.bare import BareForward, Passed
from benchmarks.bench import Bench, Dissected
from benchmarks.figure import Bar, Figure, interleave, rates, ratios
from benchmarks.networks import ALEXNET, RESNET18, SQUEEZENET, VGG16, Network

BARS = {
    ALEXNET: Bar(1.20, aim=1.10),
    VGG16: Bar(1.08),
    SQUEEZENET: Bar(1.20, aim=1.10),
    RESNET18: None,
}


def forward_share(bench: Bench, networks: tuple[Network, ...] = tuple(BARS)) -> Iterator[Figure]:
    """Dissection / bare forward pass: one layer of each network; then all its `auto` layers, on half the images."""
    for network in networks:
        images = max(bench.images // network.fewer, 4)
        if not bench.only_bars or BARS.get(network):
            yield from _compare(bench, network, network.layer, images, BARS.get(network))
    for network in () if bench.only_bars else networks:
        images = max(bench.images // network.fewer, 4) // 2
        yield from _compare(bench, network, "auto", images, None)


def _compare(bench: Bench, network: Network, layers: str, images: int, bar: Bar | None) -> Iterator[Figure]:
    ingested = bench.ingested(images)
    last = bench.warm_up(network, f"layers={layers}")[-1]
    bare = BareForward(bench, ingested, network, last)
    passed: list[Passed] = []
    dissected: list[Dissected] = []

    def run_bare() -> float:
        passed.append(bare.run())
        return passed[-1].seconds

    def run_dissection() -> float:
        dissected.append(bench.dissect(ingested, network, f"layers={layers}"))
        return dissected[-1].seconds

    bare_seconds, seconds = interleave(bench.rounds, run_bare, run_dissection)
    what = f"{network.title} {layers}"
    yield Figure(f"dissection / bare forward, {what}, {images} images", ratios(seconds, bare_seconds), bar=bar)
    if layers == "auto":
        return
    yield Figure(f"bare forward, {what}", rates(images, bare_seconds), "images/s")
    yield Figure(f"loading {network.title}, in neither", (bare.load_seconds,), "s")
    yield Figure(f"share of forward, {what}", ratios([one.forward_seconds for one in passed], seconds), "%")
    yield Figure(f"share of decode (overlapped), {what}", ratios([one.decode_seconds for one in passed], seconds), "%")
    for stage in dissected[0].stages:
        yield Figure(f"share of stage {stage}, {what}", ratios([one.stages[stage] for one in dissected], seconds), "%")
    before = tuple(one.seconds - sum(one.stages.values()) for one in dissected)
    yield Figure(f"before the first stage, for any number of images, {what}", before, "s")

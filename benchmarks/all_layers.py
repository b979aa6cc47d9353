"""What all layers of a network cost, in dissections of one."""

from collections.abc import Iterator

from benchmarks.bench import Bench
from benchmarks.figure import Bar, Figure, interleave, ratios
from benchmarks.networks import ALEXNET, Network


def all_layers(bench: Bench, network: Network = ALEXNET) -> Iterator[Figure]:
    """All `auto` layers / one layer."""
    ingested = bench.ingested(bench.images)
    layers = bench.warm_up(network, "layers=auto")
    bench.warm_up(network)
    every, one = interleave(
        bench.rounds,
        lambda: bench.dissect(ingested, network, "layers=auto").seconds,
        lambda: bench.dissect(ingested, network).seconds,
    )
    name = f"all {len(layers)} auto layers / one layer, {network.title}, {bench.images} images"
    yield Figure(name, ratios(every, one), bar=Bar(1.6))

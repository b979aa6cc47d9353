"""What the null distribution costs on top of a dissection."""

from collections.abc import Iterator

from benchmarks.bench import Bench
from benchmarks.figure import Bar, Figure, interleave, ratios
from benchmarks.networks import ALEXNET, SQUEEZENET, Network


def null(bench: Bench, networks: tuple[Network, ...] = (ALEXNET, SQUEEZENET)) -> Iterator[Figure]:
    """A dissection with `null_permutations=1` / one without, of half the images."""
    images = max(bench.images // 2, 4)
    ingested = bench.ingested(images)
    for network in networks:
        bench.warm_up(network, "null_permutations=1")

        def side(permutations: int, network: Network = network) -> float:
            return bench.dissect(ingested, network, f"null_permutations={permutations}").seconds

        one, none = interleave(bench.rounds, lambda: side(1), lambda: side(0))
        name = f"null_permutations=1 / 0, {network.title} {network.layer}, {images} images"
        yield Figure(name, ratios(one, none), bar=Bar(1.15))

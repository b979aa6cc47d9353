"""How thresholds and tally grow with the number of units."""

from collections.abc import Iterator

from benchmarks.bench import Bench
from benchmarks.figure import Figure, interleave
from benchmarks.networks import SQUEEZENET, Network

LAYERS = {"features.6": 256, "features.9": 384, "features.12": 512}
"""Units by layer of SqueezeNet; the first has a grid of 27 x 27, the others of 13 x 13."""


def units(bench: Bench, network: Network = SQUEEZENET, layers: dict[str, int] = LAYERS) -> Iterator[Figure]:
    """Milliseconds of thresholds and tally a unit, layer by layer; all layers are recorded beforehand."""
    with bench.copy(bench.ingested(bench.images)) as recorded:
        bench.dissect_in(recorded, network, f"layers=[{','.join(layers)}]", "stages=record")

        def side(layer: str) -> float:
            with bench.copy(recorded) as store:
                stages = bench.dissect_in(store, network, f"layers={layer}").stages
            return 1000 * (stages["thresholds"] + stages["tally"]) / layers[layer]

        side(next(iter(layers)))  # warm
        a_unit = interleave(bench.rounds, *[lambda layer=layer: side(layer) for layer in layers])
    for (layer, number), milliseconds in zip(layers.items(), a_unit, strict=True):
        yield Figure(f"thresholds + tally a unit, {network.title} {layer}, {number} units", milliseconds, "ms")

"""How the cost grows with the number of images."""

from collections.abc import Iterator

from benchmarks.bench import Bench
from benchmarks.figure import Figure, interleave, ratios
from benchmarks.networks import ALEXNET, Network

TIMES = (1, 4, 16)


def images(bench: Bench, network: Network = ALEXNET) -> Iterator[Figure]:
    """Seconds an image at an eighth of the images, at half of them, and at twice as many."""
    few = max(bench.images // 8, 2)
    numbers = [few * times for times in TIMES]
    source = bench.source(numbers[-1])
    stores = [bench.ingested(number, source) for number in numbers]
    bench.warm_up(network)

    def side(index: int) -> float:
        return bench.dissect(stores[index], network).seconds / numbers[index]

    an_image = interleave(bench.rounds, *[lambda index=index: side(index) for index in range(len(numbers))])
    for number, seconds in zip(numbers, an_image, strict=True):
        milliseconds = tuple(1000 * one for one in seconds)
        yield Figure(f"an image, {network.title} {network.layer}, {number} images", milliseconds, "ms")
    for times, seconds in zip(TIMES[1:], an_image[1:], strict=True):
        yield Figure(f"an image at {times}x the images / 1x", ratios(seconds, an_image[0]))

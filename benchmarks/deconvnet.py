"""What the DeconvNet costs, in bare forward and backward passes of as many pairs of a unit and an image."""

from collections.abc import Iterator
from pathlib import Path

import torch

from benchmarks.bench import Bench
from benchmarks.clock import timed
from benchmarks.figure import Bar, Figure, interleave, rates, ratios
from benchmarks.networks import ALEXNET, RESNET18, SQUEEZENET, Network
from pipeline.settings import Cluster
from pipeline.stage import Layer
from pipeline.stages.deconvnet import Deconvnet
from pipeline.stages.patterns import LayerPatterns, Request
from pipeline.study import Numerics
from workers.methods.deconvnet import Rule, project
from workers.models import ModelSpec, load
from workers.nn.layers import layer_table
from workers.nn.relus import LayerFunction

BAR = Bar(1.5)
IMAGES = 16
UNITS = 4
"""Of an image, in the second comparison: one forward pass serves them all."""


def deconvnet(
    bench: Bench, networks: tuple[Network, ...] = (ALEXNET, SQUEEZENET, RESNET18), number: int = IMAGES
) -> Iterator[Figure]:
    """Patterns / bare forward and backward passes: the method by rule, and all that the stage computes of a pair."""
    for network in networks:
        pairs = Pairs(bench, network, number)
        pairs.bare(1)  # warm
        pairs.rows(1)
        sides = (
            lambda pairs=pairs: pairs.bare(1),
            lambda pairs=pairs: pairs.project("deconvnet"),
            lambda pairs=pairs: pairs.project("guided"),
            lambda pairs=pairs: pairs.rows(1),
            lambda pairs=pairs: pairs.bare(UNITS),
            lambda pairs=pairs: pairs.rows(UNITS),
        )
        bare, rectified, guided, one, bare_many, many = interleave(bench.rounds, *sides)
        yield Figure(f"bare forward + backward, {pairs.title}", rates(number, bare), "images/s")
        yield Figure(f"deconvnet / bare, {pairs.title}", ratios(rectified, bare), bar=BAR)
        yield Figure(f"guided / bare, {pairs.title}", ratios(guided, bare), bar=BAR)
        yield Figure(f"rows of the table / bare, a unit an image, {pairs.title}", ratios(one, bare), bar=BAR)
        yield Figure(f"rows / bare, {UNITS} units an image, {pairs.title}", ratios(many, bare_many), bar=BAR)


class Pairs:
    """Random images, and units of one layer; every method returns seconds.

    Args:
        bench: threads, device.
        network: its layer is the units'.
        number: of images.
    """

    def __init__(self, bench: Bench, network: Network, number: int) -> None:
        model = load(ModelSpec(network.name, network.weights), lambda path: Path(path).read_bytes()).on(bench.device)
        size = model.preprocessing
        row = layer_table(model.module, [network.layer], (3, size.height, size.width))[0]
        layer = Layer(row.name, row.channels, row.height, row.width, row.receptive_field)
        self.title = f"{network.title} {network.layer}, {number} images"
        self._number, self._threads, self._device = number, bench.threads, bench.device
        self._layer, self._function = layer, LayerFunction(model.module, layer.name)
        generator = torch.Generator().manual_seed(0)
        pixels = torch.randint(256, (number, 3, size.height, size.width), generator=generator, dtype=torch.uint8)
        self._pixels = dict(enumerate(pixels))
        self._images = size.normalize(pixels.to(bench.device))
        numerics = Numerics.here(bench.device, Cluster.model_validate({"threads": bench.threads}), number)
        self._stage = Deconvnet.model_validate({"batch": number})
        self._patterns = LayerPatterns(model, layer, numerics, bench.device, "deconvnet", "cell", False, number)

    def bare(self, units: int) -> float:
        """Of a forward and a backward pass for every unit, and nothing else."""

        def differentiate() -> None:
            for unit in range(units):
                images = self._images.detach().requires_grad_()
                values = self._function(images)[:, unit, self._layer.height // 2, self._layer.width // 2]
                torch.autograd.grad(values.sum(), images)

        return timed(self._threads, self._device, differentiate)

    def project(self, rule: Rule) -> float:
        """Of the method alone."""
        one = self._patterns.round({place: self._request(place, 0) for place in range(self._number)})
        return timed(self._threads, self._device, lambda: list(project(self._function, self._images, [one], rule)))

    def rows(self, units: int) -> float:
        """Of all that the stage computes: decoded images in, rows with their pictures out."""
        asked = [self._request(image, unit) for image in range(self._number) for unit in range(units)]
        return timed(
            self._threads,
            self._device,
            lambda: [self._stage.row(self._patterns, *one, 4) for one in self._patterns.project(self._pixels, asked)],
        )

    def _request(self, image: int, unit: int) -> Request:
        return Request(image, unit, self._layer.height // 2, self._layer.width // 2)

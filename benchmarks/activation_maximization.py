"""What activation maximization costs, in bare gradients of as many pictures; and what a batch of units saves."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from math import ceil
from pathlib import Path

import torch

from benchmarks.bench import Bench
from benchmarks.clock import timed
from benchmarks.figure import Bar, Figure, interleave, rates, ratios
from benchmarks.networks import ALEXNET, SQUEEZENET, Network
from pipeline.stages.unit_pictures import NOISE
from workers.methods.activation_maximization import MEASURED_EVERY, PRESETS, Preset, at_target, maximize
from workers.models import ModelSpec, load
from workers.nn.canvas import Recipe
from workers.nn.input_space import InputSpace
from workers.nn.layers import layer_table
from workers.nn.relus import LayerFunction, closing_relus
from workers.nn.viewport import viewport

BARS: dict[Preset, Bar] = {"plain": Bar(1.15), "yosinski3": Bar(1.35), "fourier": Bar(1.35)}
BATCHED = Bar(8.0, at_least=True)
UNITS = 32
STEPS = {"cpu": 4, "cuda": 64}
"""Multiples of 4, after which Yosinski's blur comes round again."""
EARLY_STEPS = {"cpu": 16, "cuda": 64}
DEFAULT: Preset = "fourier"

EARLY = replace(SQUEEZENET, layer="features.4")


def activation_maximization(
    bench: Bench,
    networks: tuple[Network, ...] = (ALEXNET, SQUEEZENET),
    early: Network = EARLY,
    number: int = UNITS,
) -> Iterator[Figure]:
    """Presets / bare gradients at the networks' own input size; then units a second in a batch / one by one.

    One image keeps a CPU busy, so the bar on batches is a GPU's.
    """
    for network in networks:
        yield from _compare(bench, Climb(bench, network, number))
    if bench.only_bars and bench.device == "cpu":
        return
    yield from _batch(bench, Climb(bench, networks[0], number), STEPS[bench.device])
    yield from _batch(bench, Climb(bench, early, number, crop=True), EARLY_STEPS[bench.device])


def _compare(bench: Bench, climb: "Climb") -> Iterator[Figure]:
    steps = STEPS[bench.device]
    for preset in BARS:
        climb.climb(preset, 1)  # warm
    climb.gradients(1)
    climb.look()

    def side(preset: Preset) -> Callable[[], float]:
        return lambda: climb.climb(preset, steps)

    bare, look, *seconds = interleave(bench.rounds, lambda: climb.gradients(steps), climb.look, *map(side, BARS))
    images = climb.number * steps
    yield Figure(f"bare gradient, {climb.title}", rates(images, bare), "image-steps/s")
    for (preset, bar), measured in zip(BARS.items(), seconds, strict=True):
        extra = surplus_looks(PRESETS[preset], steps)
        net = [taken - extra * one for taken, one in zip(measured, look, strict=True)]
        yield Figure(f"{preset} / bare gradient, {climb.title}", ratios(net, bare), bar=bar)
        yield Figure(f"{preset}, {climb.title}", rates(images, net), "image-steps/s")


def _batch(bench: Bench, climb: "Climb", steps: int) -> Iterator[Figure]:
    climb.climb(DEFAULT, 1)  # warm
    at_once, singly = interleave(
        bench.rounds, lambda: climb.climb(DEFAULT, steps), lambda: climb.climb(DEFAULT, steps, singly=True)
    )
    name = f"units/s, a batch of {climb.number} / one by one, {DEFAULT}, {climb.title}"
    yield Figure(name, ratios(singly, at_once), bar=BATCHED if bench.device == "cuda" else None)


def looks(recipe: Recipe) -> int:
    """Forward passes that take no step: they say what the network makes of the picture itself."""
    return 1 + (ceil(recipe.steps / MEASURED_EVERY) if recipe.transforms else 0)


def surplus_looks(recipe: Recipe, steps: int) -> float:
    """How many more of them a climb of so few steps takes than are its share of the whole recipe's."""
    return looks(replace(recipe, steps=steps)) - looks(recipe) * steps / recipe.steps


class Climb:
    """The first units of a layer, from noise; every method returns seconds.

    Args:
        bench: threads, device.
        network: its layer is the units'.
        number: of units.
        crop: make images no larger than the center cell needs, as the stage does; else of the network's own size.
    """

    def __init__(self, bench: Bench, network: Network, number: int, crop: bool = False) -> None:
        model = load(ModelSpec(network.name, network.weights), lambda path: Path(path).read_bytes()).on(bench.device)
        size = model.preprocessing
        shape, side, recipe = (3, size.height, size.width), size.height, PRESETS[DEFAULT]
        row = layer_table(model.module, [network.layer], shape)[0]
        if crop:
            rows, _ = viewport(
                row.receptive_field, (size.height, size.width), (row.height, row.width),
                recipe.jitter, recipe.scale_and_rotate, None, False,
            )  # fmt: skip
            side = rows.side
        self.number = number
        self.title = f"{network.title} {network.layer}, {number} units, {side} px"
        self._threads, self._device = bench.threads, bench.device
        self._space = InputSpace(size.mean, size.std, size.scale, size.channel_order == "bgr")
        self._network = LayerFunction(model.module, network.layer, closing_relus(model.module, network.layer, shape))
        noise = torch.randn(number, 3, side, side, generator=torch.Generator().manual_seed(0))
        self._start = (noise * (NOISE * self._space.pixel)).to(bench.device)
        self._units = torch.arange(number, device=bench.device)

    def climb(self, preset: Preset, steps: int, singly: bool = False) -> float:
        """Of `maximize`, on all units at once or one after another."""
        recipe, size = replace(PRESETS[preset], steps=steps), 1 if singly else self.number

        def maximize_all() -> None:
            for start, units in zip(self._start.split(size), self._units.split(size), strict=True):
                generators = [torch.Generator().manual_seed(int(unit)) for unit in units]
                maximize(self._network, start, units, self._space, recipe, generators)

        return timed(self._threads, self._device, maximize_all)

    def gradients(self, steps: int) -> float:
        """Of as many forward and backward passes, and nothing else."""

        def differentiate() -> None:
            for _ in range(steps):
                images = self._start.detach().requires_grad_()
                values = at_target(self._network(images), "neuron").gather(1, self._units[:, None])
                torch.autograd.grad(values.sum(), images)

        return timed(self._threads, self._device, differentiate)

    @torch.no_grad()
    def look(self) -> float:
        """Of a forward pass."""
        return timed(self._threads, self._device, lambda: self._network(self._start))

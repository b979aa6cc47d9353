"""Patterns of one layer's units on images of the data set: projected, cut to what the unit sees, drawn."""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from pipeline.stage import Layer
from pipeline.study import Numerics
from workers.methods.deconvnet import Keep, Round, Rule, project
from workers.models import LoadedModel
from workers.nn.input_space import InputSpace
from workers.nn.receptive_field import ReceptiveField
from workers.nn.relus import LayerFunction
from workers.pictures import encode
from workers.precision import DTYPES, MEMORY_FORMATS, rounding

FITS = 0.99
"""Share of a pattern's values that are drawn between black and white."""


@dataclass(frozen=True)
class Request:
    """A unit on an image: where its map is largest there.

    Attributes:
        image_id: place of the image in the data set.
        unit: which.
        y: grid row of the cell.
        x: grid column.
        rank: what tells it from others of the unit.
        image: path of the image in the source.
    """

    image_id: int
    unit: int
    y: int
    x: int
    rank: int = 0
    image: str = ""


@dataclass(frozen=True)
class Box:
    """Rows and columns of the network's input: those that a cell sees.

    Attributes:
        top: first row.
        left: first column.
        bottom: one after the last row.
        right: one after the last column.
        is_clipped: whether the cell would see more, if the image had more.
    """

    top: int
    left: int
    bottom: int
    right: int
    is_clipped: bool = False

    @property
    def slices(self) -> tuple[slice, slice]:
        return slice(self.top, self.bottom), slice(self.left, self.right)


@dataclass(frozen=True)
class Pattern:
    """What in an image drives a unit, as far as the unit sees.

    Attributes:
        value: in the network's input space, on the CPU.
        crop: the same pixels of the image, RGB.
        box: where they lie.
        activation: the unit's value at the cell.
        outside: values other than 0 that lie elsewhere.
    """

    value: Float[Tensor, "3 y x"]
    crop: UInt8[Tensor, "3 y x"]
    box: Box
    activation: float
    outside: int


def box_of(field: ReceptiveField | None, y: int, x: int, height: int, width: int) -> Box:
    """What a cell sees of an image of some rows and columns; without a field, all of it."""
    if field is None:
        return Box(0, 0, height, width)
    top = round(field.offset_y + field.stride_y * y - (field.field_y - 1) / 2)
    left = round(field.offset_x + field.stride_x * x - (field.field_x - 1) / 2)
    bottom, right = top + field.field_y, left + field.field_x
    clipped = top < 0 or left < 0 or bottom > height or right > width
    return Box(max(top, 0), max(left, 0), min(bottom, height), min(right, width), clipped)


class LayerPatterns:
    """One layer of one network.

    Args:
        model: the network.
        layer: the layer.
        numerics: by which it runs.
        device: where.
        rule: of ReLUs on the way back.
        keep: one cell, or the map.
        extend: whether nonlinearities other than ReLU are let pass.
        batch: images that go through the network at a time; with fewer, some are there several times.
    """

    def __init__(
        self,
        model: LoadedModel,
        layer: Layer,
        numerics: Numerics,
        device: str,
        rule: Rule,
        keep: Keep,
        extend: bool,
        batch: int,
    ) -> None:
        size = model.preprocessing
        self._model, self._layer, self._numerics, self._device = model, layer, numerics, device
        self._rule: Rule = rule
        self._keep: Keep = keep
        self._extend, self._batch = extend, batch
        self._function = LayerFunction(model.module, layer.name)
        self.space = InputSpace(size.mean, size.std, size.scale, size.channel_order == "bgr")

    def project(
        self, images: Mapping[int, UInt8[Tensor, "3 y x"]], requests: Sequence[Request]
    ) -> Iterator[tuple[Request, Pattern]]:
        """Project units back on a batch of images at most: one forward pass, as many backward as an image has units.

        Args:
            images: at the network's input size, by image_id.
            requests: what to project, of these images.

        Raises:
            NonlinearityError: the network has nonlinearities that the rule has no word for.
        """
        places = share_out(requests, self._batch)
        pixels = torch.stack([images[image_id] for image_id, _ in places])
        given = self._model.preprocessing.normalize(pixels.to(self._device))
        numerics = self._numerics
        given = given.to(DTYPES[numerics.precision], memory_format=MEMORY_FORMATS[numerics.memory_format])
        rounds = [
            {place: asked[number] for place, (_, asked) in enumerate(places) if number < len(asked)}
            for number in range(max(len(asked) for _, asked in places))
        ]
        with rounding(numerics.precision):
            made = project(
                self._function, given, [self.round(one) for one in rounds], self._rule, self._keep, self._extend
            )
            for one, projection in zip(rounds, made, strict=True):
                pattern, activation = projection.pattern.float().cpu(), projection.activation.float().cpu()
                for place, request in one.items():
                    yield request, self._cut(pattern[place], pixels[place], activation[place].item(), request)

    def round(self, requests: Mapping[int, Request]) -> Round:
        """A request for each place in the batch that has one, as the method takes them."""
        columns = []
        for name, empty in (("unit", -1), ("y", 0), ("x", 0)):
            values = [getattr(requests[place], name) if place in requests else empty for place in range(self._batch)]
            columns.append(torch.tensor(values, device=self._device))
        return Round(*columns)

    def _cut(self, pattern: Tensor, pixels: Tensor, activation: float, request: Request) -> Pattern:
        field = self._layer.field if self._keep == "cell" else None
        box = box_of(field, request.y, request.x, *pattern.shape[1:])
        rows, columns = box.slices
        value = pattern[:, rows, columns].contiguous()
        outside = int(pattern.count_nonzero() - value.count_nonzero())
        return Pattern(value, pixels[:, rows, columns], box, activation, outside)

    def draw(self, pattern: Pattern) -> dict[str, dict]:
        """The columns `pattern` and `crop`."""
        drawn = self.space.draw_signed(pattern.value[None], FITS)[0]
        return {"pattern": encode(drawn.numpy()), "crop": encode(pattern.crop.movedim(0, -1).numpy())}


def share_out(requests: Sequence[Request], batch: int) -> list[tuple[int, list[Request]]]:
    """The image of each place of a batch, and its requests: images with the most have the places that none needs."""
    asked: dict[int, list[Request]] = defaultdict(list)
    for request in requests:
        asked[request.image_id].append(request)
    places = dict.fromkeys(asked, 1)
    for _ in range(batch - len(asked)):
        places[max(asked, key=lambda one: len(asked[one]) / places[one])] += 1
    return [(one, asked[one][start :: places[one]]) for one in asked for start in range(places[one])]


def in_batches(requests: Sequence[Request], batch: int) -> list[list[Request]]:
    """Cut requests into batches of images that have about as many requests each, so that few passes run half empty."""
    asked: dict[int, list[Request]] = defaultdict(list)
    for request in sorted(requests, key=lambda one: (one.unit, one.rank)):
        asked[request.image_id].append(request)
    ids = sorted(asked, key=lambda one: (-len(asked[one]), one))
    return [
        [request for one in ids[start : start + batch] for request in asked[one]] for start in range(0, len(ids), batch)
    ]

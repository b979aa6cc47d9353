"""Where a layer's cells look: stride, offset and size of its receptive fields, measured.

The network's own forward runs once, in float64, on footprints; the support of a cell's gradient is its field.

Coordinates: input pixel centers at integers; cell (i, j) looks at row `offset_y + stride_y * i`, column
`offset_x + stride_x * j`. Borders clip fields: right edges are read off the first cells, left edges off the
last, and the input grows until neither is clipped.

Araujo, Norris, Sim: Computing Receptive Fields of Convolutional Neural Networks, Distill 2019, has the
closed form for chains. Differs from it in that nothing need be known of the graph.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from workers.activations import forward
from workers.nn.footprint import Footprint, NoGrid, footprint_of

GROWTHS = (0, 256, 768, 1792, 3840)
"""By how much the input grows, one axis at a time. Multiples of 256, so that windows whose padding depends on
the size keep their place."""
MARGIN = 0.25
"""Share of the input that must lie beyond an edge: strided or dilated windows can end short of the border."""


@dataclass(frozen=True)
class ReceptiveField:
    """Receptive fields of a layer's grid, in input pixels.

    Attributes:
        stride_y: rows between the centers of neighboring cells.
        stride_x: columns likewise.
        offset_y: row of the center of cell (0, 0), pixel centers at integers.
        offset_x: its column.
        field_y: rows that a cell sees, as if nothing clipped it.
        field_x: columns likewise.
    """

    stride_y: float
    stride_x: float
    offset_y: float
    offset_x: float
    field_y: int
    field_x: int


@dataclass(frozen=True)
class _Axis:
    """A receptive field along one axis."""

    stride: float
    offset: float
    field: int


def receptive_fields(
    module: nn.Module, layers: Sequence[str], input_shape: tuple[int, int, int]
) -> dict[str, ReceptiveField | None]:
    """Measure the receptive fields of layers.

    What a squeeze-and-excitation gate lets a cell know of the whole image does not count.

    Args:
        module: the network, in eval mode, no parameter wanting a gradient; of its weights only the shapes
            are looked at.
        layers: dotted module names.
        input_shape: channels, rows, columns of one input image.

    Returns:
        By layer, in the order asked; None where a cell sees the whole input (after global pooling, in
        fully connected layers), or where cells are not alike (attention).

    Raises:
        ModelError: the network has no such layer, or the layer does not run.
    """
    rows, columns = (_measure_axis(module, layers, input_shape, axis) for axis in (1, 2))
    fields: dict[str, ReceptiveField | None] = {}
    for layer in layers:
        y, x = rows[layer], columns[layer]
        fields[layer] = y and x and ReceptiveField(y.stride, x.stride, y.offset, x.offset, y.field, x.field)
    return fields


def _measure_axis(
    module: nn.Module, layers: Sequence[str], input_shape: tuple[int, int, int], axis: int
) -> dict[str, _Axis | None]:
    measured: dict[str, _Axis | None] = {}
    for growth in GROWTHS:
        pending = [layer for layer in layers if layer not in measured]
        if not pending:
            break
        shape = list(input_shape)
        shape[axis] += growth
        measured |= _measure(module, pending, shape, axis)
    return {layer: measured.get(layer) for layer in layers}


def _measure(module: nn.Module, layers: Sequence[str], shape: list[int], axis: int) -> dict[str, _Axis | None]:
    """Measure the layers whose fields fit an input of this shape; None if no size would do."""
    outputs: dict[str, Tensor] = {}
    with torch.inference_mode(False), torch.enable_grad():
        image = torch.ones(1, *shape, dtype=torch.float64, requires_grad=True)
        try:
            with Footprint():
                forward(module, image, layers, outputs.__setitem__)
        except NoGrid:
            pass
        measured: dict[str, _Axis | None] = {}
        for layer in layers:
            output = outputs.get(layer)
            if output is None or not output.requires_grad:
                measured[layer] = None
            elif min(output.shape[1:]) > 0 and (edges := _edges(output, image, axis)) is not None:
                measured[layer] = edges
    return measured


def _edges(output: Tensor, image: Tensor, axis: int) -> _Axis | None:
    """Read the field off the first two and the last two cells; None while the border clips them."""
    cells, pixels = output.shape[axis + 1], image.shape[axis + 1]
    if cells < 2:
        return None
    footprint = footprint_of(output)

    def span(cell: int) -> tuple[int, int]:
        target = footprint.select(axis + 1, cell).sum()
        (gradient,) = torch.autograd.grad(target, image, retain_graph=True)
        seen = gradient[0].ne(0).any(0).any(2 - axis).nonzero()
        return (int(seen[0]), int(seen[-1])) if len(seen) else (0, pixels)

    right, next_right = span(0)[1], span(1)[1]
    left, previous_left = span(cells - 1)[0], span(cells - 2)[0]
    stride = next_right - right
    free = MARGIN * pixels
    if stride < 1 or stride != left - previous_left or next_right > pixels - 1 - free or previous_left < free:
        return None
    first_left = left - stride * (cells - 1)
    return _Axis(float(stride), (first_left + right) / 2, right - first_left + 1)

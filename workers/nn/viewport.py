"""Where a unit's pictures lie: how large an image its cell needs, which cell that is, and what it sees of it."""

from dataclasses import dataclass
from math import ceil

from workers.nn.receptive_field import ReceptiveField

SIDE_STEP = 32
"""Sides differ by a multiple of it, so that strided layers keep their place in the image."""
REACH = 0.15
"""Share of the field by which scaling and rotating lets a cell look beyond it, on either side."""


@dataclass(frozen=True)
class Axis:
    """Rows or columns of the pictures of a layer's units.

    Attributes:
        side: pixels of the image that is made.
        start: first pixel that the center cell sees.
        stop: one after the last.
        stride: pixels from a cell to the next, where it is known.
        cell: the center cell.
    """

    side: int
    start: int
    stop: int
    stride: float | None
    cell: int


def axis(
    side: int, cells: int, stride: float | None, offset: float, field: int, margin: int, wanted: int | None
) -> Axis:
    """Lay out one axis.

    Args:
        side: pixels of the network's own input.
        cells: of the layer's grid under that.
        stride: of the receptive fields; None where a cell sees everything.
        offset: center of the first.
        field: pixels of one.
        margin: pixels around it that are wanted beside it.
        wanted: side to use; None takes the smallest in which the center cell's field and margin lie whole.
    """
    whole = Axis(wanted or side, 0, wanted or side, None, cells // 2)
    if stride is None or cells < 2:
        return whole
    for size in [wanted] if wanted else range(side % SIDE_STEP or SIDE_STEP, side + 1, SIDE_STEP):
        lost = (side - size) / stride
        cell = (cells - round(lost)) // 2
        first = offset + stride * cell - (field - 1) / 2
        last = first + field - 1
        if lost != round(lost) or cells - lost < 1:
            continue
        if size in (wanted, side) or (first >= margin and last + margin < size):
            return Axis(size, max(0, int(first) - margin), min(size, ceil(last) + 1 + margin), stride, cell)
    return whole


def viewport(
    field: ReceptiveField | None,
    size: tuple[int, int],
    grid: tuple[int, int],
    jitter: int,
    turns: bool,
    wanted: int | None,
    whole: bool,
) -> tuple[Axis, Axis]:
    """Lay out rows and columns.

    Args:
        field: the layer's receptive field; None where a cell sees the whole input.
        size: rows and columns of the network's own input.
        grid: of the layer under that.
        jitter: pixels that images are shifted by.
        turns: whether they are scaled and rotated.
        wanted: side of the image; None takes what the center cell needs.
        whole: whether all cells matter, not only the center one.
    """
    if field is None or whole:
        rows, columns = (axis(size[i], grid[i], None, 0.0, 0, 0, wanted) for i in (0, 1))
        return rows, columns
    rows, columns = (
        axis(size[i], grid[i], stride, offset, span, jitter + ceil(REACH * span) * turns, wanted)
        for i, (stride, offset, span) in enumerate(
            ((field.stride_y, field.offset_y, field.field_y), (field.stride_x, field.offset_x, field.field_x))
        )
    )
    return rows, columns

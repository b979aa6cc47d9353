"""Where the center cell looks, beside what its gradient and its value say on networks that run."""

from functools import cache

import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.stages.real_images import RealImage, seen_by_center
from workers.networks.mininet import MiniNet
from workers.nn.layers import layer_table
from workers.nn.receptive_field import ReceptiveField
from workers.nn.relus import LayerFunction
from workers.nn.viewport import REACH, SIDE_STEP, Axis, axis, viewport

# network, rows and columns of its own input, layer; among them odd sizes, and padding that depends on them
LAYERS = [
    ("squeezenet1_1", (224, 224), "features.3"),
    ("squeezenet1_1", (224, 224), "features.6"),
    ("squeezenet1_1", (224, 224), "features.9"),
    ("squeezenet1_1", (227, 227), "features.6"),
    ("squeezenet1_1", (160, 224), "features.6"),
    ("tf_efficientnet_lite0", (224, 224), "blocks.1.0"),
    ("tf_efficientnet_lite0", (112, 135), "blocks.1.0"),
    ("mininet", (112, 112), "features.7"),
]


@cache
def build(name, size, layer):
    """A network with random weights, in float64, and the layer's row."""
    torch.manual_seed(0)
    if name == "mininet":
        network = MiniNet()
    elif name == "squeezenet1_1":
        network = torchvision.models.squeezenet1_1(weights=None)
    else:
        network = pytest.importorskip("timm").create_model(name, pretrained=False)
    network = network.eval().requires_grad_(False)
    (row,) = layer_table(network, [layer], (3, *size))
    return network.double(), row


def lay_out(row, size, jitter=0, turns=False, wanted=None):
    return viewport(row.receptive_field, size, (row.height, row.width), jitter, turns, wanted, False)


def seen(network, layer, axes):
    """The box around the pixels that the gradients of the center cell's units reach in some images."""
    images = torch.randn(3, 3, axes[0].side, axes[1].side, dtype=torch.float64).requires_grad_()
    activation = LayerFunction(network, layer)(images)
    assert activation.shape[2:] == (
        axes[0].cell * 2 + activation.shape[2] % 2,
        axes[1].cell * 2 + activation.shape[3] % 2,
    )
    center = activation[:, :, axes[0].cell, axes[1].cell]
    (gradient,) = torch.autograd.grad(center.sum(), images)
    rows, columns = (gradient != 0).any(0).any(0).nonzero().T
    return [(int(places.min()), int(places.max()) + 1) for places in (rows, columns)]


@pytest.mark.parametrize(("name", "size", "layer"), LAYERS)
def test_the_center_cell_sees_what_it_is_said_to_see(name, size, layer):
    network, row = build(name, size, layer)
    axes = lay_out(row, size)
    assert all(one.side < own for one, own in zip(axes, size, strict=True))
    assert seen(network, layer, axes) == [(one.start, one.stop) for one in axes]


def test_on_an_image_of_the_networks_own_size_it_sees_as_much():
    network, row = build("squeezenet1_1", (224, 224), "features.6")
    axes = lay_out(row, (224, 224), wanted=224)
    assert [one.side for one in axes] == [224, 224]
    assert seen(network, "features.6", axes) == [(one.start, one.stop) for one in axes]


def test_where_the_border_cuts_the_field_it_sees_the_rest():
    network, row = build("squeezenet1_1", (224, 224), "features.9")
    axes = lay_out(row, (224, 224), wanted=96)
    assert axes == (Axis(96, 0, 96, 16.0, 2),) * 2
    assert seen(network, "features.9", axes) == [(0, 95)] * 2  # a first step of 2 ends short of the border


@pytest.mark.parametrize(("name", "size", "layer"), LAYERS)
def test_a_cut_image_drives_the_center_cell_as_the_whole_one_drives_its_own(name, size, layer):
    network, row = build(name, size, layer)
    axes = lay_out(row, size, jitter=1, turns=True)
    image = torch.rand(3, *size)
    whole = LayerFunction(network, layer)(image[None].double())[0]
    cells = [
        RealImage(0, row.height // 2, row.width // 2),
        RealImage(0, row.height // 2 - 2, row.width // 2 + 1),
        RealImage(0, axes[0].cell, axes[1].cell),
    ]
    cut = seen_by_center([image] * 3, cells, axes)
    made = LayerFunction(network, layer)(cut.double())[:, :, axes[0].cell, axes[1].cell]
    expected = torch.stack([whole[:, cell.y, cell.x] for cell in cells])
    torch.testing.assert_close(made, expected, rtol=1e-12, atol=0)
    assert (expected[0] - expected[1]).abs().max() > 1e-6 * expected.abs().max()


@pytest.mark.parametrize(("name", "size", "layer"), LAYERS)
def test_the_side_is_the_least_that_holds_the_field_and_its_margin(name, size, layer):
    _, row = build(name, size, layer)
    field = row.receptive_field
    for jitter, turns in ((0, False), (3, False), (2, True)):
        rows, columns = lay_out(row, size, jitter, turns)
        for one, own, span, cells in (
            (rows, size[0], field.field_y, row.height),
            (columns, size[1], field.field_x, row.width),
        ):
            margin = jitter + (-int(-REACH * span // 1) if turns else 0)
            assert (own - one.side) % SIDE_STEP == 0
            if one.side == own:
                continue
            assert one.stop - one.start == span + 2 * margin
            assert 0 <= one.start < one.stop <= one.side
            smaller = one.side - SIDE_STEP  # the center cell of a smaller one, by the same rule, is too near its edge
            cell = (cells - (own - smaller) / one.stride) // 2
            first = one.start - one.stride * (one.cell - cell)
            assert smaller <= 0 or first < 0 or first + span + 2 * margin > smaller


@settings(deadline=None)
@given(
    st.integers(20, 300),
    st.sampled_from([1, 2, 4, 8, 16, 32]),
    st.integers(1, 200),
    st.integers(0, 30),
    st.one_of(st.none(), st.integers(1, 300)),
)
def test_an_axis_lies_within_its_side(side, stride, field, margin, wanted):
    offset = (stride - 1) // 2 + (field + 1) % 2 / 2  # fields end where pixels do
    cells = max(1, int((side - 1 - offset) // stride) + 1)
    found = axis(side, cells, float(stride), offset, field, margin, wanted)
    assert 0 <= found.start < found.stop <= found.side <= max(side, wanted or 0)
    assert wanted in (None, found.side)
    if found.stride is None:
        assert (found.start, found.stop) == (0, found.side)
        return
    lost = (side - found.side) / stride
    assert found.cell == (cells - lost) // 2
    center = offset + stride * found.cell
    assert found.start == max(0, center - (field - 1) / 2 - margin)
    assert found.stop == min(found.side, center + (field - 1) / 2 + margin + 1)


FIELD = ReceptiveField(4.0, 8.0, 3.0, 6.0, 15, 51)


def test_rows_and_columns_are_laid_out_each_by_its_own_field():
    rows, columns = viewport(FIELD, (224, 112), (55, 13), 0, False, None, False)
    assert rows == Axis(32, 8, 23, 4.0, 3)
    assert columns == Axis(80, 13, 64, 8.0, 4)


def test_jitter_and_turns_let_a_cell_look_farther():
    still, shaken, turned = (
        viewport(FIELD, (224, 112), (55, 13), jitter, turns, None, False)[0]
        for jitter, turns in ((0, False), (2, False), (2, True))
    )
    assert (still.start, still.stop) == (8, 23)
    assert (shaken.start, shaken.stop) == (6, 25)
    assert (turned.start, turned.stop) == (3, 28)  # 15 percent of 15 pixels are 3 more


@pytest.mark.parametrize("wanted", [None, 64])
def test_all_is_shown_where_a_cell_sees_all_or_all_cells_matter(wanted):
    sides = (wanted or 224, wanted or 112)
    expected = tuple(Axis(side, 0, side, None, cells // 2) for side, cells in zip(sides, (55, 13), strict=True))
    assert viewport(FIELD, (224, 112), (55, 13), 2, True, wanted, True) == expected
    assert viewport(None, (224, 112), (55, 13), 2, True, wanted, False) == expected


def test_one_cell_has_no_center_to_be_moved():
    assert axis(224, 1, 32.0, 0.0, 400, 0, None) == Axis(224, 0, 224, None, 0)


def test_a_side_that_moves_the_grid_shows_all():
    """A side of 100 is 124 pixels less, no multiple of the stride: cells look elsewhere."""
    assert axis(224, 28, 8.0, 0.0, 15, 0, 100) == Axis(100, 0, 100, None, 14)


def test_a_field_larger_than_the_input_takes_the_whole_side():
    found = axis(224, 14, 16.0, 7.5, 400, 12, None)
    assert (found.side, found.start, found.stop, found.cell) == (224, 0, 224, 7)

"""Receptive fields: published numbers, and a brute-force search on random chains."""

import itertools

import pytest
import torch
import torch.nn.functional as F
import torchvision
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn

from workers.nn.footprint import Footprint
from workers.nn.receptive_field import ReceptiveField, receptive_fields

INPUT = (3, 224, 224)


def field(stride, offset, size):
    return ReceptiveField(float(stride), float(stride), float(offset), float(offset), size, size)


def build(name, **arguments):
    with torch.device("meta"):
        return torchvision.models.get_model(name, weights=None, **arguments).eval().requires_grad_(False)


# Fields as in Araujo et al. 2019 where they list the network; the rest by their recurrence, by hand.
@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("alexnet", {"features.0": (4, 3, 11), "features.10": (16, 15, 163), "features.11": (16, 15, 163)}),
        ("vgg16", {"features.1": (1, 0, 3), "features.4": (2, 0.5, 6), "features.29": (16, 7.5, 196)}),
        ("squeezenet1_1", {"features.1": (2, 1, 3), "features.3": (4, 3, 15), "features.12": (16, 15, 207)}),
        ("resnet18", {"conv1": (2, 0, 7), "layer1.0": (4, 0, 27), "layer4.1": (32, 0, 435)}),
        ("resnet50", {"layer1": (4, 0, 35), "layer2": (8, 0, 91), "layer3": (16, 0, 267), "layer4": (32, 0, 427)}),
    ],
)
def test_matches_the_published_fields(name, expected):
    fields = receptive_fields(build(name), list(expected), INPUT)
    assert fields == {layer: field(*numbers) for layer, numbers in expected.items()}


def test_sees_past_the_input_it_was_asked_about():
    inception = build("inception_v3", aux_logits=False, init_weights=False)
    measured = receptive_fields(inception, ["Mixed_7c"], (3, 299, 299))["Mixed_7c"]
    assert (measured.stride_y, measured.field_y, measured.field_x) == (32, 1311, 1311)


def test_does_not_depend_on_where_the_layer_lies_in_the_list():
    vgg = build("vgg11")
    layers = ["features.20", "features.1", "features.7"]
    together = receptive_fields(vgg, layers, INPUT)
    assert list(together) == layers
    assert together == {layer: receptive_fields(vgg, [layer], INPUT)[layer] for layer in layers}


def test_gates_do_not_count():
    measured = receptive_fields(build("efficientnet_b0"), ["features.1.0", "features.8"], INPUT)
    assert measured == {"features.1.0": field(2, 0, 7), "features.8": field(32, 0, 851)}


def test_is_none_for_what_sees_everything():
    assert receptive_fields(build("resnet18"), ["avgpool", "fc"], INPUT) == {"avgpool": None, "fc": None}
    assert receptive_fields(build("alexnet"), ["classifier.1"], INPUT) == {"classifier.1": None}


def test_is_none_after_attention():
    assert receptive_fields(build("swin_t"), ["features.1"], INPUT) == {"features.1": None}


def test_runs_under_inference_mode_and_leaves_nothing_behind():
    squeezenet, functions = build("squeezenet1_1"), (F.conv2d, torch.relu, nn.Conv2d.forward)
    with torch.inference_mode():
        assert receptive_fields(squeezenet, ["features.1"], INPUT)["features.1"] == field(2, 1, 3)
    assert (F.conv2d, torch.relu, nn.Conv2d.forward) == functions
    assert all(not module._forward_hooks for module in squeezenet.modules())


class Branches(nn.Module):
    """A concatenation, a sum, functional and in-place operations, a gate, an asymmetric kernel."""

    def __init__(self):
        super().__init__()
        self.narrow, self.wide = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(3, 4, 5, padding=2)
        self.tall = nn.Conv2d(8, 8, (7, 1), padding=(3, 0))
        self.norm = nn.BatchNorm2d(8)
        self.end = nn.Identity()

    def forward(self, x):
        x = torch.cat([F.relu(self.narrow(x)), self.wide(x).relu_()], 1)
        y = self.norm(self.tall(x))
        y += x
        y = F.hardtanh(y * torch.sigmoid(y.mean((2, 3), keepdim=True)), inplace=True)
        return self.end(F.avg_pool2d(y, 2) * 2 + 1)


def test_follows_branches():
    measured = receptive_fields(Branches().eval(), ["end"], (3, 32, 40))["end"]
    assert measured == ReceptiveField(2.0, 2.0, 0.5, 0.5, 12, 6)


def test_is_not_misled_by_borders_that_clip_both_ends_alike():
    """On 9 pixels the first two right edges are 6 and 8 and the last two left edges 0 and 2: no stride of 2."""
    conv = nn.Sequential(nn.Conv2d(1, 1, 13, stride=4, padding=6)).eval()
    assert receptive_fields(conv, ["0"], (1, 9, 9)) == {"0": field(4, 0, 13)}


def test_pads_to_the_same_size_as_torch_does():
    """An even kernel's odd pixel of padding goes to the right: cell 0 sees -1 to 2, or dilated -4 to 5."""
    conv = nn.Sequential(nn.Conv2d(1, 1, 4, padding="same")).eval()
    assert receptive_fields(conv, ["0"], (1, 32, 32)) == {"0": field(1, 0.5, 4)}
    conv = nn.Sequential(nn.Conv2d(1, 1, 4, padding="same", dilation=3)).eval()
    assert receptive_fields(conv, ["0"], (1, 32, 32)) == {"0": field(1, 0.5, 10)}


def test_grids_are_as_large_as_torchs():
    geometries = itertools.product((1, 2, 3, 4), (1, 2, 3), (0, 1, 2), (1, 2), (False, True), (11, 12, 13))
    for kernel, stride, padding, dilation, ceil_mode, size in geometries:
        if padding <= kernel // 2:
            pool = nn.MaxPool2d(kernel, stride, padding, dilation, ceil_mode=ceil_mode)
            image = torch.ones(1, 1, size, size)
            with Footprint():
                shape = pool(image).shape
            assert shape == pool(image).shape, (pool, size)


@st.composite
def layers(draw):
    """A convolution or pool with its own geometry on each axis."""
    kind = draw(st.sampled_from(["conv", "max", "avg"]))
    kernel = draw(st.tuples(st.integers(1, 4), st.integers(1, 4)))
    stride = draw(st.tuples(st.integers(1, 3), st.integers(1, 3)))
    if kind == "conv":
        dilation = draw(st.tuples(st.integers(1, 2), st.integers(1, 2)))
        reach = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
        padding = tuple(draw(st.integers(0, min(r, 3))) for r in reach)
        return nn.Conv2d(1, 1, kernel, stride, padding, dilation, bias=False)
    padding = tuple(draw(st.integers(0, k // 2)) for k in kernel)
    ceil_mode = draw(st.booleans())
    if kind == "max":
        dilation = draw(st.integers(1, 2))
        return nn.MaxPool2d(kernel, stride, padding, dilation, ceil_mode=ceil_mode)
    return nn.AvgPool2d(kernel, stride, padding, ceil_mode)


@torch.no_grad()
def brute_force(network, axis, size):
    """Which positions along an axis move each cell: light one row (or column) at a time."""
    images = torch.eye(size)[:, None, :, None].expand(size, 1, size, size)
    lit = network(images if axis == 0 else images.transpose(2, 3)) > 0
    return lit.any(dim=3 - axis)[:, 0]


@settings(max_examples=25, deadline=None)
@given(chain=st.lists(layers(), min_size=1, max_size=3))
def test_matches_brute_force_on_chains(chain):
    size = 96
    network = nn.Sequential(*chain).eval()
    for module in network:
        if isinstance(module, nn.Conv2d):
            nn.init.ones_(module.weight)
    last = str(len(chain) - 1)
    measured = receptive_fields(network, [last], (1, size, size))[last]
    assert measured is not None
    with Footprint():
        shape = network(torch.ones(1, 1, size, size)).shape
    assert shape == network(torch.ones(1, 1, size, size)).shape
    checked = 0
    for axis, (stride, offset, width) in enumerate(
        [
            (measured.stride_y, measured.offset_y, measured.field_y),
            (measured.stride_x, measured.offset_x, measured.field_x),
        ]
    ):
        seen = brute_force(network, axis, size)
        for cell in range(seen.shape[1]):
            first = offset + stride * cell - (width - 1) / 2
            if first >= 0 and first + width <= size:
                positions = seen[:, cell].nonzero()
                assert (positions.min(), positions.max()) == (first, first + width - 1)
                checked += 1
    assume(checked)

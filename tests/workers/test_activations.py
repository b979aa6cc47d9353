"""Recording layers: the right values at the right moment, and nothing left behind."""

from collections import OrderedDict

import pytest
import torch
from torch import nn

from workers.activations import forward, record
from workers.models import ModelError


class Forbidden(nn.Module):
    def forward(self, x):
        raise RuntimeError("ran past the last wanted layer")


class Pair(nn.Module):
    def forward(self, x):
        return x, x


@pytest.fixture
def network():
    torch.manual_seed(0)
    layers = OrderedDict(conv=nn.Conv2d(3, 4, 3), relu=nn.ReLU(inplace=True), pool=nn.MaxPool2d(2), flat=nn.Flatten())
    return nn.Sequential(layers).eval().requires_grad_(False)


def hooks(network):
    return sum(len(module._forward_hooks) for module in network.modules())


def test_sees_a_layer_before_the_next_overwrites_it(network):
    images = torch.randn(2, 3, 8, 8)
    seen = {}
    forward(network, images, ["conv", "relu"], lambda layer, activation: seen.update({layer: activation.clone()}))
    expected = network.conv(images)
    assert expected.min() < 0
    torch.testing.assert_close(seen["conv"], expected)
    torch.testing.assert_close(seen["relu"], expected.clamp(min=0))


def test_stops_after_the_last_wanted_layer_in_any_order(network):
    network.add_module("forbidden", Forbidden())
    seen = []
    forward(network, torch.randn(1, 3, 8, 8), ["pool", "conv"], lambda layer, _: seen.append(layer))
    assert seen == ["conv", "pool"]


def test_views_a_vector_as_a_grid_of_one_cell(network):
    shapes = []
    forward(network, torch.randn(2, 3, 8, 8), ["flat"], lambda _, activation: shapes.append(tuple(activation.shape)))
    assert shapes == [(2, 36, 1, 1)]


def test_leaves_no_hooks(network):
    forward(network, torch.randn(1, 3, 8, 8), ["conv"], lambda *_: None)
    assert hooks(network) == 0


def test_leaves_no_hooks_after_an_error(network):
    def fail(layer, activation):
        raise KeyError(layer)

    with pytest.raises(KeyError, match="relu"):
        forward(network, torch.randn(1, 3, 8, 8), ["conv", "relu"], lambda layer, a: layer == "relu" and fail(layer, a))
    with pytest.raises(ModelError, match="nowhere"), record(network, ["conv", "nowhere"], fail):
        pass
    assert hooks(network) == 0


def test_hooks_only_the_named_modules_and_only_inside(network):
    with record(network, ["conv"], lambda *_: None):
        assert hooks(network) == hooks(network.conv) == 1
    assert hooks(network) == 0


def test_runs_nothing_for_no_layers():
    forward(Forbidden(), torch.zeros(1, 3, 4, 4), [], lambda *_: None)


def test_refuses_a_layer_that_returns_no_grid(network):
    network.add_module("pair", Pair())
    with pytest.raises(ModelError, match="layer pair returns tuple"):
        forward(network, torch.randn(1, 3, 8, 8), ["pair"], lambda *_: None)


def test_refuses_a_layer_that_does_not_run(network):
    network.pool.add_module("spare", nn.Conv2d(4, 4, 1))
    with pytest.raises(ModelError, match=r"pool\.spare"):
        forward(network, torch.randn(1, 3, 8, 8), ["conv", "pool.spare"], lambda *_: None)

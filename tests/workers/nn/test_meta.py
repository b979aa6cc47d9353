"""A forward pass without values: shapes as with them, and the network's tensors put back, tied or not."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from workers.models import ModelError
from workers.nn.meta import run_on_meta, shadow


class Tied(nn.Module):
    """Two convolutions that share a weight, one of them under two names, and a parameter that has two names."""

    def __init__(self):
        super().__init__()
        self.conv, self.other = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)
        self.other.weight = self.conv.weight
        self.again = self.conv
        self.scale = nn.Parameter(torch.ones(3, 1, 1))
        self.same = self.scale
        self.register_buffer("mean", torch.zeros(3, 1, 1))
        self.norm, self.end = nn.BatchNorm2d(3), nn.Identity()

    def forward(self, x):
        x = self.again(self.other(self.conv(x - self.mean) * self.scale) * self.same)
        return self.end(F.max_pool2d(self.norm(x), 2))


def tensors(network):
    """Every parameter and buffer under all of its names."""
    return {
        **dict(network.named_parameters(remove_duplicate=False)),
        **dict(network.named_buffers(remove_duplicate=False)),
    }


def run(network, layer, shape=(3, 8, 6)):
    seen = []
    run_on_meta(network, layer, shape, lambda name, activation: seen.append((name, activation)))
    return seen


def test_a_shadow_has_shapes_and_types_and_no_values():
    network = Tied().eval()
    made, real = shadow(network), tensors(network)
    assert all(tensor.is_meta and not tensor.requires_grad for tensor in made.values())
    assert all((tensor.shape, tensor.dtype) == (real[name].shape, real[name].dtype) for name, tensor in made.items())
    assert made.keys() == {name for name in real if not name.startswith("again.")}


def test_tensors_are_put_back_under_every_name():
    network, image = Tied().eval(), torch.randn(1, 3, 8, 6)
    before, expected = tensors(network), network(image)
    ((name, activation),) = run(network, "end")
    assert (name, activation.device.type, activation.shape) == ("end", "meta", expected.shape)
    assert tensors(network).keys() == before.keys()
    assert all(after is before[name] for name, after in tensors(network).items())
    assert network.other.weight is network.conv.weight
    assert network.again is network.conv
    assert network.same is network.scale
    assert network(image).equal(expected)


def test_tensors_are_put_back_after_an_error():
    network = Tied().eval()
    before = tensors(network)

    def fail(_name, _activation):
        raise KeyError

    with pytest.raises(KeyError):
        run_on_meta(network, "conv", (3, 8, 6), fail)
    with pytest.raises(RuntimeError):
        run(network, "end", (4, 8, 6))
    with pytest.raises(ModelError, match="'nowhere', which the network does not have"):
        run(network, "nowhere")
    assert all(after is before[name] for name, after in tensors(network).items())
    assert not any(module._forward_hooks for module in network.modules())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_the_image_has_the_type_of_the_weights(dtype):
    ((_, activation),) = run(Tied().eval().to(dtype), "other")
    assert (activation.dtype, activation.shape) == (dtype, (1, 3, 8, 6))


def test_a_network_without_weights_runs():
    ((_, activation),) = run(nn.Sequential(nn.ReLU(), nn.MaxPool2d(2)), "1")
    assert (activation.shape, activation.dtype) == ((1, 3, 4, 3), torch.float32)


def test_a_layer_that_runs_twice_is_told_twice():
    relu = nn.ReLU()
    assert [name for name, _ in run(nn.Sequential(relu, nn.Conv2d(3, 2, 1), relu).eval(), "0")] == ["0", "0"]


def test_nothing_is_differentiated():
    network = Tied().eval()
    ((_, activation),) = run(network, "end")
    assert not activation.requires_grad
    assert all(parameter.grad is None for parameter in network.parameters())
    assert network.conv.weight.requires_grad

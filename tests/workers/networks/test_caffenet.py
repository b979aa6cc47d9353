"""CaffeNet's published sizes, and its normalization against Caffe's formula."""

import pytest
import torch

from workers.activations import record
from workers.networks.caffenet import SIZE, CaffeNet

GRIDS = {"conv1": 55, "pool1": 27, "conv2": 27, "pool2": 13, "conv3": 13, "conv4": 13, "conv5": 13, "pool5": 6}


@pytest.fixture(scope="module")
def network():
    with torch.device("meta"):
        return CaffeNet().eval()


def test_has_the_published_number_of_parameters(network):
    assert sum(parameter.numel() for parameter in network.parameters()) == 60_965_224


def test_has_the_published_grids(network):
    grids = {}
    with record(network, list(GRIDS), lambda layer, activation: grids.update({layer: activation.shape[2:]})):
        logits = network(torch.empty(2, 3, SIZE, SIZE, device="meta"))
    assert grids == {layer: (side, side) for layer, side in GRIDS.items()}
    assert logits.shape == (2, 1000)


def test_pools_before_it_normalizes(network):
    names = [name for name, _ in network.named_children()]
    assert names.index("pool1") < names.index("norm1") < names.index("conv2")


def test_normalizes_as_caffe_does():
    x = torch.linspace(-300, 300, 7).reshape(1, 7, 1, 1)
    square = x.flatten() ** 2
    scale = torch.stack([1 + 1e-4 / 5 * square[max(0, unit - 2) : unit + 3].sum() for unit in range(7)])
    norm = dict(CaffeNet(num_classes=1).named_children())["norm1"]
    torch.testing.assert_close(norm(x).flatten(), x.flatten() / scale**0.75)

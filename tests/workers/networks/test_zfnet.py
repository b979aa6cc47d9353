"""ZFNet's published sizes: Zeiler & Fergus 2014, Figure 3."""

import torch

from workers.activations import record
from workers.networks.zfnet import SIZE, ZFNet

GRIDS = {"conv1": 110, "pool1": 55, "conv2": 26, "pool2": 13, "conv3": 13, "conv4": 13, "conv5": 13, "pool5": 6}


def test_has_the_published_grids():
    with torch.device("meta"):
        network = ZFNet(num_classes=10).eval()
    grids = {}
    with record(network, list(GRIDS), lambda layer, activation: grids.update({layer: activation.shape[2:]})):
        logits = network(torch.empty(2, 3, SIZE, SIZE, device="meta"))
    assert grids == {layer: (side, side) for layer, side in GRIDS.items()}
    assert logits.shape == (2, 10)


def test_normalizes_as_krizhevsky_does():
    with torch.device("meta"):
        norm = dict(ZFNet(num_classes=1).named_children())["norm2"]
    x = torch.linspace(-90, 90, 7).reshape(1, 7, 1, 1)
    square = x.flatten() ** 2
    scale = torch.stack([2 + 1e-4 * square[max(0, unit - 2) : unit + 3].sum() for unit in range(7)])
    torch.testing.assert_close(norm(x).flatten(), x.flatten() / scale**0.75)

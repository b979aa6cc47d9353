"""MiniNet: its shapes, and its weights from a generator."""

import pytest
import torch
from torch import nn

from workers.networks.mininet import SIZE, VARIANTS, MiniNet


@pytest.mark.parametrize("num_classes", [1, 8])
def test_logits_have_one_column_a_class(num_classes):
    assert MiniNet(num_classes)(torch.zeros(2, 3, SIZE, SIZE)).shape == (2, num_classes)


@pytest.mark.parametrize(
    ("name", "grids"),
    [
        ("mininet", [56, 27, 27, 13, 13, 13, 13, 6]),
        ("minialexnet", [28, 13, 13, 6, 6, 6, 6, 2]),
        ("minizfnet", [56, 27, 14, 6, 6, 6, 6, 2]),
    ],
)
def test_maps_shrink(name, grids):
    network, sides = MiniNet(**VARIANTS[name]), []
    x = torch.zeros(1, 3, SIZE, SIZE)
    for module in network.features:
        x = module(x)
        if isinstance(module, (nn.ReLU, nn.MaxPool2d)):
            sides.append(x.shape[-1])
    assert sides == grids
    assert network.classifier(x).shape == (1, 8)


def test_variants_differ_in_the_first_two_convolutions_alone():
    convolutions = {
        name: [(m.kernel_size, m.stride) for m in MiniNet(**sizes).modules() if isinstance(m, nn.Conv2d)]
        for name, sizes in VARIANTS.items()
    }
    assert [found[:2] for found in convolutions.values()] == [
        [((7, 7), (2, 2)), ((5, 5), (1, 1))],
        [((11, 11), (4, 4)), ((5, 5), (1, 1))],
        [((7, 7), (2, 2)), ((5, 5), (2, 2))],
    ]
    assert len({tuple(found[2:]) for found in convolutions.values()}) == 1


def test_the_first_two_convolutions_of_the_variants_begin_small():
    for name in ("minialexnet", "minizfnet"):
        spreads = [
            module.weight.std().item()
            for module in MiniNet(generator=torch.Generator().manual_seed(0), **VARIANTS[name]).modules()
            if isinstance(module, nn.Conv2d)
        ]
        assert spreads[:2] == pytest.approx([0.001, 0.001], rel=0.02)
        assert min(spreads[2:]) > 0.03


def test_no_module_works_in_place():
    relus = [module for module in MiniNet().modules() if isinstance(module, nn.ReLU)]
    assert len(relus) == 6
    assert not any(module.inplace for module in relus)


def test_weights_come_from_the_generator_alone():
    first = MiniNet(8, torch.Generator().manual_seed(3)).state_dict()
    torch.rand(1)
    second = MiniNet(8, torch.Generator().manual_seed(3)).state_dict()
    other = MiniNet(8, torch.Generator().manual_seed(4)).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["features.0.weight"], other["features.0.weight"])


def test_no_classes_are_refused():
    with pytest.raises(ValueError, match="num_classes is 0, must be at least 1"):
        MiniNet(0)

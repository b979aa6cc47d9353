"""MiniNet: its shapes, and its weights from a generator."""

import pytest
import torch
from torch import nn

from workers.networks.mininet import SIZE, MiniNet


@pytest.mark.parametrize("num_classes", [1, 8])
def test_logits_have_one_column_a_class(num_classes):
    assert MiniNet(num_classes)(torch.zeros(2, 3, SIZE, SIZE)).shape == (2, num_classes)


def test_maps_shrink_from_56_to_6():
    x, sides = torch.zeros(1, 3, SIZE, SIZE), []
    for module in MiniNet().features:
        x = module(x)
        if isinstance(module, (nn.ReLU, nn.MaxPool2d)):
            sides.append(x.shape[-1])
    assert sides == [56, 27, 27, 13, 13, 13, 13, 6]


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

"""DeconvNet beside the explicit chain of `deconvnet_chain`, beside Captum where that is right, and by hand."""

import copy
import threading
import warnings
from functools import cache

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import nn
from torchvision.models.convnext import CNBlockConfig

from tests.shared import shared_data
from tests.workers.methods.deconvnet_chain import Beside, Sum, as_far_as, explicit
from workers.activations import as_grid
from workers.methods.deconvnet import NonlinearityError, Round, project
from workers.models import ModelSpec, load
from workers.networks.caffenet import CaffeNet
from workers.networks.zfnet import ZFNet
from workers.nn.nonlinearities import count_nonlinearities
from workers.nn.receptive_field import receptive_fields
from workers.nn.relus import LayerFunction

RULES = ("deconvnet", "guided", "gradient")
KEEPS = ("cell", "map")


def randomize(network, seed=0):
    """Weights under which signals keep their size, and batch norms that have seen data; in float64."""
    generator = torch.Generator().manual_seed(seed)
    network = network.to_empty(device="cpu").double().eval().requires_grad_(False)
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.weight.normal_(generator=generator).mul_((2 / module.weight[0].numel()) ** 0.5)
        elif isinstance(module, nn.BatchNorm2d):
            module.weight.uniform_(0.5, 1.5, generator=generator)
            module.running_mean.normal_(generator=generator).mul_(0.1)
            module.running_var.uniform_(0.5, 1.5, generator=generator)
        if getattr(module, "bias", None) is not None:
            module.bias.normal_(generator=generator).mul_(0.1)
    return network


@cache
def build(name):
    """A network with random weights, in float64; fully connected layers are narrow."""
    own = {"caffenet": CaffeNet, "zfnet": ZFNet}
    arguments = {"googlenet": {"aux_logits": False, "init_weights": False}}.get(name, {})
    with torch.device("meta"):
        network = own[name]() if name in own else torchvision.models.get_model(name, weights=None, **arguments)
        for place, module in list(network.named_modules()):
            if isinstance(module, nn.Linear):
                parent, _, child = place.rpartition(".")
                inputs = 24 if module.in_features == 4096 else module.in_features
                setattr(network.get_submodule(parent), child, nn.Linear(inputs, 24))
    return randomize(network)


def pictures(count, side, seed=0, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, 3, side, side, generator=generator, dtype=torch.float64) * scale


def at(*cells):
    """A round: unit, row and column of each image."""
    return Round(*torch.tensor(cells).T.contiguous())


def rounds_of(activation, count=2):
    """Units that are active, others for every image, each at its maximum's cell."""
    order = activation.flatten(2).amax(2).argsort(1, descending=True)
    rounds = []
    for place in range(count):
        cells = []
        for image, ranked in enumerate(order):
            unit = ranked[(place * 3 + image) % len(ranked)]
            cells.append((unit, *divmod(int(activation[image, unit].argmax()), activation.shape[3])))
        rounds.append(at(*cells))
    return rounds


def signal_of(activation, one, keep):
    """All but one unit's map, or its cell, set to zero."""
    signal = torch.zeros_like(activation)
    for image, (unit, y, x) in enumerate(zip(one.unit, one.y, one.x, strict=True)):
        cell = (image, unit, y, x) if keep == "cell" else (image, unit)
        signal[cell] = activation[cell]
    return signal


def difference(made, expected):
    """Largest difference over largest value, of the worst image."""
    size = expected.abs().amax((1, 2, 3))
    assert (size > 0).all()
    return ((made - expected).abs().amax((1, 2, 3)) / size).max().item()


def worst_difference(network, parts, images, rules=RULES, keeps=KEEPS):
    """Between project and the explicit chain, over rules, keeps, rounds and images."""
    worst = 0.0
    for rule in rules:
        output, back = explicit(parts, images, rule)
        activation = output if output.ndim == 4 else output[:, :, None, None]
        rounds = rounds_of(activation)
        for keep in keeps:
            for one, made in zip(rounds, project(network, images, rounds, rule, keep), strict=True):
                expected = back(signal_of(activation, one, keep).reshape(output.shape))
                worst = max(worst, difference(made.pattern, expected))
                value = activation[torch.arange(len(images)), one.unit, one.y, one.x]
                torch.testing.assert_close(made.activation, value, rtol=1e-12, atol=0)
    return worst


CHAINS = [
    ("alexnet", 95, 1.0, ("features.1", "features.2", "features.5", "features.8", "features.12")),
    ("alexnet", 64, 1.0, ("classifier.1", "classifier.5")),  # the adaptive pool repeats cells
    ("zfnet", 75, 60.0, ("relu1", "pool1", "norm1", "norm2", "pool5")),
    ("caffenet", 99, 60.0, ("pool1", "norm1", "norm2", "relu4", "pool5")),
    ("caffenet", 227, 60.0, ("relu7",)),
    ("vgg11", 32, 1.0, ("features.2", "features.9", "features.20", "classifier.1")),
    ("vgg11_bn", 32, 1.0, ("features.1", "features.10", "features.28")),
    ("squeezenet1_1", 64, 1.0, ("features.2", "features.3", "features.7", "features.12", "classifier.1", "classifier.3")),
    ("squeezenet1_0", 63, 1.0, ("features.5",)),
    ("resnet18", 32, 1.0, ("relu", "layer1.1", "layer2.0", "fc")),
    ("resnet50", 32, 1.0, ("layer2",)),
    ("googlenet", 32, 1.0, ("conv1", "inception3a", "inception4b")),  # F.relu
    ("densenet121", 32, 1.0, ("features.denseblock1", "features.denseblock2")),
]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "side", "scale", "layer"), [(name, side, scale, layer) for name, side, scale, layers in CHAINS for layer in layers]
)  # fmt: skip
def test_equals_the_explicit_chain(name, side, scale, layer):
    network = build(name)
    images = pictures(2, side, scale=scale)
    worst = worst_difference(LayerFunction(network, layer), as_far_as(network, layer), images)
    assert worst < 1e-10


def test_the_rules_differ():
    """Or equality with the chain would say little."""
    network, images = build("alexnet"), pictures(2, 95)
    rounds = rounds_of(LayerFunction(network, "features.12")(images), 1)
    made = [next(project(LayerFunction(network, "features.12"), images, rounds, rule)).pattern for rule in RULES]
    for one, other in ((0, 1), (0, 2), (1, 2)):
        assert difference(made[one], made[other]) > 0.1


def one_pixel(*weights_and_biases):
    """1 x 1 convolutions with ReLUs between."""
    parts = []
    for weight, bias in weights_and_biases:
        weight = torch.tensor(weight, dtype=torch.float64)
        conv = nn.Conv2d(weight.shape[1], weight.shape[0], 1)
        conv.weight = nn.Parameter(weight[:, :, None, None], requires_grad=False)
        conv.bias = nn.Parameter(torch.tensor(bias, dtype=torch.float64), requires_grad=False)
        parts += [conv, nn.ReLU()]
    return nn.Sequential(*parts[:-1])


def patterns(network, images, one, keep="cell", extend=False):
    """By rule."""
    return {rule: next(project(network, images, [one], rule, keep, extend)).pattern for rule in RULES}


@pytest.mark.parametrize(
    ("after", "bias", "expected"),
    [
        # x = 2, hidden units x and -x, that is 2 and 0; the signal is the value, 3 * 2 = 6, on its way down 18 and 30
        ([3.0, 5.0], 0.0, {"deconvnet": 18 - 30, "guided": 18, "gradient": 18}),
        # the value is 10 - 6 = 4: down go -12, which no rectified signal is, and 20
        ([-3.0, 5.0], 10.0, {"deconvnet": -20, "guided": 0, "gradient": -12}),
    ],
)
def test_the_three_rules_on_one_pixel_by_hand(after, bias, expected):
    network = one_pixel(([[1.0], [-1.0]], [0.0, 0.0]), ([after], [bias]))
    image = torch.full((1, 1, 1, 1), 2.0, dtype=torch.float64)
    made = patterns(network, image, at((0, 0, 0)))
    assert {rule: pattern.item() for rule, pattern in made.items()} == expected


def test_a_convolution_lays_down_its_filter_by_hand():
    """A 4 x 4 image; the filter as it stands, times the value, on the pixels that the cell saw."""
    conv = nn.Conv2d(1, 1, 3, bias=False).double().requires_grad_(False)
    conv.weight.copy_(torch.tensor([[1.0, 2, 0], [0, 1, -1], [0, 0, 3]]))
    image = torch.tensor([[1.0, 0, 2, 0], [0, 1, 0, 0], [3, 0, 1, 0], [0, 0, 0, 2]], dtype=torch.float64)[None, None]
    (made,) = project(nn.Sequential(conv, nn.ReLU()), image, [at((0, 0, 1))])
    assert made.activation.item() == 4  # 2 * 2 + 0 * 1, and nothing else is lit
    assert made.pattern[0, 0].tolist() == [[0, 4, 8, 0], [0, 0, 4, -4], [0, 0, 0, 12], [0, 0, 0, 0]]
    (made,) = project(nn.Sequential(conv, nn.ReLU()), image, [at((0, 0, 0))], keep="map")
    # the map is 1 + 1 + 3 = 5 and 4, and below 2 - 1 = 1 and 1 + 1 + 6 = 8
    assert made.pattern[0, 0].tolist() == [[5, 14, 8, 0], [1, 15, 15, -4], [0, 1, 22, 4], [0, 0, 3, 24]]


@pytest.mark.parametrize("rule", RULES)
def test_windows_that_share_a_maximum_add_up_by_hand(rule):
    """Two windows of three pixels, whose one maximum is the pixel between; unpooling by overwriting would give 1 x."""
    pool = nn.MaxPool2d((1, 3), stride=(1, 2))
    row = torch.tensor([1.0, 2, 9, 3, 4], dtype=torch.float64)[None, None, None]
    values, switches = F.max_pool2d(row, (1, 3), (1, 2), return_indices=True)
    (both,) = project(pool, row, [at((0, 0, 0))], rule, "map")
    (one,) = project(pool, row, [at((0, 0, 1))], rule, "cell")
    assert both.pattern.flatten().tolist() == [0, 0, 18, 0, 0]
    assert one.pattern.flatten().tolist() == [0, 0, 9, 0, 0]
    overwritten = F.max_unpool2d(values, switches, (1, 3), (1, 2), output_size=row.shape)
    assert overwritten.flatten().tolist() == [0, 0, 9, 0, 0]


def test_four_windows_that_share_a_maximum_add_up_by_hand():
    image = torch.zeros(1, 1, 5, 5, dtype=torch.float64)
    image[0, 0, 2, 2] = 3
    (made,) = project(nn.MaxPool2d(3, stride=2), image, [at((0, 0, 0))], keep="map")
    assert made.pattern.equal(4 * image)


class Net(nn.Module):
    """What a function makes of an image, with convolutions at hand."""

    def __init__(self, function):
        super().__init__()
        self.function = function
        self.a, self.b = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.c, self.end = nn.Conv2d(4, 4, 3), nn.Conv2d(4, 5, 3, padding=1)
        self.wide = nn.Conv2d(8, 5, 3, padding=1)
        self.narrow = nn.Conv2d(3, 4, 1)
        self.dilated = nn.Conv2d(4, 4, (3, 2), stride=(2, 1), padding=(2, 1), dilation=(2, 1), groups=2)
        self.norm = nn.BatchNorm2d(4)
        self.contrast = nn.LocalResponseNorm(3, alpha=0.5)
        self.relu, self.in_place = nn.ReLU(), nn.ReLU(inplace=True)

    def forward(self, x):
        return self.function(self, x)


def relied_on(relu):
    """A ReLU in place whose return value nobody takes."""

    def function(n, x):
        y = n.a(x)
        relu(y)
        return n.end(y)

    return function


def on_a_part(n, x):
    y = n.a(x)
    y[:, :2].relu_()
    y[:, 2:].relu_()
    return n.end(y)


def added_in_place(n, x):
    y = n.a(x).relu()
    z = n.b(y)
    z += y
    return n.end(z.relu_())


def pooled(pool):
    return lambda n, x: n.end(pool(F.relu(n.a(x)))), lambda n: [n.a, nn.ReLU(), pool, n.end]


def plain(n):
    return [n.a, nn.ReLU(), n.end]


# what a network does, and what that is in explicit steps
WAYS = {
    "nn.ReLU": (lambda n, x: n.end(n.relu(n.a(x))), plain),
    "nn.ReLU in place": (lambda n, x: n.end(n.in_place(n.a(x))), plain),
    "F.relu": (lambda n, x: n.end(F.relu(n.a(x))), plain),
    "F.relu by keyword": (lambda n, x: n.end(F.relu(input=n.a(x))), plain),
    "F.relu in place": (lambda n, x: n.end(F.relu(n.a(x), inplace=True)), plain),
    "F.relu in place by position": (lambda n, x: n.end(F.relu(n.a(x), True)), plain),
    "F.relu in place, relied on": (relied_on(lambda y: F.relu(y, inplace=True)), plain),
    "F.relu in place by position, relied on": (relied_on(lambda y: F.relu(y, True)), plain),
    "F.relu_, relied on": (relied_on(F.relu_), plain),
    "nn.ReLU in place, relied on": (relied_on(nn.ReLU(inplace=True)), plain),
    "torch.relu": (lambda n, x: n.end(torch.relu(n.a(x))), plain),
    "torch.relu_": (lambda n, x: n.end(torch.relu_(n.a(x))), plain),
    "torch.relu_, relied on": (relied_on(torch.relu_), plain),
    "Tensor.relu": (lambda n, x: n.end(n.a(x).relu()), plain),
    "Tensor.relu_": (lambda n, x: n.end(n.a(x).relu_()), plain),
    "Tensor.relu_, relied on": (relied_on(lambda y: y.relu_()), plain),
    "in place on parts": (on_a_part, plain),
    "clamp": (lambda n, x: n.end(n.a(x).clamp(min=0)), plain),
    "torch.clamp": (lambda n, x: n.end(torch.clamp(n.a(x), 0.0)), plain),
    "clamp_, relied on": (relied_on(lambda y: y.clamp_(0)), plain),
    "clamp_min_, relied on": (relied_on(lambda y: y.clamp_min_(0)), plain),
    "one nn.ReLU, thrice": (
        lambda n, x: n.end(n.relu(n.c(n.relu(n.b(n.relu(n.a(x))))))),
        lambda n: [n.a, nn.ReLU(), n.b, nn.ReLU(), n.c, nn.ReLU(), n.end],
    ),
    "one nn.ReLU in place, thrice": (
        lambda n, x: n.in_place(n.end(n.in_place(n.b(n.in_place(n.a(x)))))),
        lambda n: [n.a, nn.ReLU(), n.b, nn.ReLU(), n.end, nn.ReLU()],
    ),
    "one convolution, twice": (
        lambda n, x: n.end(F.relu(n.b(F.relu(n.b(F.relu(n.a(x))))))),
        lambda n: [n.a, nn.ReLU(), n.b, nn.ReLU(), n.b, nn.ReLU(), n.end],
    ),
    "a ReLU of a ReLU": (
        lambda n, x: n.end(F.relu(F.relu(n.a(x)), inplace=True)),
        lambda n: [n.a, nn.ReLU(), nn.ReLU(), n.end],
    ),
    "the image first, in place": (
        lambda n, x: n.end(n.in_place(n.a(n.in_place(x)))),
        lambda n: [nn.ReLU(), n.a, nn.ReLU(), n.end],
    ),
    "a residual sum": (
        lambda n, x: n.end(F.relu((y := F.relu(n.a(x))) + n.b(y))),
        lambda n: [n.a, nn.ReLU(), Sum((n.b, [])), nn.ReLU(), n.end],
    ),
    "a sum of what is computed twice": (
        lambda n, x: n.end(F.relu(n.b(F.relu(n.a(x))) + F.relu(n.a(x)))),
        lambda n: [Sum(([n.a, nn.ReLU(), n.b], [n.a, nn.ReLU()])), nn.ReLU(), n.end],
    ),
    "a residual sum in place": (added_in_place, lambda n: [n.a, nn.ReLU(), Sum((n.b, [])), nn.ReLU(), n.end]),
    "a sum of branches": (
        lambda n, x: n.end(F.relu(n.a(x)) + n.narrow(x).relu_()),
        lambda n: [Sum(([n.a, nn.ReLU()], [n.narrow, nn.ReLU()])), n.end],
    ),
    "a concatenation": (
        lambda n, x: n.wide(torch.cat([F.relu(n.a(x)), n.narrow(x)], 1).relu_()),
        lambda n: [Beside((n.a, n.narrow)), nn.ReLU(), n.wide],
    ),
    "a concatenation of ReLUs": (
        lambda n, x: n.wide(torch.cat([n.in_place(n.a(x)), n.b(n.narrow(x).relu())], 1)),
        lambda n: [Beside(([n.a, nn.ReLU()], [n.narrow, nn.ReLU(), n.b])), n.wide],
    ),
    "the image by two paths": (
        lambda n, x: n.wide(torch.cat([F.relu(n.b(F.relu(n.a(x)))), F.relu(n.narrow(x))], 1)),
        lambda n: [Beside(([n.a, nn.ReLU(), n.b, nn.ReLU()], [n.narrow, nn.ReLU()])), n.wide],
    ),
    "the image itself beside": (
        lambda n, x: F.relu(torch.cat([x, F.relu(n.a(x))], 1)),
        lambda n: [Beside(([], [n.a, nn.ReLU()])), nn.ReLU()],
    ),
    "batch norm": (
        lambda n, x: n.end(n.in_place(n.norm(n.a(x)))),
        lambda n: [n.a, n.norm, nn.ReLU(), n.end],
    ),
    "contrast norm": (
        lambda n, x: n.end(n.contrast(n.in_place(n.a(x)))),
        lambda n: [n.a, nn.ReLU(), n.contrast, n.end],
    ),
    "grouped and dilated": (
        lambda n, x: n.end(n.dilated(n.in_place(n.a(x))).relu()),
        lambda n: [n.a, nn.ReLU(), n.dilated, nn.ReLU(), n.end],
    ),
    "dropout": (lambda n, x: n.end(F.dropout(F.relu(n.a(x)), training=False)), plain),
    "max pool": pooled(nn.MaxPool2d(2)),
    "max pool, overlapping": pooled(nn.MaxPool2d(3, 2, ceil_mode=True)),
    "max pool, overlapping and padded": pooled(nn.MaxPool2d(3, 1, padding=1)),
    "max pool, dilated": pooled(nn.MaxPool2d((2, 3), (1, 2), padding=(0, 1), dilation=2)),
    "average pool": pooled(nn.AvgPool2d(2)),
    "average pool, overlapping": pooled(nn.AvgPool2d(3, 2, padding=1, ceil_mode=True)),
    "average pool, padding left out": pooled(nn.AvgPool2d(3, 2, padding=1, count_include_pad=False)),
    "adaptive pool": pooled(nn.AdaptiveAvgPool2d((3, 4))),
    "adaptive pool, larger": pooled(nn.AdaptiveAvgPool2d(11)),
    "global pool": pooled(nn.AdaptiveAvgPool2d(1)),
}  # fmt: skip
NO_GRADIENT = {"in place on parts", "a ReLU of a ReLU"}  # autograd refuses: it looks at what was overwritten


@pytest.mark.parametrize("way", WAYS)
def test_relus_follow_the_rule_however_they_are_called(way):
    function, steps = WAYS[way]
    network, rules = randomize(Net(function)), RULES[:2] if way in NO_GRADIENT else RULES
    assert worst_difference(network, steps(network), pictures(3, 9), rules) < 1e-10
    assert no_hooks(network)


def no_hooks(network):
    """Nor a mode, nor a gradient."""
    return torch._C._len_torch_function_stack() == 0 and all(
        not module._forward_hooks and not module._forward_pre_hooks and not module._backward_hooks
        for module in network.modules()
    ) and all(parameter.grad is None for parameter in network.parameters())  # fmt: skip


FAMILIES = {
    "alexnet": 7, "vgg11": 10, "vgg11_bn": 10, "resnet18": 17, "resnet50": 49, "resnext50_32x4d": 49,
    "wide_resnet50_2": 49, "squeezenet1_0": 26, "squeezenet1_1": 26, "densenet121": 121, "googlenet": 57,
    "inception_v3": 94, "shufflenet_v2_x0_5": 37, "mnasnet0_5": 35, "regnet_x_400mf": 67,
}  # fmt: skip
"""Torchvision's classifiers that have ReLUs and nothing else, one or two a family, and how many."""


def nodes(tensor, kind):
    """The nodes of an autograd graph that bear a name, each once."""
    seen, found, queue = set(), 0, [tensor.grad_fn]
    while queue:
        node = queue.pop()
        if node is not None and node not in seen:
            seen.add(node)
            found += node.name().startswith(kind)
            queue += [before for before, _ in node.next_functions]
    return found


@pytest.mark.parametrize("name", FAMILIES)
def test_no_relu_escapes(name):
    """As many ReLUs go back by the rule as an ordinary forward pass has."""
    arguments = {"aux_logits": False, "init_weights": False} if name in ("googlenet", "inception_v3") else {}
    network = torchvision.models.get_model(name, weights=None, num_classes=5, **arguments).eval()
    images, outputs = pictures(1, 75 if name == "inception_v3" else 64).float(), []

    def run(x):
        outputs.append(network(x))
        return as_grid("all of it", outputs[-1])

    ordinary = nodes(network(images), "ReluBackward")
    (made,) = project(run, images, [at((2, 0, 0))])
    assert made.pattern.isfinite().all()
    assert (nodes(outputs[0], "_RectifyBackward"), nodes(outputs[0], "ReluBackward")) == (ordinary, 0)
    assert ordinary == FAMILIES[name]
    assert no_hooks(network)
    assert nodes(network(images), "ReluBackward") == ordinary


def small(name):
    """A network with other nonlinearities, and the layer that returns logits."""
    torch.manual_seed(0)
    own = {
        "convnext": lambda: torchvision.models.convnext.ConvNeXt(
            [CNBlockConfig(8, 16, 1), CNBlockConfig(16, None, 1)], num_classes=5
        ),
        "vit": lambda: torchvision.models.VisionTransformer(64, 16, 1, 2, 8, 16, num_classes=5),
        "swin": lambda: torchvision.models.SwinTransformer([4, 4], 8, [1, 1], [1, 2], [4, 4], num_classes=5),
    }
    network = own[name]() if name in own else torchvision.models.get_model(name, weights=None, num_classes=5)
    for parameter in network.parameters():
        if parameter.numel() == max(parameter.shape) or not parameter.any():  # else some blocks and heads do nothing
            nn.init.normal_(parameter, 1.0, 0.2)
    return network.eval().requires_grad_(False)


OTHERS = {
    "efficientnet_b0": ("classifier.1", "silu"), "mobilenet_v2": ("classifier.1", "relu6"),
    "mobilenet_v3_small": ("classifier.3", "hardswish"), "regnet_y_400mf": ("fc", "sigmoid"),
    "convnext": ("classifier.2", "gelu"), "vit": ("heads.head", "attention"), "swin": ("head", "softmax"),
}  # fmt: skip


@pytest.mark.parametrize("name", OTHERS)
def test_other_nonlinearities_are_refused_by_name_or_follow_the_rule(name):
    layer, first = OTHERS[name]
    network, images, one = small(name), pictures(1, 64).float(), at((2, 0, 0))
    function = LayerFunction(network, layer)
    for rule in ("deconvnet", "guided"):
        with pytest.raises(NonlinearityError, match=f"the network calls {first}, for which rule={rule} is not"):
            next(project(function, images, [one], rule))
        assert no_hooks(network)
    (plain,) = project(function, images, [one], "gradient")
    made = patterns(function, images, one, extend=True)
    assert made["gradient"].equal(plain.pattern)
    for rule in ("deconvnet", "guided"):
        assert made[rule].isfinite().all()
        assert difference(made[rule], plain.pattern) > 1e-3
    assert no_hooks(network)


ACTIVATIONS = {
    "relu6": (F.relu6, lambda x: F.relu6(x, True)), "hardtanh": (F.hardtanh, lambda x: F.hardtanh(x, -1.0, 1.0, True)),
    "nn.ReLU6": (nn.ReLU6(), nn.ReLU6(inplace=True)), "nn.SiLU": (nn.SiLU(), nn.SiLU(inplace=True)),
    "hardswish": (F.hardswish, lambda x: F.hardswish(x, inplace=True)),
    "leaky_relu": (F.leaky_relu, F.leaky_relu_), "elu": (F.elu, F.elu_), "celu": (F.celu, F.celu_),
    "selu": (F.selu, F.selu_), "mish": (F.mish, lambda x: F.mish(x, inplace=True)),
    "silu by keyword": (F.silu, lambda x: F.silu(input=x, inplace=True)), "tanh": (torch.tanh, lambda x: x.tanh_()),
    "threshold": (lambda x: F.threshold(x, 0.1, 0.0), lambda x: F.threshold(x, 0.1, 0.0, True)),
    "gelu": (F.gelu, None), "softplus": (F.softplus, None), "prelu": (nn.PReLU().double().requires_grad_(False), None),
}  # fmt: skip


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_what_stands_in_a_relus_place_follows_its_rule(name):
    """Rectified; under guided times its own slope in place of the gate. In place, and whoever relies on it, alike."""
    call, in_place = ACTIVATIONS[name]
    images, one = 3 * pictures(2, 8), at((1, 2, 3), (3, 5, 0))
    network = randomize(Net(lambda n, x: n.end(call(n.a(x)))))
    hidden = network.a(images).requires_grad_()
    (slope,) = torch.autograd.grad(call(hidden).sum(), hidden)
    made = patterns(network, images, one, extend=True)
    below = F.conv_transpose2d(signal_of(network(images), one, "cell"), network.end.weight, padding=1)
    for rule, signal in (
        ("deconvnet", below.clamp_min(0)), ("guided", below.clamp_min(0) * slope), ("gradient", below * slope)
    ):  # fmt: skip
        assert difference(made[rule], F.conv_transpose2d(signal, network.a.weight, padding=1)) < 1e-12
    for function in (lambda n, x: n.end(in_place(n.a(x))), relied_on(in_place)) if in_place else ():
        network.function = function
        again = patterns(network, images, one, extend=True)
        for rule in RULES:
            assert difference(again[rule], made[rule]) < 1e-12, rule


def squeeze(gate):
    return lambda n, x: n.end((y := F.relu(n.a(x))) * gate(n.b(y).mean((2, 3), keepdim=True)))


def relied_on_gate(n, x):
    y = F.relu(n.a(x))
    gate = n.b(y).mean((2, 3), keepdim=True)
    gate.sigmoid_()
    return n.end(y * gate)


GATES = {
    "F.sigmoid": squeeze(F.sigmoid), "sigmoid": squeeze(torch.sigmoid), "in place": squeeze(lambda x: x.sigmoid_()),
    "in place, relied on": relied_on_gate, "nn.Sigmoid": squeeze(nn.Sigmoid()),
}  # fmt: skip


@pytest.mark.parametrize("name", GATES)
def test_gates_are_held(name):
    images, one = pictures(2, 8), at((1, 2, 3), (3, 5, 0))
    network = randomize(Net(GATES[name]))
    hidden = F.relu(network.a(images))
    gate = torch.sigmoid(network.b(hidden).mean((2, 3), keepdim=True))
    signal = F.conv_transpose2d(signal_of(network(images), one, "cell"), network.end.weight, padding=1) * gate
    made = patterns(network, images, one, extend=True)
    assert difference(made["deconvnet"], F.conv_transpose2d(signal.clamp_min(0), network.a.weight, padding=1)) < 1e-12
    guided = signal.clamp_min(0) * (hidden > 0)
    assert difference(made["guided"], F.conv_transpose2d(guided, network.a.weight, padding=1)) < 1e-12


def test_a_layer_of_gates_has_no_pattern():
    network = randomize(Net(lambda n, x: torch.sigmoid(n.a(x))))
    with pytest.raises(NonlinearityError, match="nothing but gates lead from the image to the layer"):
        next(project(network, pictures(1, 8), [at((0, 0, 0))], extend=True))
    assert next(project(network, pictures(1, 8), [at((0, 0, 0))], "gradient")).pattern.any()


def test_attention_and_gated_linear_units_keep_their_gradient():
    network = randomize(Net(lambda n, x: n.b(F.glu(torch.cat([n.a(x), n.narrow(x)], 1), 1))))
    made = patterns(network, pictures(2, 8), at((1, 2, 3), (3, 5, 0)), extend=True)
    assert made["deconvnet"].equal(made["gradient"])


@pytest.mark.parametrize(("name", "side", "layer"), [("alexnet", 95, 12), ("vgg11", 32, 10), ("vgg11_bn", 32, 14)])
def test_captum_says_the_same(name, side, layer):
    """Where it is right: modules of ReLU, each used once, none in place."""
    attr = pytest.importorskip("captum.attr")
    network = copy.deepcopy(build(name).features[: layer + 1])
    for module in network:
        if isinstance(module, nn.ReLU):
            module.inplace = False
    images = pictures(2, side)
    (one,) = rounds_of(network(images), 1)
    targets = [tuple(cell) for cell in torch.stack([one.unit, one.y, one.x], 1).tolist()]
    for rule, oracle in (("deconvnet", attr.Deconvolution), ("guided", attr.GuidedBackprop)):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it says that it sets hooks
            expected = oracle(network).attribute(images.clone().requires_grad_(), targets).detach()
        (made,) = project(network, images, [one], rule)
        assert difference(made.pattern, expected * made.activation[:, None, None, None]) < 1e-12


def outside(field, y, x, side):
    """The pixels that a cell does not see."""
    seen = torch.zeros(side, side, dtype=torch.bool)
    top = field.offset_y + field.stride_y * y - (field.field_y - 1) / 2
    left = field.offset_x + field.stride_x * x - (field.field_x - 1) / 2
    assert (top, left) == (int(top), int(left))
    seen[max(int(top), 0) : int(top) + field.field_y, max(int(left), 0) : int(left) + field.field_x] = True
    return ~seen


@st.composite
def layers(draw):
    """A convolution or pool, each axis with a geometry of its own, and perhaps a ReLU."""
    kernel = draw(st.tuples(st.integers(1, 4), st.integers(1, 4)))
    stride = draw(st.tuples(st.integers(1, 2), st.integers(1, 3)))
    padding = tuple(draw(st.integers(0, k // 2)) for k in kernel)
    kind = draw(st.sampled_from(["conv", "max", "average"]))
    if kind == "conv":
        dilation = draw(st.tuples(st.integers(1, 2), st.integers(1, 2)))
        layer = nn.Conv2d(2, 2, kernel, stride, padding, dilation, groups=draw(st.sampled_from([1, 2])))
    elif kind == "max":
        layer = nn.MaxPool2d(kernel, stride, padding, draw(st.integers(1, 2)), ceil_mode=draw(st.booleans()))
    else:
        layer = nn.AvgPool2d(kernel, stride, padding, draw(st.booleans()))
    return [layer, nn.ReLU()] if draw(st.booleans()) else [layer]


@settings(max_examples=30, deadline=None)
@given(st.lists(layers(), min_size=1, max_size=3), st.integers(0, 9), st.floats(0, 1), st.floats(0, 1))
def test_a_pattern_is_zero_outside_the_receptive_field(chain, seed, down, across):
    network, side = randomize(nn.Sequential(*[part for parts in chain for part in parts]), seed), 48
    last = str(len(network) - 1)
    field = receptive_fields(network, [last], (2, side, side))[last]
    assume(field is not None)
    images = pictures(1, side, seed)[:, :2]
    height, width = network(images).shape[2:]
    y, x = round(down * (height - 1)), round(across * (width - 1))
    for rule in RULES:
        (made,) = project(network, images, [at((0, y, x))], rule)
        assert not made.pattern[0, :, outside(field, y, x, side)].any()
    assert worst_difference_at(network, images, y, x) < 1e-10


def worst_difference_at(network, images, y, x):
    """As `worst_difference` at one cell, whose pattern may be 0."""
    worst, one = 0.0, at((0, y, x))
    for rule in RULES:
        output, back = explicit(network, images, rule)
        expected = back(signal_of(output, one, "cell"))
        (made,) = project(network, images, [one], rule)
        worst = max(worst, ((made.pattern - expected).abs().max() / expected.abs().max().clamp_min(1e-9)).item())
    return worst


FIELDS = [
    ("squeezenet1_1", "features.0", 64, False), ("squeezenet1_1", "features.3", 64, False),
    ("squeezenet1_1", "features.6", 96, False), ("resnet18", "relu", 64, False), ("resnet18", "layer1.0", 64, False),
    ("resnet18", "layer2.0", 96, False), ("googlenet", "conv3", 64, False),
    ("mobilenet_v3_small", "features.1", 64, True), ("efficientnet_b0", "features.2.0", 64, True),
    ("regnet_y_400mf", "trunk_output.block1", 64, True),
]  # fmt: skip


@pytest.mark.parametrize(("name", "layer", "side", "gated"), FIELDS)
def test_a_pattern_of_a_real_architecture_is_zero_outside_the_receptive_field(name, layer, side, gated):
    """Gates know of the whole image, but they are held; the plain gradient goes through them."""
    network = small(name).double() if gated else build(name)
    function, images = LayerFunction(network, layer), pictures(2, side)
    field = receptive_fields(network, [layer], (3, side, side))[layer]
    activation = function(images)
    height, width = activation.shape[2:]
    cells = [(height // 2, width // 2), (height - 1, 1)]
    one = at(*[(activation[image, :, y, x].argmax(), y, x) for image, (y, x) in enumerate(cells)])
    for rule, pattern in patterns(function, images, one, extend=True).items():
        for image in range(2):
            away = outside(field, one.y[image], one.x[image], side)
            assert away.any()
            assert pattern[image, :, ~away].any()
            assert pattern[image, :, away].any() == (gated and rule == "gradient")


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("rule", RULES)
def test_who_shares_the_batch_and_who_goes_before_has_no_say(rule, dtype):
    """To the bit, in a batch of the same size."""
    function = LayerFunction(copy.deepcopy(build("squeezenet1_1")).to(dtype), "features.5")
    images = pictures(3, 64).to(dtype)
    rounds = [at((place, 2, 3), (place + 7, 1, 0), (place + 9, 6, 6)) for place in range(4)]
    made = list(project(function, images, rounds, rule))
    for other in reversed(list(project(function, images, rounds[::-1], rule))):
        assert other.pattern.equal(made.pop(0).pattern)
    made = list(project(function, images, rounds, rule))
    company = torch.cat([images[:1], pictures(2, 64, seed=9).to(dtype)])
    others = [at((place, 2, 3), (31, 0, 0), (-1, 0, 0)) for place in range(4)]
    for one, together, other in zip(rounds, made, project(function, company, others, rule), strict=True):
        assert next(project(function, images, [one], rule)).pattern.equal(together.pattern)
        assert other.pattern[0].equal(together.pattern[0])
        assert other.activation[0] == together.activation[0]
        (alone,) = project(function, images[:1], [Round(one.unit[:1], one.y[:1], one.x[:1])], rule)
        torch.testing.assert_close(alone.pattern[0], together.pattern[0])


@pytest.mark.parametrize("keep", KEEPS)
def test_an_image_without_a_unit_gets_zeros(keep):
    network, images = build("squeezenet1_1"), pictures(3, 64)
    function, none, one = LayerFunction(network, "features.3"), (-1, 0, 0), (5, 3, 3)
    for cells in ([none, one, none], [none, none, none]):
        (made,) = project(function, images, [at(*cells)], keep=keep)
        for image, cell in enumerate(cells):
            assert made.pattern[image].any() == (cell is one)
            assert made.activation[image] == (function(images)[image, 5, 3, 3] if cell is one else 0)


def test_the_network_and_the_images_are_left_as_they_were():
    network = copy.deepcopy(build("resnet18")).requires_grad_()
    images, before = pictures(2, 32), {name: value.clone() for name, value in network.state_dict().items()}
    given = images.clone()
    list(project(LayerFunction(network, "layer2"), images, [at((1, 0, 0), (2, 1, 1))] * 2))
    assert all(value.equal(before[name]) for name, value in network.state_dict().items())
    assert all(parameter.requires_grad for parameter in network.parameters())
    assert no_hooks(network)
    assert images.equal(given)
    assert not images.requires_grad
    overwriting = nn.Sequential(nn.ReLU(inplace=True), nn.Conv2d(3, 2, 3).double())
    list(project(overwriting, images, [at((1, 0, 0), (0, 1, 1))]))
    assert images.equal(given)


def test_an_error_of_the_network_ends_the_rule():
    def fail(x):
        raise KeyError

    with pytest.raises(KeyError):
        next(project(fail, pictures(1, 8), [at((0, 0, 0))]))
    x = torch.tensor([-1.0], requires_grad=True)
    assert torch.autograd.grad(F.relu(x).sum(), x)[0].item() == 0


def test_the_rule_is_this_threads():
    gradients = []

    def elsewhere():
        x = torch.tensor([-1.0, 1.0], requires_grad=True)
        gradients.append(torch.autograd.grad(F.relu(x).sum(), x)[0].tolist())

    def network(x):
        other = threading.Thread(target=elsewhere)
        other.start()
        other.join()
        return F.relu(x)

    (made,) = project(network, torch.ones(1, 1, 1, 1), [at((0, 0, 0))])
    assert (made.pattern.item(), gradients) == (1, [[0, 1]])


def test_the_gradient_of_a_map_is_the_sum_over_its_cells():
    """A gradient is linear in the signal; the DeconvNet is not."""
    network, images = build("squeezenet1_1"), pictures(1, 32)
    function = LayerFunction(network, "features.6")
    cells = [at((7, y, x)) for y in range(3) for x in range(3)]
    assert function(images).shape[2:] == (3, 3)
    for rule in RULES:
        (whole,) = project(function, images, cells[:1], rule, "map")
        summed = sum(one.pattern for one in project(function, images, cells, rule, "cell"))
        assert (difference(summed, whole.pattern) < 1e-12) == (rule == "gradient")


def test_without_relus_all_rules_agree():
    network = nn.Sequential(
        nn.Conv2d(3, 6, 3, stride=2), nn.MaxPool2d(3, 2), nn.BatchNorm2d(6), nn.LocalResponseNorm(3, 0.5),
        nn.Conv2d(6, 6, 3, groups=2), nn.AvgPool2d(2, 1),
    )  # fmt: skip
    made = patterns(randomize(network), pictures(2, 32), at((1, 1, 2), (3, 0, 3)))
    assert made["gradient"].any()
    assert made["deconvnet"].equal(made["gradient"])
    assert made["guided"].equal(made["gradient"])


@pytest.mark.parametrize("rule", RULES)
def test_a_pattern_grows_as_the_signal_does(rule):
    """Twice the activation: twice the signal through twice the weights."""
    function, images = LayerFunction(build("alexnet"), "features.9"), pictures(2, 64)
    rounds = rounds_of(function(images))
    for one, twice in zip(
        project(function, images, rounds, rule), project(lambda x: 2 * function(x), images, rounds, rule), strict=True
    ):
        assert twice.activation.equal(2 * one.activation)
        assert twice.pattern.equal(4 * one.pattern)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_lower_precisions_come_near(dtype):
    network = randomize(Net(lambda n, x: n.end(F.relu(F.max_pool2d(n.b(F.relu(n.a(x))), 3, 2)))))
    images, one = pictures(2, 16), at((1, 2, 3), (3, 5, 0))
    exact = patterns(network, images, one)
    for rule, pattern in patterns(network.to(dtype), images.to(dtype), one).items():
        assert pattern.dtype == dtype
        assert F.cosine_similarity(pattern.double().flatten(1), exact[rule].flatten(1)).min() > 0.99


@cache
def real(name, file):
    """A network with published weights, in float64, and two photographs in its input space."""
    folder, photos = shared_data("weights"), sorted(shared_data("broden_mini").rglob("*.jpg"))[:2]
    model = load(ModelSpec(name, file), lambda path: (folder / path).read_bytes())
    taken = model.preprocessing
    pixels = np.stack([np.asarray(Image.open(photo).convert("RGB").resize((128, 128))) for photo in photos])
    mean, std = (torch.tensor(one, dtype=torch.float64)[:, None, None] for one in (taken.mean, taken.std))
    return copy.deepcopy(model.module).double(), (torch.from_numpy(pixels).movedim(3, 1) / 255 - mean) / std


@pytest.mark.real
@pytest.mark.parametrize("layer", ["features.3", "features.12"])
def test_published_squeezenet_equals_the_explicit_chain(layer):
    network, images = real("squeezenet1_1", "squeezenet1_1_imagenet.safetensors")
    assert worst_difference(LayerFunction(network, layer), as_far_as(network, layer), images) < 1e-10


@pytest.mark.real
def test_published_efficientnet_lite_is_refused_or_follows_the_rule():
    pytest.importorskip("timm")
    network, images = real("timm:tf_efficientnet_lite0", "tf_efficientnet_lite0_imagenet.safetensors")
    assert count_nonlinearities(network, "classifier", (3, 224, 224)) == {("activation", "relu6"): 33}
    function = LayerFunction(network, "bn1")
    with pytest.raises(NonlinearityError, match="calls relu6"):
        next(project(function, images, [at((0, 0, 0), (0, 0, 0))]))
    activation = function(images)
    dead = ~activation.flatten(2).any(2).any(0)
    assert dead.sum() >= 4  # of the stem's 32 filters
    for unit in (int(dead.nonzero()[0]), int((~dead).nonzero()[0])):
        one = at((unit, 5, 5), (unit, 9, 40))
        (made,) = project(function, images, [one], keep="map", extend=True)
        signal = signal_of(activation, one, "map")
        norm, conv = network.bn1, network.conv_stem
        expected = F.conv_transpose2d(
            signal * (norm.weight / (norm.running_var + norm.eps).sqrt())[:, None, None], conv.weight, stride=2
        )
        assert made.pattern.any() == (not dead[unit])
        assert (made.pattern - expected[:, :, :128, :128]).abs().max() < 1e-10

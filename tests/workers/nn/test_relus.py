"""Which ReLUs close a layer, in networks that call them in every way; the layer as a function without them."""

import copy
import threading
from functools import cache

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import nn

from workers.models import ModelError
from workers.networks.mininet import MiniNet
from workers.nn.relus import LayerFunction, catch_relus, closing_relus

INFINITY = float("inf")


@cache
def build(name, side):
    """A network with random weights, and two images."""
    torch.manual_seed(0)
    if name.startswith("timm:"):
        network = pytest.importorskip("timm").create_model(name.removeprefix("timm:"), pretrained=False)
    elif name == "mininet":
        network = MiniNet()
    else:
        arguments = {"init_weights": False, "aux_logits": False} if name == "googlenet" else {}
        network = torchvision.models.get_model(name, weights=None, **arguments)
    for module in network.modules():  # as if trained: else a block's outputs may be of one sign
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.bias)
    return network.eval().requires_grad_(False), torch.randn(2, 3, side, side)


# network, side of the image, layer, where its ReLUs end, and how many there are
LAYERS = [
    ("squeezenet1_1", 64, "features.0", INFINITY, 0),
    ("squeezenet1_1", 64, "features.1", INFINITY, 1),  # in place
    ("squeezenet1_1", 64, "features.2", INFINITY, 0),  # a pool after it
    ("squeezenet1_1", 64, "features.3", INFINITY, 2),  # Fire: two side by side
    ("squeezenet1_1", 64, "features.3.squeeze", INFINITY, 0),
    ("resnet18", 64, "layer2.1", INFINITY, 1),  # BasicBlock: one module, which runs twice
    ("resnet18", 64, "layer2", INFINITY, 1),
    ("resnet18", 64, "layer2.1.bn2", INFINITY, 0),
    ("resnet18", 64, "fc", INFINITY, 0),
    ("googlenet", 64, "conv1", INFINITY, 1),  # F.relu
    ("googlenet", 64, "inception3a", INFINITY, 4),
    ("googlenet", 64, "inception3a.branch2", INFINITY, 1),
    ("timm:tf_efficientnet_lite0", 64, "bn1", 6.0, 1),  # ReLU6 as F.hardtanh
    ("timm:tf_efficientnet_lite0", 64, "blocks.1.0.bn2", 6.0, 1),
    ("timm:tf_efficientnet_lite0", 64, "blocks.1.0", 6.0, 0),
    ("mobilenet_v2", 64, "features.1.conv.0", 6.0, 1),
    ("mininet", 112, "features.7", INFINITY, 1),
    ("mininet", 112, "classifier.2", INFINITY, 1),  # two dimensions
    ("mininet", 112, "classifier.3", INFINITY, 0),
]


@pytest.mark.parametrize(("name", "side", "layer", "end", "number"), LAYERS)
def test_a_layer_without_its_closing_relus_clamps_to_the_layer(name, side, layer, end, number):
    network, images = build(name, side)
    closing = closing_relus(network, layer, (3, side, side))
    assert len(closing) == number
    own, open_ended = LayerFunction(network, layer)(images), LayerFunction(network, layer, closing)(images)
    assert own.ndim == 4
    if number:
        assert torch.equal(open_ended.clamp(0, end), own)
        assert open_ended.min() < 0 <= own.min()
        negative = (open_ended < 0).any(3).any(2).any(0)
        assert negative.unflatten(0, (-1, 16)).any(1).all()  # every part of a concatenation is without its own
    else:
        assert torch.equal(open_ended, own)


@pytest.mark.parametrize(
    ("name", "layer"), [("squeezenet1_1", "features.3"), ("resnet18", "layer1.1"), ("googlenet", "inception3a")]
)
def test_a_layer_as_a_function_is_what_the_network_computes(name, layer):
    network, images = build(name, 64)
    seen = []
    handle = network.get_submodule(layer).register_forward_hook(lambda _m, _i, output: seen.append(output.clone()))
    network(images)
    handle.remove()
    assert torch.equal(LayerFunction(network, layer)(images), seen[0])


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("squeezenet1_1", "classifier.3"),
        ("resnet18", "fc"),
        ("googlenet", "fc"),
        ("timm:tf_efficientnet_lite0", "classifier"),
    ],
)
def test_redirected_relus_change_gradients_only(name, layer):
    network, images = build(name, 64)
    function = LayerFunction(network, layer)
    assert torch.equal(function(images, redirected=True), function(images))


class Net(nn.Module):
    """A ReLU, and then a layer called `block`."""

    def __init__(self, function):
        super().__init__()
        self.block = Block(function)

    def forward(self, x):
        return self.block(F.relu(x - 0.5)).mean((2, 3))


class Block(nn.Module):
    """What a function makes of two convolutions."""

    def __init__(self, function):
        super().__init__()
        self.function = function
        self.conv, self.other = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, x):
        return self.function(self, x)


def gated(block, x):
    made = F.relu(block.conv(x))
    return torch.cat([made, torch.relu(block.other(made))], 1)


def squeezed(block, x):
    made = F.relu(block.conv(x))
    return made * made.mean((2, 3), keepdim=True)


def stacked(block, x):
    made = F.relu(block.conv(x))
    block.height = made.shape[2] + made.size(3) + made.dim()  # no reading of values
    return made


# what a block does, and which of the calls close it; call 0 comes before the block
WAYS = {
    "nn.ReLU": (lambda b, x: nn.ReLU()(b.conv(x)), {1}),
    "nn.ReLU in place": (lambda b, x: nn.ReLU(inplace=True)(b.conv(x)), {1}),
    "F.relu": (lambda b, x: F.relu(b.conv(x)), {1}),
    "F.relu by keyword": (lambda b, x: F.relu(input=b.conv(x)), {1}),
    "F.relu in place": (lambda b, x: F.relu(b.conv(x), inplace=True), {1}),
    "F.relu_": (lambda b, x: F.relu_(b.conv(x)), {1}),
    "torch.relu": (lambda b, x: torch.relu(b.conv(x)), {1}),
    "torch.relu_": (lambda b, x: torch.relu_(b.conv(x)), {1}),
    "Tensor.relu": (lambda b, x: b.conv(x).relu(), {1}),
    "Tensor.relu_": (lambda b, x: b.conv(x).relu_(), {1}),
    "two in a row": (lambda b, x: F.relu(b.other(F.relu(b.conv(x)))), {2}),
    "dropout after it": (lambda b, x: F.dropout(F.relu(b.conv(x)), training=False), {1}),
    "a module of dropout after it": (lambda b, x: nn.Dropout().eval()(F.relu(b.conv(x))), {1}),
    "an identity after it": (lambda b, x: nn.Identity()(F.relu(b.conv(x))), {1}),
    "a part of it": (lambda b, x: F.relu(b.conv(x))[:, :2], {1}),
    "its shape is read": (stacked, {1}),
    "a concatenation": (lambda b, x: torch.cat([F.relu(b.conv(x)), b.conv(-x).relu()], 1), {1, 2}),
    "a concatenation by keyword": (
        lambda b, x: torch.cat(tensors=[F.relu(b.conv(x)), b.conv(-x).relu()], dim=1),
        {1, 2},
    ),
    "of concatenations": (
        lambda b, x: torch.cat([torch.cat([F.relu(b.conv(x)), b.conv(-x).relu()], 1), F.relu(b.conv(3 - x))], 1),
        {1, 2, 3},
    ),
    "a concatenation with what is no ReLU": (lambda b, x: torch.cat([F.relu(b.conv(x)), b.conv(-x)], 1), set()),
    "read inside": (gated, {2}),
    "gates itself": (squeezed, set()),
    "a convolution after it": (lambda b, x: b.other(F.relu(b.conv(x))), set()),
    "a pool after it": (lambda b, x: F.max_pool2d(F.relu(b.conv(x)), 2), set()),
    "a sum after it": (lambda b, x: F.relu(b.conv(x)) + 1, set()),
    "a leaky ReLU": (lambda b, x: F.leaky_relu(b.conv(x)), set()),
    "the block before it": (lambda b, x: x, {0}),
}
CLIPPED = {
    "nn.ReLU6": (lambda b, x: nn.ReLU6()(b.conv(9 * x)), {1}),
    "nn.ReLU6 in place": (lambda b, x: nn.ReLU6(inplace=True)(b.conv(9 * x)), {1}),
    "F.relu6": (lambda b, x: F.relu6(b.conv(9 * x)), {1}),
    "F.hardtanh": (lambda b, x: F.hardtanh(b.conv(9 * x), 0, 6), {1}),
    "F.hardtanh by keyword": (lambda b, x: F.hardtanh(b.conv(9 * x), min_val=0.0, max_val=6.0), {1}),
    "F.hardtanh_": (lambda b, x: F.hardtanh_(b.conv(9 * x), 0.0, 6.0), {1}),
    "F.hardtanh from -1": (lambda b, x: F.hardtanh(b.conv(9 * x)), set()),
}


@pytest.mark.parametrize("way", [*WAYS, *CLIPPED])
def test_relus_are_found_however_they_are_called(way):
    function, expected = (WAYS | CLIPPED)[way]
    torch.manual_seed(0)
    network = Net(function).eval().requires_grad_(False)
    images = torch.randn(1, 3, 8, 8)
    closing = closing_relus(network, "block", (3, 8, 8))
    assert closing == expected
    own, open_ended = LayerFunction(network, "block")(images), LayerFunction(network, "block", closing)(images)
    kept = own.shape[1] // 2 if way == "read inside" else 0  # the first half keeps its ReLU
    assert torch.equal(open_ended[:, :kept], own[:, :kept])
    if expected:
        assert torch.equal(open_ended.clamp(0, 6 if way in CLIPPED else None)[:, kept:], own[:, kept:])
        assert open_ended[:, kept:].min() < 0
    else:
        assert torch.equal(open_ended, own)


@pytest.mark.parametrize("way", [*WAYS, *CLIPPED])
def test_redirected_relus_keep_every_value(way):
    torch.manual_seed(0)
    network = Net((WAYS | CLIPPED)[way][0]).eval().requires_grad_(False)
    function, images = LayerFunction(network, "block"), torch.randn(1, 3, 8, 8)
    assert torch.equal(function(images, redirected=True), function(images))


def test_calls_are_numbered_in_the_order_in_which_they_happen():
    given = [torch.tensor([float(place)]) for place in range(4)]
    seen = []

    def on_relu(number, tensor, end, compute):
        seen.append((number, tensor.item(), end))
        return compute()

    with catch_relus(on_relu):
        F.relu(given[0])
        nn.ReLU6(inplace=True)(given[1])
        F.leaky_relu(given[0])
        torch.relu_(given[2])
        F.relu6(given[3])
    F.relu(given[0])
    assert seen == [(0, 0, INFINITY), (1, 1, 6), (2, 2, INFINITY), (3, 3, 6)]


def test_relus_of_other_threads_are_not_caught():
    caught, results, patched = [], [], (F.relu, torch.relu, torch.Tensor.relu)

    def on_relu(number, given, end, compute):
        caught.append(number)
        return given

    negative = torch.tensor([-1.0])
    with catch_relus(on_relu):
        assert (F.relu, torch.relu, torch.Tensor.relu) == patched
        other = threading.Thread(target=lambda: results.extend([F.relu(negative), nn.ReLU()(negative)]))
        other.start()
        other.join()
        assert F.relu(negative).item() == -1
    assert [one.item() for one in results] == [0, 0]
    assert caught == [0]
    assert F.relu(negative).item() == 0


def test_relus_are_let_go_after_an_error():
    def fail(number, given, end, compute):
        raise KeyError

    with pytest.raises(KeyError), catch_relus(fail):
        F.relu(torch.zeros(1))
    assert F.relu(torch.tensor([-1.0])).item() == 0


def no_hooks(network):
    return all(not module._forward_hooks and not module._forward_pre_hooks for module in network.modules())


def test_hooks_are_gone_and_weights_stay():
    network, images = build("squeezenet1_1", 64)
    before = {name: (weight.data_ptr(), weight.device) for name, weight in network.named_parameters()}
    closing = closing_relus(network, "features.3", (3, 64, 64))
    assert no_hooks(network)
    LayerFunction(network, "features.3", closing)(images, redirected=True)
    assert no_hooks(network)
    with pytest.raises(RuntimeError):
        closing_relus(network, "features.3", (4, 64, 64))
    with pytest.raises(RuntimeError):
        LayerFunction(network, "features.3", closing)(images[:, :2])
    assert no_hooks(network)
    assert {name: (weight.data_ptr(), weight.device) for name, weight in network.named_parameters()} == before


class Twice(nn.Module):
    """One convolution under two names, or two that share a weight; as in timm's CoaT."""

    def __init__(self, same_module):
        super().__init__()
        self.conv, self.relu = nn.Conv2d(3, 3, 1), nn.ReLU()
        self.again = self.conv if same_module else nn.Conv2d(3, 3, 1)
        self.again.weight = self.conv.weight

    def forward(self, x):
        return self.relu(self.again(self.conv(x)))


@pytest.mark.parametrize("same_module", [False, True])
def test_weights_that_have_two_names_stay(same_module):
    network, images = Twice(same_module).eval().requires_grad_(False), torch.ones(1, 3, 4, 4)
    expected = network(images)
    before = {name: weight.data_ptr() for name, weight in network.named_parameters(remove_duplicate=False)}
    assert closing_relus(network, "relu", (3, 4, 4)) == {0}
    after = {name: weight.data_ptr() for name, weight in network.named_parameters(remove_duplicate=False)}
    assert after == before
    assert torch.equal(network(images), expected)


def test_what_comes_after_the_layer_need_not_run_on_such_an_input():
    network, _ = build("mininet", 112)
    assert closing_relus(network, "features.1", (3, 64, 64)) == {0}
    assert LayerFunction(network, "features.1", frozenset({0}))(torch.zeros(1, 3, 64, 64)).shape == (1, 32, 32, 32)
    with pytest.raises(RuntimeError):
        closing_relus(network, "classifier.1", (3, 64, 64))


def test_names_that_are_no_layers_are_refused():
    network, images = build("mininet", 112)
    for function in (LayerFunction(network, "nowhere"), lambda _: closing_relus(network, "nowhere", (3, 112, 112))):
        with pytest.raises(ModelError, match="'nowhere', which the network does not have"):
            function(images)
    flat = nn.Sequential(nn.Conv2d(3, 2, 1), nn.Flatten(2))
    with pytest.raises(ModelError, match="must return one tensor"):
        LayerFunction(flat, "1")(torch.zeros(1, 3, 4, 4))


def one_pixel(relu, before, after):
    """after * relu(before * x) on one pixel of one channel."""
    network = nn.Sequential(nn.Conv2d(1, 1, 1, bias=False), relu, nn.Conv2d(1, 1, 1, bias=False)).eval()
    for place, weight in ((0, before), (2, after)):
        nn.init.constant_(network[place].weight, weight)
    return network.requires_grad_(False)


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize(
    ("kind", "x", "after", "ordinary", "redirected"),
    [
        (nn.ReLU, -1.0, 3.0, 0, 6),  # more leads out of the blocked range
        (nn.ReLU, -1.0, -3.0, 0, 0),  # less leads deeper into it
        (nn.ReLU, 0.0, 3.0, 0, 6),
        (nn.ReLU, 1.0, 3.0, 6, 6),
        (nn.ReLU, 1.0, -3.0, -6, -6),
        (nn.ReLU, 9.0, 3.0, 6, 6),
        (nn.ReLU6, -1.0, 3.0, 0, 6),
        (nn.ReLU6, -1.0, -3.0, 0, 0),
        (nn.ReLU6, 1.0, -3.0, -6, -6),
        (nn.ReLU6, 1.0, 3.0, 6, 6),
        (nn.ReLU6, 4.0, 3.0, 0, 0),  # 8 is beyond 6: more leads deeper
        (nn.ReLU6, 4.0, -3.0, 0, -6),  # less leads out
    ],
)
def test_gradients_pass_blocked_relus_where_they_lead_out(kind, inplace, x, after, ordinary, redirected):
    function = LayerFunction(one_pixel(kind(inplace=inplace), 2.0, after), "2")
    image = torch.full((1, 1, 1, 1), x, requires_grad=True)
    for flag, expected in ((False, ordinary), (True, redirected)):
        (gradient,) = torch.autograd.grad(function(image, redirected=flag).sum(), image)
        assert gradient.item() == expected


def test_a_closing_relu_that_is_left_out_blocks_nothing():
    function = LayerFunction(one_pixel(nn.ReLU(), 2.0, 1.0), "1", frozenset({0}))
    image = torch.full((1, 1, 1, 1), -1.0, requires_grad=True)
    value = function(image)
    (gradient,) = torch.autograd.grad(value.sum(), image)
    assert (value.item(), gradient.item()) == (-2, 2)


def test_redirected_gradients_are_by_pixel():
    """relu of (x, -x, x + 1) with weights 1, 1, -1, at x = -1 and x = 2, by hand."""
    network = nn.Sequential(nn.Conv2d(1, 3, 1), nn.ReLU(), nn.Conv2d(3, 1, 1, bias=False)).eval().requires_grad_(False)
    network[0].weight.copy_(torch.tensor([1.0, -1, 1]).view(3, 1, 1, 1))
    network[0].bias.copy_(torch.tensor([0.0, 0, 1]))
    network[2].weight.copy_(torch.tensor([1.0, 1, -1]).view(1, 3, 1, 1))
    image = torch.tensor([-1.0, 2.0]).view(1, 1, 1, 2).requires_grad_()
    gradients = [
        torch.autograd.grad(LayerFunction(network, "2")(image, redirected=flag).sum(), image)[0].flatten().tolist()
        for flag in (False, True)
    ]
    assert gradients == [[-1, 0], [0, -1]]


def test_a_function_of_images_has_their_gradient_in_float64():
    network, images = build("mininet", 112)
    function = LayerFunction(
        copy.deepcopy(network).double(), "features.4", closing_relus(network, "features.4", (3, 40, 40))
    )
    image = images[:1, :, :40, :40].double().requires_grad_()
    value = function(image)[0, 5, 4, 4]
    (gradient,) = torch.autograd.grad(value, image)
    (place,) = (gradient.abs() == gradient.abs().max()).nonzero().tolist()
    ends = []
    for by in (1e-6, -1e-6):
        moved = image.detach().clone()
        moved[tuple(place)] += by
        ends.append(function(moved)[0, 5, 4, 4].item())
    assert gradient[tuple(place)].item() == pytest.approx((ends[0] - ends[1]) / 2e-6, rel=1e-5)

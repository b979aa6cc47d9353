"""Nonlinearities by kind and name: every form of a call, known networks, and nothing but counting."""

import math

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import nn

from workers.models import ModelError
from workers.networks.caffenet import CaffeNet
from workers.nn.nonlinearities import count_nonlinearities

RELU = ("relu", "relu")
ACTIVATIONS = {
    "relu6": [
        lambda x: x.clamp(0, 6), lambda x: torch.clip(x, min=0.0, max=6), lambda x: x.clamp_(0, 6),
        F.relu6, nn.ReLU6(), nn.ReLU6(inplace=True), lambda x: F.hardtanh(x, 0, 6), lambda x: F.hardtanh_(x, 0.0, 6.0),
        lambda x: F.hardtanh(x, min_val=0, max_val=6, inplace=True),
    ],
    "relu1": [lambda x: F.hardtanh(x, 0, 1)],
    "hardtanh": [F.hardtanh, F.hardtanh_, nn.Hardtanh(), nn.Hardtanh(-2, 6), nn.Hardtanh(inplace=True)],
    "silu": [F.silu, nn.SiLU(), nn.SiLU(inplace=True), lambda x: F.silu(input=x)],
    "gelu": [F.gelu, nn.GELU(), nn.GELU("tanh")],
    "hardswish": [F.hardswish, nn.Hardswish(), nn.Hardswish(inplace=True)],
    "mish": [F.mish, nn.Mish(), nn.Mish(inplace=True)],
    "softplus": [F.softplus, nn.Softplus()],
    "softsign": [F.softsign, nn.Softsign()],
    "leaky_relu": [F.leaky_relu, F.leaky_relu_, nn.LeakyReLU(), nn.LeakyReLU(0.2, inplace=True)],
    "elu": [F.elu, F.elu_, nn.ELU(), nn.ELU(inplace=True)],
    "celu": [F.celu, F.celu_, torch.celu, torch.celu_, nn.CELU(), nn.CELU(inplace=True)],
    "selu": [F.selu, F.selu_, torch.selu, torch.selu_, nn.SELU(), nn.SELU(inplace=True)],
    "prelu": [
        lambda x: F.prelu(x, torch.ones(1, device=x.device)), lambda x: torch.prelu(x, torch.ones(1, device=x.device)),
        lambda x: x.prelu(torch.ones(1, device=x.device)), nn.PReLU(),
    ],
    "rrelu": [F.rrelu, F.rrelu_, torch.rrelu, torch.rrelu_, nn.RReLU(), nn.RReLU(inplace=True)],
    "logsigmoid": [F.logsigmoid, nn.LogSigmoid()],
    "threshold": [lambda x: F.threshold(x, 0, 0), lambda x: F.threshold(x, 0, 0, True), nn.Threshold(0, 0),
                  lambda x: torch.threshold(x, 0, 0), lambda x: torch.threshold_(x, 0, 0)],
    "hardshrink": [F.hardshrink, torch.hardshrink, lambda x: x.hardshrink(), nn.Hardshrink()],
    "softshrink": [F.softshrink, nn.Softshrink()],
    "tanhshrink": [F.tanhshrink, nn.Tanhshrink()],
    "tanh": [F.tanh, torch.tanh, torch.tanh_, lambda x: x.tanh(), lambda x: x.tanh_(), nn.Tanh()],
}  # fmt: skip
GATES = {
    "sigmoid": [
        F.sigmoid, torch.sigmoid, torch.sigmoid_, lambda x: x.sigmoid(), lambda x: x.sigmoid_(), nn.Sigmoid(),
        torch.special.expit,
    ],
    "hardsigmoid": [F.hardsigmoid, nn.Hardsigmoid(), nn.Hardsigmoid(inplace=True)],
    "softmax": [
        lambda x: F.softmax(x, 1), lambda x: torch.softmax(x, 1), lambda x: x.softmax(1), nn.Softmax(1), nn.Softmax2d(),
        lambda x: F.softmin(x, 1), nn.Softmin(1), lambda x: torch.special.softmax(x, 1),
    ],
    "log_softmax": [
        lambda x: F.log_softmax(x, 1), lambda x: torch.log_softmax(x, 1), lambda x: x.log_softmax(1), nn.LogSoftmax(1),
        lambda x: torch.special.log_softmax(x, 1),
    ],
}  # fmt: skip
RELUS = [
    F.relu, F.relu_, torch.relu, torch.relu_, lambda x: x.relu(), lambda x: x.relu_(), nn.ReLU(), nn.ReLU(inplace=True),
    lambda x: F.relu(x, True), lambda x: F.relu(input=x, inplace=True), lambda x: x.clamp(0), lambda x: x.clamp(min=0),
    lambda x: x.clamp_(0.0), lambda x: x.clamp_min(0), lambda x: x.clamp_min_(0), lambda x: torch.clamp(x, 0),
    lambda x: torch.clamp(input=x, min=0), lambda x: torch.clamp_(x, 0), lambda x: torch.clamp_min(x, 0),
    lambda x: torch.clip(x, 0), lambda x: x.clip(0), lambda x: x.clip_(min=0),
]  # fmt: skip
ATTENTION = {
    "attention": [
        lambda x: F.scaled_dot_product_attention(x, x, x),
        nn.MultiheadAttention(4, 1).eval(),
    ],
    "glu": [F.glu, nn.GLU(1)],
}
NONE = [
    nn.Conv2d(4, 4, 1), nn.MaxPool2d(2), nn.AvgPool2d(2), nn.AdaptiveAvgPool2d(1), nn.BatchNorm2d(4).eval(),
    nn.GroupNorm(2, 4), nn.LocalResponseNorm(2), nn.Dropout().eval(), nn.Identity(), nn.Flatten(), lambda x: x + x,
    lambda x: x.clamp(-1, 1), lambda x: x.clamp(-1), lambda x: x.clamp(max=0), lambda x: x.clamp_min(1e-6),
    lambda x: x.clamp(torch.zeros_like(x)), lambda x: x.abs(), lambda x: F.normalize(x),
]  # fmt: skip
CALLS = [
    (call, {(kind, name): 1})
    for kind, table in (("relu", {"relu": RELUS}), ("activation", ACTIVATIONS), ("gate", GATES), ("attention", ATTENTION))
    for name, calls in table.items()
    for call in calls
]  # fmt: skip
CALLS += [(call, {}) for call in NONE]


class Net(nn.Module):
    """A convolution, a call, and what makes a layer of it."""

    def __init__(self, call):
        super().__init__()
        self.conv, self.call, self.end = nn.Conv2d(3, 4, 1), call, nn.Identity()

    def forward(self, x):
        x = self.conv(x)
        y = self.call(*(x.flatten(2)[0],) * 3)[0] if isinstance(self.call, nn.MultiheadAttention) else self.call(x)
        return self.end(y.reshape(1, -1))


@pytest.mark.parametrize(("call", "expected"), CALLS)
def test_a_call_is_counted_once_by_kind_and_name(call, expected):
    assert count_nonlinearities(Net(call).eval(), "end", (3, 2, 2)) == expected


@pytest.mark.parametrize("call", RELUS)
def test_what_counts_as_a_relu_computes_one(call):
    x = torch.tensor([[[[-2.0, 0.0], [3.0, -math.inf]]]])
    assert call(x.clone()).equal(x.relu())


# network, its last layer, and what is on the way to it
NETWORKS = {
    "alexnet": ("classifier.6", {RELU: 7}),
    "vgg16": ("classifier.6", {RELU: 15}),
    "vgg19_bn": ("classifier.6", {RELU: 18}),
    "squeezenet1_0": ("classifier.3", {RELU: 26}),  # the first, 8 of 3, the last
    "squeezenet1_1": ("classifier.3", {RELU: 26}),
    "resnet18": ("fc", {RELU: 17}),  # one less than layers with weights
    "resnet50": ("fc", {RELU: 49}),
    "resnet152": ("fc", {RELU: 151}),
    "resnext50_32x4d": ("fc", {RELU: 49}),
    "wide_resnet50_2": ("fc", {RELU: 49}),
    "densenet121": ("classifier", {RELU: 121}),  # 120 convolutions; and one before the classifier
    "densenet201": ("classifier", {RELU: 201}),
    "googlenet": ("fc", {RELU: 57}),  # 3, 9 of 6
    "inception_v3": ("fc", {RELU: 94}),
    "shufflenet_v2_x1_0": ("fc", {RELU: 37}),
    "mnasnet1_0": ("classifier.1", {RELU: 35}),
    "mobilenet_v2": ("classifier.1", {("activation", "relu6"): 35}),
    "mobilenet_v3_small": (
        "classifier.3", {RELU: 14, ("activation", "hardswish"): 19, ("gate", "hardsigmoid"): 9},
    ),
    "mobilenet_v3_large": (
        "classifier.3", {RELU: 19, ("activation", "hardswish"): 21, ("gate", "hardsigmoid"): 8},
    ),
    "efficientnet_b0": ("classifier.1", {("activation", "silu"): 49, ("gate", "sigmoid"): 16}),
    "efficientnet_v2_s": ("classifier.1", {("activation", "silu"): 102, ("gate", "sigmoid"): 30}),
    "convnext_tiny": ("classifier.2", {("activation", "gelu"): 18}),
    "vit_b_16": ("heads.head", {("attention", "attention"): 12, ("activation", "gelu"): 12}),
}  # fmt: skip


@pytest.mark.parametrize("name", NETWORKS)
def test_counts_known_networks(name):
    arguments = {"aux_logits": False, "init_weights": False} if name in ("googlenet", "inception_v3") else {}
    layer, expected = NETWORKS[name]
    with torch.device("meta"):
        network = torchvision.models.get_model(name, weights=None, **arguments).eval()
    assert count_nonlinearities(network, layer, (3, 224, 224)) == expected


@pytest.mark.parametrize(
    ("name", "layer", "expected"),
    [
        ("regnet_x_400mf", "fc", {RELU: 67}),
        ("regnet_y_400mf", "fc", {RELU: 65, ("gate", "sigmoid"): 16}),
        ("swin_t", "head", {("gate", "softmax"): 12, ("activation", "gelu"): 12}),
    ],
)
def test_counts_networks_that_need_values_to_be_built(name, layer, expected):
    network = torchvision.models.get_model(name, weights=None).eval()
    assert count_nonlinearities(network, layer, (3, 64, 64)) == expected


@pytest.mark.parametrize(
    ("layer", "count"), [("conv1", 0), ("relu1", 1), ("conv2", 1), ("relu5", 5), ("fc6", 5), ("fc8", 7)]
)
def test_what_comes_after_the_layer_does_not_count(layer, count):
    with torch.device("meta"):
        network = CaffeNet().eval()
    assert count_nonlinearities(network, layer, (3, 227, 227)) == ({RELU: count} if count else {})


def test_of_what_comes_after_the_layer_nothing_need_run():
    with torch.device("meta"):
        network = CaffeNet().eval()
    assert count_nonlinearities(network, "relu1", (3, 32, 32)) == {RELU: 1}
    with pytest.raises(RuntimeError):
        count_nonlinearities(network, "fc6", (3, 32, 32))
    with pytest.raises(RuntimeError):
        count_nonlinearities(network, "relu1", (4, 32, 32))
    with pytest.raises(ModelError, match="'conv9', which the network does not have"):
        count_nonlinearities(network, "conv9", (3, 227, 227))
    assert torch._C._len_torch_function_stack() == 0
    assert not any(module._forward_hooks for module in network.modules())


def test_what_the_network_calls_is_told_under_a_relu_that_runs_twice():
    relu = nn.ReLU()
    network = nn.Sequential(nn.Conv2d(3, 4, 1), relu, nn.Conv2d(4, 4, 1), relu, nn.Sigmoid(), nn.Conv2d(4, 4, 1))
    assert count_nonlinearities(network.eval(), "5", (3, 8, 8)) == {RELU: 2, ("gate", "sigmoid"): 1}


def test_nothing_is_computed_and_the_network_stays_as_it_was():
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.Conv2d(4, 2, 1)).eval()
    seen = []

    def look(_module, inputs):
        seen.append(inputs[0].device.type)

    network[3].register_forward_pre_hook(look)
    tensors = {**dict(network.named_parameters()), **dict(network.named_buffers())}
    values = {name: tensor.clone() for name, tensor in tensors.items()}
    assert count_nonlinearities(network, "3", (3, 8, 8)) == {RELU: 1}
    assert seen == ["meta"]
    after = {**dict(network.named_parameters()), **dict(network.named_buffers())}
    assert all(after[name] is tensor and tensor.equal(values[name]) for name, tensor in tensors.items())
    assert all(parameter.requires_grad and parameter.grad is None for parameter in network.parameters())

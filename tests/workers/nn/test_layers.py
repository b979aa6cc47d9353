"""Layer names: exact, globs, and what `auto` finds in the common networks."""

import pytest
import torch
import torchvision
from torch import nn

from workers.models import ModelError
from workers.networks.caffenet import CaffeNet
from workers.networks.mininet import MiniNet
from workers.networks.zfnet import ZFNet
from workers.nn.layers import LayerRow, auto_layers, expand_layers, layer_table, logits_layer, smallest_side
from workers.nn.receptive_field import ReceptiveField

INPUT = (3, 224, 224)
BUILDERS = {
    "caffenet": (CaffeNet, 227),
    "zfnet": (ZFNet, 224),
    "mininet": (MiniNet, 112),
    "googlenet": (lambda: torchvision.models.googlenet(init_weights=False, aux_logits=False), 224),
    "inception_v3": (lambda: torchvision.models.inception_v3(init_weights=False, aux_logits=False), 299),
}


def build(name):
    """A network without weights, and the shape of its input."""
    builder, size = BUILDERS.get(name, (lambda: torchvision.models.get_model(name, weights=None), 224))
    with torch.device("meta"):
        return builder().eval(), (3, size, size)


def numbered(prefix, numbers):
    return [f"{prefix}{number}" for number in numbers]


AUTO = {
    "alexnet": numbered("features.", (1, 4, 7, 9, 11)),
    "vgg16": numbered("features.", (1, 3, 6, 8, 11, 13, 15, 18, 20, 22, 25, 27, 29)),
    "vgg11_bn": numbered("features.", (2, 6, 10, 13, 17, 20, 24, 27)),
    "squeezenet1_1": [*numbered("features.", (1, 3, 4, 6, 7, 9, 10, 11, 12)), "classifier.2"],
    "resnet18": ["relu", *(f"layer{stage}.{block}" for stage in range(1, 5) for block in range(2))],
    "resnet50": [
        "relu",
        *(f"layer{stage}.{block}" for stage, blocks in enumerate((3, 4, 6, 3), 1) for block in range(blocks)),
    ],
    "googlenet": [
        *numbered("conv", (1, 2, 3)),
        *numbered("inception", ("3a", "3b", "4a", "4b", "4c", "4d", "4e", "5a", "5b")),
    ],
    "inception_v3": [
        *numbered("Conv2d_", ("1a_3x3", "2a_3x3", "2b_3x3", "3b_1x1", "4a_3x3")),
        *numbered("Mixed_", ("5b", "5c", "5d", "6a", "6b", "6c", "6d", "6e", "7a", "7b", "7c")),
    ],
    "densenet121": numbered(
        "features.",
        (
            *("relu0", "denseblock1", "transition1.conv", "denseblock2", "transition2.conv"),
            *("denseblock3", "transition3.conv", "denseblock4"),
        ),
    ),
    "mobilenet_v2": numbered("features.", ("0.2", *range(1, 18), "18.2")),
    "mobilenet_v3_small": numbered("features.", ("0.2", *range(1, 12), "12.2")),
    "efficientnet_b0": numbered(
        "features.",
        (
            "0.2",
            *(f"{stage}.{b}" for stage, n in enumerate((1, 2, 2, 3, 3, 4, 1), 1) for b in range(n)),
            "8.2",
        ),
    ),
    "mininet": numbered("features.", (1, 4, 7, 9, 11)),
    "caffenet": numbered("relu", range(1, 6)),
    "zfnet": numbered("relu", range(1, 6)),
}


@pytest.mark.parametrize("name", AUTO)
def test_auto_is_every_convolution_or_block_after_its_nonlinearity(name):
    network, shape = build(name)
    assert auto_layers(network, shape) == AUTO[name]


def test_auto_finds_the_activations_inside_timms_normalizations():
    timm = pytest.importorskip("timm")
    with torch.device("meta"):
        network = timm.create_model("tf_efficientnet_lite0").eval()
    layers = auto_layers(network, INPUT)
    assert (layers[0], layers[1], layers[-1], len(layers)) == ("bn1.act", "blocks.0.0", "bn2.act", 18)


def test_takes_exact_names_globs_and_auto_together_in_the_order_they_run():
    alexnet, _ = build("alexnet")
    assert expand_layers(alexnet, ["features.1[012]", "features.0"], INPUT) == numbered("features.", (0, 10, 11, 12))
    assert expand_layers(alexnet, ["classifier.6", "auto", "features.1"], INPUT) == [*AUTO["alexnet"], "classifier.6"]


def test_a_glob_takes_only_what_is_a_layer():
    resnet, _ = build("resnet18")
    layers = expand_layers(resnet, ["layer4.1.*"], INPUT)
    assert layers == numbered("layer4.1.", ("conv1", "bn1", "conv2", "bn2"))


def test_leaves_the_network_as_it_was():
    squeezenet = torchvision.models.squeezenet1_1(weights=None).eval()
    before = {name: parameter.data_ptr() for name, parameter in squeezenet.named_parameters()}
    expand_layers(squeezenet, ["auto"], INPUT)
    assert {name: parameter.data_ptr() for name, parameter in squeezenet.named_parameters()} == before
    assert all(not module._forward_hooks for module in squeezenet.modules())


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("layer5", r"'layer5', which matches no module; near are layer\d"),
        ("layer9.*", "matches no module"),
        ("layer1.0.relu", "layer layer1.0.relu runs 2 times"),
        ("layer1.?.relu", "nothing it matches is a layer: layer1.0.relu runs 2 times"),
    ],
)
def test_refuses_what_is_no_layer(pattern, message):
    resnet, _ = build("resnet18")
    with pytest.raises(ModelError, match=message):
        expand_layers(resnet, ["relu", pattern], INPUT)


def test_refuses_layers_without_a_grid_and_layers_that_do_not_run():
    with torch.device("meta"):
        network = nn.Sequential(nn.Conv2d(3, 2, 1), nn.Flatten(2))
    network[0].spare = nn.Conv2d(2, 2, 1)
    with pytest.raises(ModelError, match=r"layer 1 returns \(1, 2, 64\)"):
        expand_layers(network, ["1"], (3, 8, 8))
    with pytest.raises(ModelError, match=r"layer 0\.spare does not run"):
        expand_layers(network, ["0.spare"], (3, 8, 8))
    with pytest.raises(ModelError, match="does not run on an input of"):
        expand_layers(network, ["0"], (4, 8, 8))
    with pytest.raises(ModelError, match="has no convolution"):
        expand_layers(nn.Sequential(nn.Flatten(), nn.Linear(3, 2)), ["auto"], (3, 1, 1))


def test_describes_layers():
    alexnet, _ = build("alexnet")
    assert layer_table(alexnet, ["features.11", "classifier.6"], INPUT) == [
        LayerRow("features.11", 256, 13, 13, ReceptiveField(16.0, 16.0, 15.0, 15.0, 163, 163)),
        LayerRow("classifier.6", 1000, 1, 1, None),
    ]
    with pytest.raises(ModelError, match="layer nowhere does not run"):
        layer_table(alexnet, ["nowhere"], INPUT)


def test_a_module_that_has_two_names_keeps_its_weights():
    network = nn.Sequential(nn.Conv2d(3, 3, 1), nn.ReLU()).eval().requires_grad_(False)
    network.again = network[0]
    network.forward = lambda x: network[1](network[0](x))
    before = {name: weight.data_ptr() for name, weight in network.named_parameters()}
    assert expand_layers(network, ["auto"], (3, 8, 8)) == ["1"]
    assert {name: weight.data_ptr() for name, weight in network.named_parameters()} == before


LAST = {
    "alexnet": "classifier.6",
    "squeezenet1_1": "classifier.3",  # the pool: a class is a map before it
    "resnet18": "fc",
    "mininet": "classifier.3",
    "googlenet": "fc",
    "densenet121": "classifier",
    "mobilenet_v3_small": "classifier.3",
}


@pytest.mark.parametrize("name", LAST)
def test_logits_are_the_last_layer(name):
    network, shape = build(name)
    assert logits_layer(network, shape) == LAST[name]
    assert expand_layers(network, ["logits"], shape) == [LAST[name]]


def test_logits_of_a_network_from_timm():
    timm = pytest.importorskip("timm")
    with torch.device("meta"):
        network = timm.create_model("tf_efficientnet_lite0").eval()
    assert logits_layer(network, INPUT) == "classifier"


@pytest.mark.parametrize("ending", [[nn.Softmax(1)], [nn.LogSoftmax(1)], [nn.Identity(), nn.Flatten(), nn.Softmax(1)]])
def test_logits_come_before_what_makes_shares_of_them(ending):
    head = [nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5)]
    network = nn.Sequential(*head, *ending).eval()
    assert logits_layer(network, (3, 8, 8)) == "3"
    convolutional = nn.Sequential(nn.Conv2d(3, 4, 8), nn.Flatten(), *ending).eval()
    assert logits_layer(convolutional, (3, 8, 8)) == "0"


def test_logits_are_asked_for_with_others():
    alexnet, _ = build("alexnet")
    assert expand_layers(alexnet, ["logits", "features.0"], INPUT) == ["features.0", "classifier.6"]


def test_a_layer_that_is_called_logits_is_itself():
    network = nn.Sequential()
    network.add_module("logits", nn.Conv2d(3, 2, 1))
    network.add_module("pool", nn.AdaptiveAvgPool2d(1))
    assert expand_layers(network.eval(), ["logits"], (3, 8, 8)) == ["logits"]


def test_refuses_logits_where_there_are_none():
    with pytest.raises(ModelError, match="'logits', but no layer of the network returns one value a class"):
        logits_layer(nn.Sequential(nn.Conv2d(3, 2, 1), nn.ReLU()).eval(), (3, 8, 8))


@pytest.mark.parametrize(
    ("name", "layer", "least"),
    [
        ("alexnet", "features.12", 63),  # the least that torchvision's AlexNet takes
        ("alexnet", "features.2", 15),
        ("vgg11_bn", "features.28", 32),
        ("squeezenet1_1", "features.2", 5),  # 2 cells, of which the pool makes one
        ("resnet18", "layer4.1", 1),
        ("mininet", "features.12", 29),
    ],
)
def test_the_least_side_is_the_first_that_the_network_runs_on(name, layer, least):
    network, _ = build(name)
    assert smallest_side(network, layer, 1, 224) == least
    assert smallest_side(network, layer, least, least) == least
    assert smallest_side(network, layer, least + 3, 224) == least + 3
    if least > 1:
        assert smallest_side(network, layer, 1, least - 1) is None


def test_the_least_side_is_that_of_the_network_itself():
    mininet = MiniNet().eval()
    least = smallest_side(mininet, "features.12", 1, 112)
    assert mininet.features(torch.zeros(1, 3, least, least)).shape[2:] == (1, 1)
    with pytest.raises(RuntimeError):
        mininet.features(torch.zeros(1, 3, least - 1, least - 1))


def test_a_classifier_without_a_pool_takes_one_grid_only():
    """MiniNet's takes 6 x 6 cells of 16 pixels, which 5 more cells than one make of its 29."""
    mininet, _ = build("mininet")
    assert smallest_side(mininet, "classifier.1", 1, 112) == 29 + 5 * 16
    assert smallest_side(mininet, "classifier.1", 126, 160) is None

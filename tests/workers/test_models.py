"""The registry: every name has preprocessing, every failure a named error."""

import io
import pickle
import re
import sys
from urllib.error import URLError

import pytest
import safetensors.torch
import torch
import torchvision

from tests.shared import shared_data
from workers.models import ModelError, ModelSpec, Preprocessing, available, load, weights_names
from workers.weights import weights_sha256


def no_file(path):
    raise AssertionError(f"read {path}")


def files(**contents):
    return lambda path: contents[path.partition(".")[0]]


def checkpoint(state):
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()


@pytest.fixture
def downloads(monkeypatch):
    """Stand in for torchvision's downloads."""
    answers = {}

    def download(url, *, weights_only, check_hash, **_):
        assert weights_only
        assert check_hash
        if url not in answers:
            raise URLError("no route to host")
        return answers[url]

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", download)
    return answers


def test_lists_the_networks():
    names = available()
    assert names == sorted(names)
    assert {"alexnet", "squeezenet1_1", "resnet50", "googlenet", "caffenet", "zfnet", "mininet"} <= set(names)
    assert weights_names("alexnet") == ["IMAGENET1K_V1", "DEFAULT"]
    assert weights_names("caffenet") == []
    assert weights_names("timm:resnet18") == ["pretrained"]


def test_specs_travel():
    spec = ModelSpec("alexnet", "a.pth", num_classes=5)
    assert pickle.loads(pickle.dumps(spec)) == spec


@pytest.mark.parametrize(
    ("name", "size", "classes"),
    [("squeezenet1_1", 224, 1000), ("mininet", 112, 8), ("shufflenet_v2_x0_5", 224, 1000)],
)
def test_loads_networks_ready_to_look_at(name, size, classes):
    model = load(ModelSpec(name), no_file)
    assert not model.module.training
    assert not any(parameter.requires_grad for parameter in model.module.parameters())
    assert (model.preprocessing.height, model.preprocessing.width, model.num_classes) == (size, size, classes)
    with torch.inference_mode():
        logits = model.module(torch.randn(1, 3, size, size))
    assert logits.shape == (1, classes)
    assert logits.std() > 0.01
    assert name in model.description


def test_random_weights_are_the_same_everywhere():
    model = load(ModelSpec("squeezenet1_1", seed=0), no_file)
    assert model.weights_sha256 == "1dc974a4eb374a644b3f4830184444428e35df25b295065292f04d9e3d5eb9b4"


def test_random_weights_leave_the_global_generator_alone():
    state = torch.get_rng_state()
    first, second, other = (load(ModelSpec("mininet", seed=seed), no_file) for seed in (1, 1, 2))
    assert first.weights_sha256 == second.weights_sha256 != other.weights_sha256
    assert torch.equal(torch.get_rng_state(), state)


def test_every_other_network_has_published_weights():
    without = [name for name in available() if "DEFAULT" not in weights_names(name)]
    assert without == ["caffenet", "minialexnet", "mininet", "minizfnet", "zfnet"]


def test_takes_the_number_of_classes_from_the_file():
    source = load(ModelSpec("mininet", num_classes=5, seed=3), no_file)
    data = safetensors.torch.save(source.module.state_dict())
    model = load(ModelSpec("mininet", "a.safetensors"), files(a=data))
    assert model.num_classes == 5
    assert model.weights_sha256 == source.weights_sha256
    with pytest.raises(ModelError, match=r"classifier\.3\.bias: \(5,\) in the file, \(6,\) wanted"):
        load(ModelSpec("mininet", "a.safetensors", num_classes=6), files(a=data))


def test_checks_the_hash_before_it_reads_the_file():
    with pytest.raises(ModelError, match=r"have sha256 [0-9a-f]{64}, must have 00ff"):
        load(ModelSpec("mininet", "a.pth", sha256="00ff"), files(a=b"broken"))
    random = load(ModelSpec("mininet"), no_file)
    load(ModelSpec("mininet", sha256=random.weights_sha256), no_file)
    with pytest.raises(ModelError, match="must have"):
        load(ModelSpec("mininet", seed=1, sha256=random.weights_sha256), no_file)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (ModelSpec("resnet81"), r"model is 'resnet81'.*near are resnet18"),
        (ModelSpec("os.system"), "which is unknown"),
        (ModelSpec("alexnet", "IMAGENET"), "must be one of random, IMAGENET1K_V1, DEFAULT, or a file"),
        (ModelSpec("caffenet", "DEFAULT"), "must be one of random, or a file"),
    ],
)
def test_names_what_is_allowed(spec, message):
    with pytest.raises(ModelError, match=message):
        load(spec, no_file)


def test_downloads_published_weights(downloads):
    source = load(ModelSpec("squeezenet1_1", seed=4), no_file)
    url = torchvision.models.SqueezeNet1_1_Weights.IMAGENET1K_V1.url
    downloads[url] = source.module.state_dict()
    assert load(ModelSpec("squeezenet1_1", "DEFAULT"), no_file).weights_sha256 == source.weights_sha256


def test_says_what_to_do_offline(downloads):
    with pytest.raises(ModelError, match=r"cannot be downloaded .*no route to host.*set model\.weights to the"):
        load(ModelSpec("squeezenet1_1", "DEFAULT"), no_file)


@pytest.mark.parametrize("name", ["googlenet", "inception_v3"])
def test_auxiliary_heads_are_left_out_and_inputs_converted_as_published(name, downloads):
    builder = torchvision.models.get_model_builder(name)
    full = builder(weights=None, init_weights=False, aux_logits=True).state_dict()
    downloads[torchvision.models.get_model_weights(name).DEFAULT.url] = full
    published = load(ModelSpec(name, "DEFAULT"), no_file)
    own = load(ModelSpec(name, "a.pth"), files(a=checkpoint(full)))
    told = load(ModelSpec(name, "a.pth", transform_input=True), files(a=checkpoint(full)))
    assert published.weights_sha256 == own.weights_sha256
    assert not any(key.lower().startswith("aux") for key in own.module.state_dict())
    assert [model.module.transform_input for model in (published, own, told)] == [True, False, True]


def test_reads_the_names_of_torchvisions_densenet_files():
    source = load(ModelSpec("densenet121"), no_file)
    old = re.compile(r"(denselayer\d+\.(?:norm|conv))([12])")
    state = {old.sub(r"\1.\2", name): value for name, value in source.module.state_dict().items()}
    assert "features.denseblock1.denselayer1.norm.1.weight" in state
    model = load(ModelSpec("densenet121", "a.pth"), files(a=checkpoint(state)))
    assert model.weights_sha256 == source.weights_sha256


def test_preprocessing_of_caffe_is_bgr_from_0_to_255():
    images = torch.tensor([200, 100, 50], dtype=torch.uint8)[None, :, None, None].expand(1, 3, 2, 2)
    caffe = Preprocessing(2, 2, (104.0, 117.0, 123.0), (1.0, 1.0, 1.0), channel_order="bgr", scale=1.0)
    assert caffe.normalize(images)[0, :, 0, 0].tolist() == [50 - 104, 100 - 117, 200 - 123]
    torch_style = Preprocessing(2, 2, (0.5, 0.25, 0.0), (0.5, 0.25, 1.0))
    expected = torch.tensor([200 / 255 * 2 - 1, 100 / 255 * 4 - 1, 50 / 255])
    torch.testing.assert_close(torch_style.normalize(images)[0, :, 0, 0], expected)


def test_preprocessing_is_torchvisions_without_the_crop():
    model = load(ModelSpec("squeezenet1_1"), no_file)
    images = torch.randint(0, 256, (2, 3, 224, 224), dtype=torch.uint8)
    transform = torchvision.models.SqueezeNet1_1_Weights.DEFAULT.transforms(resize_size=224)
    torch.testing.assert_close(model.preprocessing.normalize(images), transform(images))


def test_timm_by_name():
    pytest.importorskip("timm")
    model = load(ModelSpec("timm:tf_efficientnet_lite0", num_classes=7), no_file)
    assert model.num_classes == 7
    assert model.preprocessing == Preprocessing(224, 224, (0.5,) * 3, (0.5,) * 3, "bicubic")
    with pytest.raises(ModelError, match="timm does not have; near are resnet"):
        load(ModelSpec("timm:resnet81"), no_file)


def test_says_how_to_install_timm(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ModelError, match=r"pip install 'raydissect\[timm\]'"):
        load(ModelSpec("timm:resnet18"), no_file)


@pytest.mark.real
@pytest.mark.parametrize(
    ("name", "file", "sha256"),
    [
        (
            "squeezenet1_1",
            "squeezenet1_1_imagenet.safetensors",
            "2c9c5be719d3b455fbfec34c518f58fab54721eda123441dddd9c8ba80f4c386",
        ),
        (
            "timm:tf_efficientnet_lite0",
            "tf_efficientnet_lite0_imagenet.safetensors",
            "2b4a5f7e9a1870e2c41efd811c5b04f7e5843b32900a338e3f181204a324f9c6",
        ),
    ],
)
def test_loads_real_weights(name, file, sha256):
    data = (shared_data("weights") / file).read_bytes()
    model = load(ModelSpec(name, file, sha256=sha256), lambda path: data)
    tensors = safetensors.torch.load(data)
    state = model.module.state_dict()
    assert all(torch.equal(state[key], value) for key, value in tensors.items())
    again = load(ModelSpec(name, "same.pth"), files(same=checkpoint(tensors)))
    assert again.weights_sha256 == model.weights_sha256 == weights_sha256(model.module)

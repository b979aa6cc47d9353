import pytest
import torch

from workers import models
from workers.models import ModelSpec, keep, load, load_once
from workers.precision import rounding

MININET = ModelSpec("mininet")


def switches() -> list[str]:
    backends = torch.backends
    return [one.fp32_precision for one in (backends.cuda.matmul, backends.cudnn.conv, backends.mkldnn.conv)]


@pytest.mark.parametrize(("precision", "expected"), [("float32", "ieee"), ("bfloat16", "ieee"), ("tf32", "tf32")])
def test_rounding_is_switched_for_the_while_and_put_back(precision, expected):
    before, inside = switches(), []

    def fail() -> None:
        with rounding(precision):
            inside.extend(switches())
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert inside == [expected] * 3
    assert switches() == before


def test_a_network_in_another_type_is_a_copy():
    loaded = load(MININET, lambda _: b"")
    assert loaded.on("cpu") is loaded
    half = loaded.on("cpu", "bfloat16", "channels_last")
    assert {weight.dtype for weight in half.module.parameters()} == {torch.bfloat16}
    assert {weight.dtype for weight in loaded.module.parameters()} == {torch.float32}
    weight = next(weight for weight in half.module.parameters() if weight.ndim == 4)
    assert weight.is_contiguous(memory_format=torch.channels_last)
    assert half.weights_sha256 == loaded.weights_sha256


@pytest.fixture
def loads(monkeypatch):
    """Every load; the network that the process kept is forgotten."""
    calls = []
    original = models.load

    def counted(spec, read):
        calls.append(spec)
        return original(spec, read)

    monkeypatch.setattr(models, "load", counted)
    monkeypatch.setattr(models, "_last", {})
    return calls


def test_a_network_is_loaded_once_a_process(loads):
    first = load_once(MININET, lambda _: b"", "here")
    second = load_once(MININET, lambda _: b"", "here", first.weights_sha256)
    assert loads == [MININET]
    pairs = list(zip(first.module.parameters(), second.module.parameters(), strict=True))
    assert all(one is other for one, other in pairs)
    load_once(MININET, lambda _: b"", "elsewhere")
    load_once(MININET, lambda _: b"", "here")
    assert len(loads) == 3  # only the last is kept


def test_a_network_with_other_weights_than_wanted_is_loaded_again(loads):
    load_once(MININET, lambda _: b"", "here")
    load_once(MININET, lambda _: b"", "here", "0" * 64)
    assert len(loads) == 2


def test_a_network_that_was_loaded_elsewhere_can_be_kept(loads):
    loaded = load(MININET, lambda _: b"")
    keep(loaded, MININET, "here")
    assert load_once(MININET, lambda _: b"", "here").weights_sha256 == loaded.weights_sha256
    assert loads == []


def test_hooks_of_one_user_are_not_another_users(loads):
    first, second = (load_once(MININET, lambda _: b"", "here") for _ in range(2))
    called = []
    with first.module.register_forward_hook(lambda *_: called.append("first")):
        second.module(torch.zeros(1, 3, second.preprocessing.height, second.preprocessing.width))
    assert called == []


def test_normalizing_leaves_its_input_alone():
    size = load(MININET, lambda _: b"").preprocessing
    for pixels in (torch.arange(24, dtype=torch.uint8), torch.arange(24.0)):
        images = pixels.view(1, 3, 2, 4)
        before = images.clone()
        mean, std = (torch.tensor(values)[:, None, None] for values in (size.mean, size.std))
        assert size.normalize(images).equal((before.float() / size.scale - mean) / std)
        assert images.equal(before)

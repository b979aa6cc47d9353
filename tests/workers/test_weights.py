"""Weights files: what is read, what is refused, and hashes that depend on the weights alone."""

import io
import pickle
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import nn

from workers.weights import ModelError, is_file, parse_weights, put_weights, randomize, weights_sha256


def checkpoint(value, **arguments):
    buffer = io.BytesIO()
    torch.save(value, buffer, **arguments)
    return buffer.getvalue()


class Planted:
    """Touches a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.fixture
def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2))


@pytest.mark.parametrize(
    ("weights", "expected"),
    [
        ("a/b.safetensors", True),
        ("s3://bucket/x.pth", True),
        ("https://host/x.pt?version=3", True),
        ("random", False),
        ("DEFAULT", False),
    ],
)
def test_tells_files_from_names(weights, expected):
    assert is_file(weights) is expected


def test_all_kinds_of_files_hold_the_same_weights(network):
    state = network.state_dict()
    files = {
        "a.safetensors": safetensors.torch.save(dict(state)),
        "a.pth": checkpoint(state),
        "a.pt": checkpoint({"state_dict": state, "epoch": 3}),
        "b.pth": checkpoint({f"module.{name}": value for name, value in state.items()}),
        "c.pth": checkpoint(state, _use_new_zipfile_serialization=False),
    }
    expected = weights_sha256(network)
    for path, data in files.items():
        randomize(network, 1)
        assert weights_sha256(network) != expected
        put_weights(network, parse_weights(data, path), path)
        assert weights_sha256(network) == expected


def test_refuses_a_pickle_that_holds_code_and_executes_nothing(tmp_path):
    trap = tmp_path / "executed"
    data = checkpoint({"weight": torch.ones(2), "planted": Planted(trap)})
    with pytest.raises(ModelError, match=r"evil\.pth is refused.*convert its state_dict to a \.safetensors"):
        parse_weights(data, "evil.pth")
    assert not trap.exists()
    torch.load(io.BytesIO(data), weights_only=False)
    assert trap.exists()


@pytest.mark.parametrize(
    ("path", "data"),
    [
        ("a.safetensors", b""),
        ("a.safetensors", b"no safetensors at all"),
        ("a.pth", b""),
        ("a.pth", b"no checkpoint at all"),
        ("a.pth", checkpoint({"weight": torch.ones(99)})[:400]),
        ("a.pth", pickle.dumps({1: Planted}, protocol=2)),
    ],
)
def test_refuses_broken_files(path, data):
    with pytest.raises(ModelError, match=f"weights {path}"):
        parse_weights(data, path)


@pytest.mark.parametrize("value", [[torch.ones(1)], {"weight": torch.ones(1), "epoch": 3}, torch.ones(1)])
def test_refuses_what_is_no_state_dict(value):
    with pytest.raises(ModelError, match="must hold named tensors"):
        parse_weights(checkpoint(value), "a.pth")


def test_lists_every_tensor_that_differs(network):
    state = dict(network.state_dict())
    state["3.weight"] = torch.zeros(5, 4)
    state["extra"] = state.pop("0.bias")
    del state["1.num_batches_tracked"]
    before = weights_sha256(network)
    with pytest.raises(ModelError) as raised:
        put_weights(network, state, "a.pth")
    message = str(raised.value)
    assert "3 tensors differ" in message
    assert "3.weight: (5, 4) in the file, (2, 4) wanted" in message
    assert "0.bias: not in the file, (4,) wanted" in message
    assert "extra: (4,) in the file, not in the network" in message
    assert weights_sha256(network) == before


def test_leaves_counters_of_old_checkpoints_at_zero(network):
    state = {name: value for name, value in network.state_dict().items() if "num_batches" not in name}
    put_weights(network, state, "a.pth")
    assert network[1].num_batches_tracked == 0


def test_random_weights_follow_he_and_the_seed_alone(network):
    wide = nn.Sequential(nn.Conv2d(16, 64, 5, groups=2), nn.BatchNorm2d(64), nn.Linear(300, 200))
    torch.manual_seed(3)
    state = torch.get_rng_state()
    randomize(wide, 7)
    assert torch.equal(torch.get_rng_state(), state)
    for layer, fan_in in ((wide[0], 8 * 25), (wide[2], 300)):
        assert layer.weight.var().item() == pytest.approx(2 / fan_in, rel=0.05)
        assert not layer.bias.any()
    hashes = []
    for seed in (7, 8, 7):
        randomize(network, seed)
        hashes.append(weights_sha256(network))
    assert hashes[0] == hashes[2] != hashes[1]


def test_the_hash_sees_names_types_shapes_and_values():
    def digest(**buffers):
        module = nn.Module()
        for name, value in buffers.items():
            module.register_buffer(name, value)
        return weights_sha256(module)

    ones = torch.ones(4)
    hashes = {
        digest(a=ones),
        digest(b=ones),
        digest(a=ones.double()),
        digest(a=ones.reshape(2, 2)),
        digest(a=ones * 2),
        digest(a=ones.bfloat16()),
        digest(a=torch.tensor(1.0)),
    }
    assert len(hashes) == 7
    assert digest(a=ones, b=ones * 2) == digest(b=ones * 2, a=ones)
    assert digest(a=torch.arange(6.0).reshape(2, 3)) == digest(a=torch.arange(6.0).reshape(2, 3).t().contiguous().t())

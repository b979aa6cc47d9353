"""Weights as data: read a file, check it against a network, hash what was loaded, draw random ones.

Nothing in a file is executed: safetensors hold only tensors, and pickles are read with `weights_only=True`.
"""

import hashlib
import io
import math
import pickle
import re
import struct
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

FILE_SUFFIXES = (".safetensors", ".pth", ".pt")

_BROKEN_FILE = (
    RuntimeError, EOFError, LookupError, TypeError, AttributeError, ValueError, AssertionError, OSError, struct.error,
)  # fmt: skip
_WRAPPERS = ("state_dict", "model")
_LEGACY_DENSENET = re.compile(r"(denselayer\d+\.(?:norm|relu|conv))\.([12]\.)")


class ModelError(ValueError):
    """A network, its weights or a layer cannot be used: the message says which, why, and what to do."""


def serialize_weights(module: nn.Module) -> bytes:
    """A network's weights and buffers as a safetensors file."""
    return safetensors.torch.save({name: value.clone() for name, value in module.state_dict().items()})


def is_file(weights: str) -> bool:
    """Tell a path or URL of weights from the name of weights."""
    return weights.partition("?")[0].endswith(FILE_SUFFIXES)


def parse_weights(data: bytes, path: str) -> dict[str, Tensor]:
    """Read the tensors of a weights file.

    A checkpoint that keeps them under `state_dict` or `model`, and the `module.` that data-parallel
    training puts before every name, are understood.

    Args:
        data: the file's bytes.
        path: where they come from; its ending tells safetensors from pickles.

    Raises:
        ModelError: the file is broken, holds code, or holds other things than named tensors.
    """
    if path.partition("?")[0].endswith(".safetensors"):
        try:
            return safetensors.torch.load(data)
        except SafetensorError as error:
            raise ModelError(f"weights {path} is no safetensors file of {len(data)} bytes: {error}") from error
    state = _unpickle(data, path)
    for wrapper in _WRAPPERS:
        if isinstance(state, Mapping) and isinstance(state.get(wrapper), Mapping):
            state = state[wrapper]
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ModelError(
            f"weights {path} holds {_describe(state)}, must hold named tensors (a state_dict, "
            "or one under the key 'state_dict'); save the network's state_dict()"
        )
    if state and all(name.startswith("module.") for name in state):
        bare = OrderedDict((name.removeprefix("module."), value) for name, value in state.items())
        return bare
    return state  # pyright: ignore[reportReturnType]


def _unpickle(data: bytes, path: str) -> Any:
    try:
        return torch.load(io.BytesIO(data), weights_only=True, map_location="cpu")
    except pickle.UnpicklingError as error:
        reason = str(error).partition("WeightsUnpickler error:")[2].strip().partition("\n")[0] or str(error)
        raise ModelError(
            f"weights {path} is refused: it holds more than tensors, or is broken ({reason.partition('. ')[0]}); "
            "nothing in it was executed; where you trust it, convert its state_dict to a .safetensors file"
        ) from error
    except _BROKEN_FILE as error:
        raise ModelError(f"weights {path} is no checkpoint of {len(data)} bytes: {error!r}") from error


def _describe(state: Any) -> str:
    if not isinstance(state, Mapping):
        return f"a {type(state).__name__}"
    others = [f"{name}: {type(value).__name__}" for name, value in state.items() if not isinstance(value, Tensor)]
    return f"{len(others)} entries that are no tensors ({', '.join(others[:5])})"


def put_weights(module: nn.Module, state: Mapping[str, Tensor], source: str) -> None:
    """Copy weights into a network, all of them or none.

    Counters of batches that old checkpoints lack are left at 0.

    Args:
        module: the network.
        state: tensors by name, of the network's shapes.
        source: named in the error.

    Raises:
        ModelError: names or shapes differ; every one is listed.
    """
    wanted = module.state_dict()
    weights = OrderedDict((_LEGACY_DENSENET.sub(r"\1\2", name), value) for name, value in state.items())
    wrong = {n for n, value in weights.items() if n in wanted and value.shape != wanted[n].shape}
    problems = [
        f"{name}: {tuple(weights[name].shape)} in the file, {tuple(wanted[name].shape)} wanted"
        for name in sorted(wrong)
    ]
    known = OrderedDict((name, value) for name, value in weights.items() if name not in wrong)
    # Modules that read older layouts go by this version, which safetensors do not carry.
    versions = getattr(state, "_metadata", {"": {"version": module._version}})
    known._metadata = versions  # pyright: ignore[reportAttributeAccessIssue]
    missing, unexpected = module.load_state_dict(known, strict=False)
    problems += [
        f"{name}: not in the file, {tuple(wanted[name].shape)} wanted"
        for name in missing
        if name not in wrong and not name.endswith("num_batches_tracked")
    ]
    problems += [f"{name}: {tuple(weights[name].shape)} in the file, not in the network" for name in unexpected]
    if problems:
        raise ModelError(
            f"weights {source} does not fit the network, {len(problems)} tensors differ:\n  "
            + "\n  ".join(problems)
            + "\nname the model and num_classes that the weights were trained with"
        )


@torch.no_grad()
def randomize(module: nn.Module, seed: int) -> None:
    """Draw a network's weights, to the bit the same on every machine.

    He et al. 2015, uniform, zero biases, normalization at its identity, whatever the network's own
    initialization is: normal draws differ in the last bit between processors, uniform ones do not, and
    one rule for all makes random networks comparable. Parameters outside of convolutions, linear layers
    and normalizations stay as they are.

    Args:
        module: a network as constructed.
        seed: of the draws.
    """
    generator = torch.Generator().manual_seed(seed)
    norms = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm)
    for submodule in module.modules():
        if isinstance(submodule, nn.Conv2d | nn.Linear):
            bound = math.sqrt(6 / submodule.weight[0].numel())
            draws = torch.rand(submodule.weight.shape, generator=generator)
            # Two roundings, never a fused one.
            submodule.weight.copy_((draws - 0.5) * (2 * bound))
        elif isinstance(submodule, norms) and submodule.weight is not None:
            submodule.weight.fill_(1)
        else:
            continue
        if submodule.bias is not None:
            submodule.bias.zero_()


def weights_sha256(module: nn.Module) -> str:
    """Hash names, dtypes, shapes and bytes of all weights and buffers, sorted by name.

    The same weights have the same hash whatever file they came from.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        digest.update(tensor.cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()

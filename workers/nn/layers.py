"""Which layers to look at: dotted module names, globs, and `auto`.

Names are sorted in the order in which the layers run. A layer is a module that runs once a forward pass
and returns one tensor `image unit h w`, or `image unit`, which counts as a 1 x 1 grid.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn

from workers.activations import as_grid
from workers.models import ModelError
from workers.nn.meta import shadow
from workers.nn.receptive_field import ReceptiveField, receptive_fields
from workers.nn.relus import closing_relus

AUTO = "auto"
LOGITS = "logits"

_CONTAINERS = (nn.Sequential, nn.ModuleList)
_NORMS = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm, nn.Identity)


@dataclass(frozen=True)
class LayerRow:
    """A line of `raydissect layers`.

    Attributes:
        name: dotted module name.
        channels: units.
        height: rows of the grid.
        width: columns of the grid.
        receptive_field: None where a cell sees the whole input.
    """

    name: str
    channels: int
    height: int
    width: int
    receptive_field: ReceptiveField | None


def expand_layers(module: nn.Module, patterns: Iterable[str], input_shape: tuple[int, int, int]) -> list[str]:
    """Turn patterns into the names of layers, each once, in the order in which they run.

    Args:
        module: the network, in eval mode.
        patterns: exact names; globs, whose `*` also matches dots and which take the layers among what
            they match; `auto`, every convolution or block after its nonlinearity (see `auto_layers`); `logits`, the
            layer that returns them.
        input_shape: channels, rows, columns of one input image.

    Raises:
        ModelError: a pattern matches nothing, or an exact name is no layer: it never runs, runs more than
            once, or returns something else.
    """
    trace = _trace(module, input_shape)
    names = [name for name, _ in module.named_modules() if name]
    chosen: set[str] = set()
    for pattern in patterns:
        if pattern == AUTO:
            chosen.update(auto_layers(module, input_shape))
        elif pattern == LOGITS and pattern not in names:
            chosen.add(logits_layer(module, input_shape))
        elif pattern in names:
            if problem := trace.problem(pattern):
                raise ModelError(f"layer {pattern} {problem}")
            chosen.add(pattern)
        else:
            chosen.update(_expand_glob(pattern, names, trace))
    return [name for name in trace.calls if name in chosen]


def auto_layers(module: nn.Module, input_shape: tuple[int, int, int]) -> list[str]:
    """Name every convolution or block after its nonlinearity, in the order in which they run.

    A convolution inside a block (residual, Fire, Inception, dense: a module with more than one convolution or
    linear layer that is no mere container) stands for the outermost block; one with a module of its own, for
    that module (convolution, normalization, functional ReLU); otherwise it stands for the activation module
    that follows, if that runs once, or else for itself. A 1 x 1 grid locates nothing and is left out.

    Args:
        module: the network, in eval mode.
        input_shape: channels, rows, columns of one input image.

    Raises:
        ModelError: the network has no convolution to choose.
    """
    trace = _trace(module, input_shape)
    leaves = [name for name in trace.calls if not any(module.get_submodule(name).children())]
    chosen = [
        _after_nonlinearity(module, leaves, position)
        for position, name in enumerate(leaves)
        if isinstance(module.get_submodule(name), nn.Conv2d)
    ]
    layers = [name for name in dict.fromkeys(chosen) if trace.problem(name) is None and trace.grids[name][1:] != (1, 1)]
    if not layers:
        raise ModelError("layers is 'auto', but the network has no convolution with a grid; name its layers")
    return sorted(layers, key=trace.calls.index)


def layer_table(module: nn.Module, names: Sequence[str], input_shape: tuple[int, int, int]) -> list[LayerRow]:
    """Describe layers: units, grid, receptive field.

    Args:
        module: the network, in eval mode.
        names: what `expand_layers` returned.
        input_shape: channels, rows, columns of one input image.

    Raises:
        ModelError: a name is no layer.
    """
    trace = _trace(module, input_shape)
    for name in names:
        if problem := trace.problem(name):
            raise ModelError(f"layer {name} {problem}")
    fields = receptive_fields(module, names, input_shape)
    return [LayerRow(name, *trace.grids[name], fields[name]) for name in names]


@dataclass(frozen=True)
class _Trace:
    """One forward pass: which modules returned, in order, and the grid of those that returned one."""

    calls: list[str]
    grids: dict[str, tuple[int, int, int]]
    others: dict[str, str]

    def problem(self, name: str) -> str | None:
        """Say why a module is no layer; None if it is one."""
        count = Counter(self.calls)[name]
        if count == 0:
            return "does not run in a forward pass; name one that does"
        if count > 1:
            return f"runs {count} times in a forward pass, must run once; name the module around one of them"
        return self.others.get(name)


def _trace(module: nn.Module, input_shape: tuple[int, int, int]) -> _Trace:
    """Run the network on the meta device: shapes only, nothing is computed."""
    trace = _Trace([], {}, {})

    def remember(name: str, output: Any) -> None:
        trace.calls.append(name)
        try:
            trace.grids[name] = _grid(as_grid(name, output))
        except ModelError as error:
            trace.others[name] = str(error).removeprefix(f"layer {name} ")

    handles = [
        submodule.register_forward_hook(lambda _module, _inputs, output, name=name: remember(name, output))
        for name, submodule in module.named_modules()
        if name
    ]
    try:
        with torch.no_grad():
            image = torch.empty(1, *input_shape, device="meta")
            torch.func.functional_call(module, shadow(module), (image,), tie_weights=False)
    except (RuntimeError, ValueError, AssertionError) as error:
        raise ModelError(
            f"the network does not run on an input of {input_shape} (channels, rows, columns): {error}"
        ) from error
    finally:
        for handle in handles:
            handle.remove()
    return trace


def _grid(activation: Tensor) -> tuple[int, int, int]:
    _, channels, height, width = activation.shape
    return channels, height, width


def _expand_glob(pattern: str, names: list[str], trace: _Trace) -> list[str]:
    matches = [name for name in names if fnmatchcase(name, pattern)]
    layers = [name for name in matches if trace.problem(name) is None]
    if layers:
        return layers
    if matches:
        raise ModelError(
            f"layers is {pattern!r}, but nothing it matches is a layer: {matches[0]} {trace.problem(matches[0])}"
        )
    near = get_close_matches(pattern, names, n=5, cutoff=0.3) or names[:5]
    raise ModelError(
        f"layers is {pattern!r}, which matches no module; near are {', '.join(near)}; "
        "allowed are dotted module names, globs of them, 'auto' and 'logits'"
    )


def _after_nonlinearity(module: nn.Module, leaves: list[str], position: int) -> str:
    parents = leaves[position].split(".")[:-1]
    ancestors = [".".join(parents[: depth + 1]) for depth in range(len(parents))]
    blocks = [name for name in ancestors if not isinstance(module.get_submodule(name), _CONTAINERS)]
    for block in blocks:
        if _count(module.get_submodule(block)) > 1:
            return block
    if ancestors and ancestors[-1] in blocks:
        return ancestors[-1]
    for name in leaves[position + 1 :]:
        follower = module.get_submodule(name)
        if isinstance(follower, _NORMS):
            continue
        if _is_activation(follower) and leaves.count(name) == 1:
            return name
        break
    return leaves[position]


def _count(block: nn.Module) -> int:
    return sum(isinstance(submodule, nn.Conv2d | nn.Linear) for submodule in block.modules())


def _is_activation(module: nn.Module) -> bool:
    home = type(module).__module__
    return (home == nn.ReLU.__module__ and not isinstance(module, nn.MultiheadAttention)) or "activations" in home


def logits_layer(module: nn.Module, input_shape: tuple[int, int, int]) -> str:
    """Name the layer that returns the logits: the last one with a 1 x 1 grid of a unit a class, before any softmax.

    Raises:
        ModelError: there is none.
    """
    trace = _trace(module, input_shape)
    leaves = [name for name in trace.calls if not any(module.get_submodule(name).children())]
    for name in reversed(leaves):
        flattens = isinstance(module.get_submodule(name), nn.Softmax | nn.LogSoftmax | nn.Flatten | nn.Identity)
        if not flattens and trace.problem(name) is None and trace.grids[name][1:] == (1, 1):
            return name
    raise ModelError("layers is 'logits', but no layer of the network returns one value a class; name its layers")


def smallest_side(module: nn.Module, layer: str, side: int, most: int) -> int | None:
    """The least side of a square image, from `side` to `most`, that the network takes as far as a layer.

    Args:
        module: the network, in eval mode.
        layer: dotted module name.
        side: the first to try; where it is returned, it will do.
        most: the last.
    """
    for size in range(side, most + 1):
        try:
            closing_relus(module, layer, (3, size, size))
        except (RuntimeError, ValueError, AssertionError):
            continue
        return size
    return None

"""Which nonlinearities a network calls besides ReLU, by the function that is called.

Activations are what stands in a ReLU's place. Gates are numbers between 0 and 1 by which something else is scaled,
as in squeeze-and-excitation. Attention makes such numbers and scales by them in one call, and so does a gated linear
unit. ReLUs are found in the form of clamps too; not where arithmetic makes them, as `x * (x > 0)`.
"""

from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from workers.nn.meta import run_on_meta
from workers.nn.relus import relu_end

Kind = Literal["relu", "activation", "gate", "attention"]

_ACTIVATIONS: dict[Any, str] = {
    F.hardtanh: "hardtanh", F.hardtanh_: "hardtanh", F.relu6: "relu6", F.silu: "silu", F.gelu: "gelu",
    F.hardswish: "hardswish", F.mish: "mish", F.softplus: "softplus", F.softsign: "softsign",
    F.leaky_relu: "leaky_relu", F.leaky_relu_: "leaky_relu", F.elu: "elu", F.elu_: "elu",
    F.celu: "celu", F.celu_: "celu", F.selu: "selu", F.selu_: "selu", F.prelu: "prelu", F.rrelu: "rrelu",
    F.rrelu_: "rrelu", F.logsigmoid: "logsigmoid", F.threshold: "threshold",
    F.hardshrink: "hardshrink", F.softshrink: "softshrink", F.tanhshrink: "tanhshrink",
    F.tanh: "tanh", torch.tanh: "tanh", torch.tanh_: "tanh", Tensor.tanh: "tanh", Tensor.tanh_: "tanh",
    torch.celu: "celu", torch.celu_: "celu", torch.selu: "selu", torch.selu_: "selu", torch.prelu: "prelu",
    Tensor.prelu: "prelu", torch.hardshrink: "hardshrink", Tensor.hardshrink: "hardshrink",
    torch.rrelu: "rrelu", torch.rrelu_: "rrelu", torch.threshold: "threshold", torch.threshold_: "threshold",
}  # fmt: skip
_GATES: dict[Any, str] = {
    F.sigmoid: "sigmoid", torch.sigmoid: "sigmoid", torch.sigmoid_: "sigmoid", Tensor.sigmoid: "sigmoid",
    Tensor.sigmoid_: "sigmoid", F.hardsigmoid: "hardsigmoid", F.softmax: "softmax", torch.softmax: "softmax",
    Tensor.softmax: "softmax", F.softmin: "softmax", F.gumbel_softmax: "softmax", F.log_softmax: "log_softmax",
    torch.log_softmax: "log_softmax", Tensor.log_softmax: "log_softmax", torch.special.expit: "sigmoid",
    torch.special.softmax: "softmax", torch.special.log_softmax: "log_softmax",
}  # fmt: skip
_ATTENTION: dict[Any, str] = {
    F.scaled_dot_product_attention: "attention", F.multi_head_attention_forward: "attention", F.glu: "glu",
}  # fmt: skip
_CLAMPS = {torch.clamp, torch.clamp_, Tensor.clamp, Tensor.clamp_, torch.clip, torch.clip_, Tensor.clip, Tensor.clip_}
_CLAMPS |= {torch.clamp_min, torch.clamp_min_, Tensor.clamp_min, Tensor.clamp_min_}


def nonlinearity(func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> tuple[Kind, str] | None:
    """What a call is, and what it is called; None for what is linear, or a pool, or a normalization.

    ReLU6 and its like, which end somewhere, are activations and no ReLUs.
    """
    end = _clamp_end(func, args, kwargs) if func in _CLAMPS else relu_end(func, args, kwargs)
    if end is not None:
        return ("relu", "relu") if end == float("inf") else ("activation", f"relu{end:g}")
    if func in _ACTIVATIONS:
        return "activation", _ACTIVATIONS[func]
    if func in _GATES:
        return "gate", _GATES[func]
    return ("attention", _ATTENTION[func]) if func in _ATTENTION else None


def _clamp_end(func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> float | None:
    """Where a clamp ends that begins at 0, and so is a ReLU, or a ReLU6, by another name; None for others."""
    low, high = (*args[1:], None, None)[:2]
    low, high = kwargs.get("min", low), kwargs.get("max", high)
    if not (isinstance(low, int | float) and low == 0):
        return None
    return float("inf") if high is None else float(high) if isinstance(high, int | float) else None


class _Count(TorchFunctionMode):
    """Counts nonlinearities, by kind and name."""

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[tuple[Kind, str]] = Counter()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if (found := nonlinearity(func, args, kwargs)) is not None:
            self.found[found] += 1
        return func(*args, **kwargs)


class _Reached(Exception):
    """Ends a forward pass: what comes after the layer does not count."""


def count_nonlinearities(
    module: nn.Module, layer: str, input_shape: tuple[int, int, int]
) -> dict[tuple[Kind, str], int]:
    """Count the calls of nonlinearities on the way to a layer, by kind and name.

    Args:
        module: the network, in eval mode.
        layer: dotted module name; it counts too.
        input_shape: channels, rows, columns of one input image.

    Raises:
        ModelError: there is no such layer.
        RuntimeError: the network does not run on such an input.
    """

    def stop(_layer: str, _activation: Tensor) -> None:
        raise _Reached

    with suppress(_Reached), _Count() as count:
        run_on_meta(module, layer, input_shape, stop)
    return dict(count.found)

"""Footprints: which input pixels a cell can see, by running the network's own forward on other arithmetic.

Inside `with Footprint():` every operation is replaced by the linear one with the same reach and positive
weights: a convolution or pool averages its window, a pointwise operation passes its input on, a sum of
tensors joins them. The gradient of a cell is then nonzero exactly on the pixels it can see. All channels of
a tensor have one footprint (`image 1 h w`, carried as an attribute of the tensor), computed once.

What comes out of pooling the whole map is detached: gates do not move the field, and classifiers have none.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

# fmt: off
_PASSED_ON = frozenset({
    "relu", "relu6", "hardtanh", "leaky_relu", "prelu", "rrelu", "elu", "selu", "celu", "silu", "gelu", "mish",
    "hardswish", "hardsigmoid", "sigmoid", "logsigmoid", "tanh", "softplus", "softsign", "softshrink",
    "hardshrink", "tanhshrink", "threshold", "clamp", "clamp_min", "clamp_max",
    "pow", "sqrt", "rsqrt", "exp", "log", "abs", "neg", "square",
    "dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout", "feature_dropout", "feature_alpha_dropout",
    "batch_norm", "instance_norm", "group_norm", "layer_norm", "rms_norm", "local_response_norm", "normalize",
    "clone", "contiguous", "to", "float", "double", "half", "bfloat16", "type_as",
})
_ADDED_UP = frozenset({
    "add", "radd", "iadd", "sub", "rsub", "isub", "mul", "rmul", "imul", "div", "truediv", "rtruediv", "itruediv",
    "true_divide", "maximum", "minimum",
})
_ADAPTIVE = frozenset({"adaptive_avg_pool2d", "adaptive_max_pool2d"})
_REDUCTIONS = frozenset({"mean", "sum", "amax", "amin", "std", "var"})
_ATTENTION = frozenset({"scaled_dot_product_attention", "multi_head_attention_forward", "softmax"})
# fmt: on


class NoGrid(Exception):
    """Attention: from here on cells are not alike."""


class Footprint(TorchFunctionMode):
    """Replaces operations by linear ones of the same reach; local to the `with` and the thread."""

    def __torch_function__(
        self, func: Callable, types: Sequence[type], args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name = func.__name__.strip("_")
        if name in _ATTENTION:
            raise NoGrid
        if name in _RULES:
            return _RULES[name](*args, **kwargs)
        if name in _PASSED_ON:
            return args[0]
        if name in _ADDED_UP:
            return _add_up(*args, *kwargs.values())
        if name in _ADAPTIVE:
            pooled = func(args[0].detach(), *args[1:], **kwargs)
            return args[0] if pooled.shape == args[0].shape else pooled
        if name in _REDUCTIONS and _reduces_grid(*args, **kwargs):
            return func(args[0].detach(), *args[1:], **kwargs)
        return func(*args, **kwargs)


def footprint_of(tensor: Tensor) -> Tensor:
    """The footprint `image 1 h w` of a tensor `image unit h w`."""
    footprint = getattr(tensor, "footprint", None)
    return tensor.mean(1, keepdim=True) if footprint is None else footprint


def _thick(footprint: Tensor, channels: int) -> Tensor:
    """Expand a footprint to channels, and remember it."""
    tensor = footprint.expand(-1, channels, -1, -1)
    tensor.footprint = footprint  # pyright: ignore[reportAttributeAccessIssue]
    return tensor


def _pair(value: int | Sequence[int]) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (value[0], value[-1])


def _slide(
    tensor: Tensor,
    kernel: tuple[int, int],
    stride: tuple[int, int],
    padding: str | int | Sequence[int],
    dilation: tuple[int, int],
    channels: int,
    ceil_mode: bool = False,
) -> Tensor:
    """Average a window, whatever slides it."""
    pads: list[int] = []
    for axis in (1, 0):
        reach, size, step = dilation[axis] * (kernel[axis] - 1), tensor.shape[2 + axis], stride[axis]
        if isinstance(padding, str):
            before = reach // 2 if padding == "same" else 0
            after = reach - before if padding == "same" else 0
        else:
            before = after = _pair(padding)[axis]
        if ceil_mode:
            last = math.ceil((size + before + after - reach - 1) / step)
            if last * step >= size + before:  # torch drops a window that starts in the padding
                last -= 1
            after = max(after, last * step + reach + 1 - size - before)
        pads += [before, after]
    weight = torch.full((1, 1, *kernel), 1 / math.prod(kernel), dtype=torch.float64)
    padded = F.pad(footprint_of(tensor).double(), pads)
    return _thick(F.conv2d(padded, weight, stride=stride, dilation=dilation), channels)


def _conv2d(input, weight, bias=None, stride=1, padding=0, dilation=1, groups=1) -> Tensor:
    return _slide(input, _pair(weight.shape[2:]), _pair(stride), padding, _pair(dilation), weight.shape[0])


def _max_pool2d(
    input, kernel_size, stride=None, padding=0, dilation=1, ceil_mode=False, return_indices=False
) -> Tensor:  # fmt: skip
    kernel = _pair(kernel_size)
    stride = _pair(stride) if stride else kernel
    return _slide(input, kernel, stride, padding, _pair(dilation), input.shape[1], ceil_mode)


def _avg_pool2d(
    input, kernel_size, stride=None, padding=0, ceil_mode=False, count_include_pad=True, divisor_override=None
) -> Tensor:  # fmt: skip
    return _max_pool2d(input, kernel_size, stride, padding, 1, ceil_mode)


def _pad(input, pad, mode="constant", value=None) -> Tensor:
    if input.ndim != 4 or len(pad) > 4:
        return F.pad(input, pad)
    return _thick(F.pad(footprint_of(input), pad), input.shape[1])


def _permute(tensor: Tensor, *dims: Any) -> Tensor:
    """Carry the footprint along to channels-last and back, as ConvNeXt's blocks go."""
    order = tuple(dims[0]) if len(dims) == 1 else dims
    if order == (0, 3, 1, 2) and (footprint := getattr(tensor, "channels_last", None)) is not None:
        return _thick(footprint, tensor.shape[3])
    permuted = tensor.permute(order)
    if order == (0, 2, 3, 1):
        permuted.channels_last = footprint_of(tensor)  # pyright: ignore[reportAttributeAccessIssue]
    return permuted


def _linear(input, weight, bias=None) -> Tensor:
    footprint = getattr(input, "channels_last", None)
    if footprint is None:
        mean = input.double().mean(-1, keepdim=True).expand(*input.shape[:-1], weight.shape[0])
        return mean if input.ndim > 2 else mean.detach()
    output = footprint.permute(0, 2, 3, 1).expand(-1, -1, -1, weight.shape[0])
    output.channels_last = footprint
    return output


def _cat(tensors, dim=0) -> Tensor:
    if dim not in (1, -3) or any(tensor.ndim != 4 for tensor in tensors):
        return torch.cat(tensors, dim)
    footprint = torch.stack([footprint_of(tensor) for tensor in tensors]).sum(0)
    return _thick(footprint, sum(tensor.shape[1] for tensor in tensors))


def _add_up(*operands: Any) -> Tensor:
    """Join the operands that come from the image; gates and parameters do not move the field."""
    tensors = [operand for operand in operands if isinstance(operand, Tensor)]
    shape = torch.broadcast_shapes(*(tensor.shape for tensor in tensors))
    tensors = [tensor for tensor in tensors if not isinstance(tensor, nn.Parameter)] or tensors
    joined = [tensor for tensor in tensors if tensor.requires_grad] or tensors[:1]
    if len(joined) == 1 and joined[0].shape == shape:
        return joined[0]
    if any(tensor.ndim != 4 for tensor in joined):
        return sum(joined[1:], joined[0]).expand(shape)
    footprint = sum(map(footprint_of, joined[1:]), footprint_of(joined[0]))
    return _thick(footprint.expand(-1, -1, *shape[2:]), shape[1])


def _reduces_grid(tensor: Tensor, dim: int | Sequence[int] | None = None, *_: Any, **__: Any) -> bool:
    return tensor.ndim == 4 and (dim is None or (not isinstance(dim, int) and len(dim) > 1))


_RULES: dict[str, Callable[..., Tensor]] = {
    "conv2d": _conv2d,
    "max_pool2d": _max_pool2d,
    "avg_pool2d": _avg_pool2d,
    "pad": _pad,
    "linear": _linear,
    "permute": _permute,
    "cat": _cat,
    "concat": _cat,
}

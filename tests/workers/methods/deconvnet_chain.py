"""DeconvNet by explicit steps: each layer's way back written out from its definition, no autograd.

A network is a list of parts, one after another: modules, lists, `Beside` (concatenation) and `Sum`. The forward pass
keeps what the way back needs: the input of each ReLU, the switches of each pool.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models import densenet, resnet, squeezenet
from torchvision.models.googlenet import BasicConv2d, Inception

Back = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Beside:
    """Parts that see the same input; what they make is concatenated."""

    parts: tuple[Any, ...]


@dataclass(frozen=True)
class Sum:
    """Parts that see the same input; what they make is added up."""

    parts: tuple[Any, ...]


def explicit(part: Any, x: Tensor, rule: str) -> tuple[Tensor, Back]:
    """What a part makes of x, and the function by which a signal goes back through it."""
    if isinstance(part, list | nn.Sequential):
        backs = []
        for one in part:
            x, back = explicit(one, x, rule)
            backs.append(back)
        return x, lambda signal: _in_turn(backs[::-1], signal)
    if isinstance(part, Beside | Sum):
        made, backs = zip(*[explicit(one, x, rule) for one in part.parts], strict=True)
        if isinstance(part, Sum):
            return sum(made), lambda signal: sum(back(signal) for back in backs)
        sizes = [one.shape[1] for one in made]
        return torch.cat(made, 1), lambda signal: sum(
            back(one) for back, one in zip(backs, signal.split(sizes, 1), strict=True)
        )
    for kinds, step in STEPS.items():
        if isinstance(part, kinds):
            return step(part, x, rule)
    return explicit(parts_of(part), x, rule)


def _in_turn(backs: list[Back], signal: Tensor) -> Tensor:
    for back in backs:
        signal = back(signal)
    return signal


def _identity(module: nn.Module, x: Tensor, rule: str) -> tuple[Tensor, Back]:
    return x, lambda signal: signal


def _flatten(module: nn.Module, x: Tensor, rule: str) -> tuple[Tensor, Back]:
    return x.flatten(1), lambda signal: signal.reshape(x.shape)


def _relu(module: nn.Module, x: Tensor, rule: str) -> tuple[Tensor, Back]:
    """The rule: of the signal, of the input, or of both."""
    y = torch.where(x > 0, x, 0)
    if rule == "deconvnet":
        return y, lambda signal: torch.where(signal > 0, signal, 0)
    if rule == "guided":
        return y, lambda signal: torch.where((signal > 0) & (x > 0), signal, 0)
    return y, lambda signal: torch.where(x > 0, signal, 0)


def _conv(conv: nn.Conv2d, x: Tensor, rule: str) -> tuple[Tensor, Back]:
    """Each value lays its filter, as it stands, on the pixels that it came from."""
    given = (conv.stride, conv.padding, conv.dilation, conv.groups)
    y = F.conv2d(x, conv.weight, conv.bias, *given)
    left = tuple(
        size - ((cells - 1) * stride - 2 * padding + dilation * (kernel - 1) + 1)
        for size, cells, stride, padding, dilation, kernel in zip(
            x.shape[2:], y.shape[2:], conv.stride, conv.padding, conv.dilation, conv.kernel_size, strict=True
        )
    )  # rows and columns that no window reached
    return y, lambda signal: F.conv_transpose2d(
        signal, conv.weight, None, conv.stride, conv.padding, left, conv.groups, conv.dilation
    )


def _linear(linear: nn.Linear, x: Tensor, rule: str) -> tuple[Tensor, Back]:
    y = x.flatten(1) @ linear.weight.T + linear.bias
    return y, lambda signal: (signal @ linear.weight).reshape(x.shape)


def _max_pool(pool: nn.MaxPool2d, x: Tensor, rule: str) -> tuple[Tensor, Back]:
    """What several windows send to one pixel adds up."""
    y, switches = F.max_pool2d(
        x, pool.kernel_size, pool.stride, pool.padding, pool.dilation, pool.ceil_mode, return_indices=True
    )

    def back(signal: Tensor) -> Tensor:
        pixels = torch.zeros_like(x).flatten(2)
        return pixels.scatter_add_(2, switches.flatten(2), signal.flatten(2)).view_as(x)

    return y, back


def _spread(rows: Tensor, columns: Tensor, x: Tensor) -> tuple[Tensor, Back]:
    """A pool of averages, by its weights of each axis (cell, pixel)."""
    return rows @ x @ columns.T, lambda signal: rows.T @ signal @ columns


def _adaptive_pool(pool: nn.AdaptiveAvgPool2d, x: Tensor, rule: str) -> tuple[Tensor, Back]:
    cells = pool.output_size if isinstance(pool.output_size, tuple) else (pool.output_size,) * 2

    def weights(cells: int, size: int) -> Tensor:
        made = x.new_zeros(cells, size)
        for cell in range(cells):
            first, end = cell * size // cells, -(-(cell + 1) * size // cells)
            made[cell, first:end] = 1 / (end - first)
        return made

    return _spread(weights(cells[0], x.shape[2]), weights(cells[1], x.shape[3]), x)


def _average_pool(pool: nn.AvgPool2d, x: Tensor, rule: str) -> tuple[Tensor, Back]:
    kernel, stride, padding = (
        value if isinstance(value, tuple) else (value,) * 2 for value in (pool.kernel_size, pool.stride, pool.padding)
    )
    cells = F.avg_pool2d(x, kernel, stride, padding, pool.ceil_mode).shape[2:]

    def weights(axis: int) -> Tensor:
        size = x.shape[2 + axis]
        made = x.new_zeros(cells[axis], size)
        for cell in range(cells[axis]):
            first = cell * stride[axis] - padding[axis]
            end = min(first + kernel[axis], size + padding[axis])
            inside = slice(max(first, 0), min(end, size))
            count = end - first if pool.count_include_pad else inside.stop - inside.start
            made[cell, inside] = 1 / count
        return made

    return _spread(weights(0), weights(1), x)


def _batch_norm(norm: nn.BatchNorm2d, x: Tensor, rule: str) -> tuple[Tensor, Back]:
    scale = (norm.weight / (norm.running_var + norm.eps).sqrt())[:, None, None]
    shift = norm.bias[:, None, None] - norm.running_mean[:, None, None] * scale
    return x * scale + shift, lambda signal: signal * scale


def _contrast_norm(norm: nn.LocalResponseNorm, x: Tensor, rule: str) -> tuple[Tensor, Back]:
    """y_c = x_c d_c^-b, d_c = k + a/n sum of x_j^2 over the n units around c; its Jacobian, transposed."""
    units = torch.arange(x.shape[1])
    distance = units[None] - units[:, None]
    near = ((distance >= -(norm.size // 2)) & (distance <= (norm.size - 1) // 2)).to(x)  # c, j
    d = norm.k + norm.alpha / norm.size * torch.einsum("cj,njyx->ncyx", near, x**2)

    def back(signal: Tensor) -> Tensor:
        sent = torch.einsum("cj,ncyx->njyx", near, signal * x * d ** (-norm.beta - 1))
        return signal * d**-norm.beta - 2 * norm.beta * norm.alpha / norm.size * x * sent

    return x * d**-norm.beta, back


STEPS: dict[Any, Callable[[Any, Tensor, str], tuple[Tensor, Back]]] = {
    (nn.Dropout, nn.Identity): _identity,
    nn.Flatten: _flatten,
    nn.ReLU: _relu,
    nn.Conv2d: _conv,
    nn.Linear: _linear,
    nn.MaxPool2d: _max_pool,
    nn.AdaptiveAvgPool2d: _adaptive_pool,
    nn.AvgPool2d: _average_pool,
    nn.BatchNorm2d: _batch_norm,
    nn.LocalResponseNorm: _contrast_norm,
}


def parts_of(block: nn.Module) -> Any:
    """Torchvision's blocks, which are no chains, as their papers draw them."""
    b: Any = block
    match block:
        case squeezenet.Fire():
            narrow = [b.squeeze, nn.ReLU()]
            return [*narrow, Beside(([b.expand1x1, nn.ReLU()], [b.expand3x3, nn.ReLU()]))]
        case resnet.BasicBlock():
            inner = [b.conv1, b.bn1, nn.ReLU(), b.conv2, b.bn2]
            return [Sum((inner, b.downsample or [])), nn.ReLU()]
        case resnet.Bottleneck():
            inner = [b.conv1, b.bn1, nn.ReLU(), b.conv2, b.bn2, nn.ReLU(), b.conv3, b.bn3]
            return [Sum((inner, b.downsample or [])), nn.ReLU()]
        case BasicConv2d():
            return [b.conv, b.bn, nn.ReLU()]
        case Inception():
            return Beside((b.branch1, b.branch2, b.branch3, b.branch4))
        case densenet._DenseLayer():
            return Beside(([], [b.norm1, b.relu1, b.conv1, b.norm2, b.relu2, b.conv2]))
        case densenet._DenseBlock():
            return list(b.values())
    raise NotImplementedError(type(block).__name__)


def as_far_as(network: nn.Module, layer: str) -> list[Any]:
    """The parts of a network that lead to a layer: a child of it, or of a sequence that is one."""
    parts: list[Any] = []
    for name, child in network.named_children():
        if layer == name:
            return [*parts, child]
        if layer.startswith(f"{name}."):
            return [*parts, *as_far_as(child, layer.removeprefix(f"{name}."))]
        parts.append(child)
    raise KeyError(layer)

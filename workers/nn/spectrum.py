"""How much of a picture lies about the Nyquist frequency of a network's first stride, and where that stride is.

    share = |{f: |f_y| or |f_x| in (f_N / sqrt 2, f_N * sqrt 2)}| / |all f|,   f_N = 1 / (2 stride) cycles a pixel

|.| is the energy of the picture's spectrum there, less its mean, summed over channels. A convolution with a stride
takes what lies above f_N for what lies as far below it. About f_N the two are neighbors, and a filter that lets
one pass lets the other pass too: this is the aliasing of Zeiler & Fergus 2014, section 4.1.

The bands are an octave wide. Images have about the same energy in every octave (Field 1987), so that shares at
strides of 2 and of 4 can be compared; and an octave is as wide as the lines of what first layers look at: .09 for 11 pixels
at stride 4, whose lines are 1/11 wide, .18 for 7 pixels at stride 2. White noise has 1 - (1 - 1 / (sqrt 2 stride))^2
there: .32 at stride 4, .58 at stride 2.

No window: a pattern is 0 outside its box, so nothing is cut off, and what goes back from the first layer has the
spectrum of the filter itself. An image that is cut out with the same box has the box's side lobes beside its own, which
can only make it look more aliased than it is. The energy of a band is an integral, not a sum over a DFT's frequencies,
so that how finely these lie has no say:

    integral over |f| in (a, b) of |X(f)|^2 = x^T K x,   K_mn = (sin 2 pi b d - sin 2 pi a d) / (pi d),   d = m - n
"""

from collections.abc import Sequence
from math import pi, sqrt
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Float64
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from workers.nn.meta import run_on_meta, shadow

HALF_BAND = sqrt(2)
"""From the Nyquist frequency to either edge of its band, as a factor: half an octave."""

_NOTHING = 1e-24
"""Share of a picture's energy that rounding leaves of a constant one."""


def nyquist_share(picture: Float[Tensor, "channel y x"], stride: int) -> float | None:
    """The share of a picture's spectral energy in the bands about a stride's Nyquist frequency, along either axis.

    Args:
        picture: in any units; neither its mean nor its scale has a say.
        stride: in pixels.

    Returns:
        From 0 to 1. None where the stride is 1, with which nothing is taken for anything else; where a side is
        shorter than the stride, half a period; or where the picture is constant.
    """
    if (varying := _varying(picture, stride)) is None:
        return None
    rows, columns = (_between(side, *band(stride), varying) for side in picture.shape[1:])
    within_rows = rows @ varying
    return _share(varying, within_rows + varying @ columns - within_rows @ columns)  # both are in either once


def above_nyquist_share(picture: Float[Tensor, "channel y x"], stride: int) -> float | None:
    """The share above a stride's Nyquist frequency along either axis: of a filter, what it lets pass and aliases.

    Args:
        picture: as `nyquist_share` has it.
        stride: in pixels.

    Returns:
        From 0 to 1, or None, as `nyquist_share`; white noise has 1 - 1 / stride^2.
    """
    if (varying := _varying(picture, stride)) is None:
        return None
    rows, columns = (_between(side, 0.0, 1 / (2 * stride), varying) for side in picture.shape[1:])
    return 1 - _share(varying, rows @ varying @ columns)


def _varying(picture: Tensor, stride: int) -> Float64[Tensor, "channel y x"] | None:
    """A picture less its mean; None where there is nothing to share."""
    if stride == 1 or min(picture.shape[1:]) < stride:
        return None
    given = picture.to(torch.float64)
    varying = given - given.mean((1, 2), keepdim=True)
    return varying if varying.square().sum() > _NOTHING * given.square().sum() else None


def _share(varying: Tensor, filtered: Tensor) -> float:
    return float(((varying * filtered).sum() / varying.square().sum()).clamp(0, 1))


def band(stride: int) -> tuple[float, float]:
    """The edges of the band about a stride's Nyquist frequency, in cycles a pixel."""
    nyquist = 1 / (2 * stride)
    return nyquist / HALF_BAND, nyquist * HALF_BAND


def noise_share(stride: int) -> float:
    """The share that white noise has in the bands: their area."""
    low, high = band(stride)
    return 1 - (1 - 2 * (high - low)) ** 2


def _between(size: int, low: float, high: float, like: Tensor) -> Float[Tensor, "m n"]:
    """What a signal's energy between two frequencies is a quadratic form by."""
    place = torch.arange(size, dtype=like.dtype, device=like.device)
    distance = place[:, None] - place
    apart = torch.where(distance == 0, 1.0, distance)
    kernel = (torch.sin(2 * pi * high * apart) - torch.sin(2 * pi * low * apart)) / (pi * apart)
    return torch.where(distance == 0, 2 * (high - low), kernel)


_STEPS = {F.linear, torch.matmul, torch.bmm, Tensor.matmul, Tensor.__matmul__, F.scaled_dot_product_attention}
"""What counts as much as a convolution: a layer behind it is no first layer."""


class _Depths(TorchFunctionMode):
    """Notes the longest chain of convolutions behind every tensor, and the strides of those that have none before."""

    def __init__(self) -> None:
        super().__init__()
        self.depth: dict[int, int] = {}
        self.first_strides: list[int] = []
        self._kept: list[Any] = []  # so that no id is given twice

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        before = max((self.depth.get(id(one), 0) for one in _tensors([*args, *kwargs.values()])), default=0)
        output = func(*args, **kwargs)
        depth = before
        if func is F.conv2d:
            kernel, stride = _sizes(args, kwargs)
            if max(kernel, stride) > 1:
                depth += 1
                if before == 0:
                    self.first_strides.append(stride)
        elif func in _STEPS:
            depth += 1
        changed = [args[0]] if func is Tensor.__setitem__ else [output]
        for one in _tensors(changed):
            self.depth[id(one)] = depth
        self._kept += [output, *args]
        return output


def _sizes(args: Sequence[Any], kwargs: dict[str, Any]) -> tuple[int, int]:
    """Side of a convolution's kernel, and its stride; of two, the larger."""
    weight = args[1] if len(args) > 1 else kwargs["weight"]
    stride = args[3] if len(args) > 3 else kwargs.get("stride", 1)
    return max(weight.shape[2:]), stride if isinstance(stride, int) else max(stride)


def _tensors(values: Sequence[Any]) -> list[Tensor]:
    found: list[Tensor] = []
    for value in values:
        if isinstance(value, Tensor):
            found.append(value)
        elif isinstance(value, list | tuple):
            found += _tensors(value)
    return found


def first_stride(module: nn.Module, input_shape: tuple[int, int, int]) -> int:
    """The stride of a network's first convolution; of several that read the image, and of two axes, the largest.

    Args:
        module: the network, in eval mode.
        input_shape: channels, rows, columns of one input image.

    Returns:
        In pixels; 1 where no convolution looks at more than a pixel.

    Raises:
        RuntimeError: the network does not run on such an input.
    """
    state = shadow(module)
    kind = next((tensor.dtype for tensor in state.values() if tensor.is_floating_point()), None)
    image = torch.empty(1, *input_shape, dtype=kind, device="meta")
    with torch.no_grad(), _Depths() as depths:
        torch.func.functional_call(module, state, (image,), tie_weights=False)
    return max(depths.first_strides, default=1)


def convolutions_before(module: nn.Module, layer: str, input_shape: tuple[int, int, int]) -> int:
    """The depth of a layer: the longest chain of convolutions from the image to its output, itself included.

    Convolutions of 1 x 1 and stride 1 do not count: they mix units where they are, and see no more than these. Linear
    layers and attention do.

    Args:
        module: the network, in eval mode.
        layer: dotted module name.
        input_shape: channels, rows, columns of one input image.

    Raises:
        ModelError: there is no such layer.
        RuntimeError: the network does not run on such an input.
    """
    found = 0

    def look(_layer: str, activation: Tensor) -> None:
        nonlocal found
        found = depths.depth.get(id(activation), 0)

    with _Depths() as depths:
        run_on_meta(module, layer, input_shape, look)
    return found

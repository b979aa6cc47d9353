"""The ReLUs of a network, however they are called, for the time of one forward pass.

`nn.ReLU`, `F.relu`, `torch.relu`, a tensor's own `relu`, in place or not, reused or not, and ReLU6 in its three
forms: every call passes a `TorchFunctionMode`, which is this thread's and ends with the `with`. Calls are numbered
in the order in which they happen, which is the same in every forward pass.
"""

from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from workers.activations import forward
from workers.nn.meta import run_on_meta

OnRelu = Callable[[int, Tensor, float, Callable[[], Tensor]], Tensor]
"""Called with the call's number, its input, the value it ends at (infinity, or 6), and what would compute it."""

_RELUS = {F.relu, F.relu_, torch.relu, torch.relu_, Tensor.relu, Tensor.relu_}
_CLIPPED = {F.relu6, F.hardtanh, F.hardtanh_}
_WITHOUT_EFFECT = {F.dropout, torch.dropout, F.dropout2d, Tensor.__getitem__}


class catch_relus(TorchFunctionMode):  # noqa: N801, used as a function
    """Have `on_relu` say what each ReLU returns."""

    def __init__(self, on_relu: OnRelu) -> None:
        super().__init__()
        self._on_relu = on_relu
        self._calls = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        end = relu_end(func, args, kwargs)
        if end is None:
            return func(*args, **kwargs)
        number, self._calls = self._calls, self._calls + 1
        given = args[0] if args else kwargs["input"]
        return self._on_relu(number, given, end, lambda: func(*args, **kwargs))


def relu_end(func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> float | None:
    """Where a ReLU ends: nowhere, or at 6; None for what is no ReLU."""
    if func in _RELUS:
        return float("inf")
    if func is F.relu6:
        return 6.0
    if func in _CLIPPED:
        low = args[1] if len(args) > 1 else kwargs.get("min_val", -1.0)
        high = args[2] if len(args) > 2 else kwargs.get("max_val", 1.0)
        return float(high) if low == 0 else None
    return None


class _Redirected(torch.autograd.Function):
    """A ReLU whose gradient, where it would be blocked, passes if following it leads out of the blocked range."""

    @staticmethod
    def forward(ctx: Any, given: Tensor, end: float) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx.save_for_backward(given)
        ctx.end = end
        return given.clamp(0, end) if end < float("inf") else given.clamp_min(0)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        (given,) = ctx.saved_tensors
        passes = ((given > 0) | (gradient > 0)) & ((given < ctx.end) | (gradient < 0))
        return gradient * passes, None


class _Provenance(TorchFunctionMode):
    """Notes which ReLU calls a tensor consists of, through concatenations and what has no effect in eval mode."""

    def __init__(self) -> None:
        super().__init__()
        self.made_of: dict[int, frozenset[int]] = {}
        self.read: set[int] = set()
        self._kept: list[Any] = []  # so that no id is given twice
        self._calls = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        parts = _tensors([*args, *kwargs.values()])
        if relu_end(func, args, kwargs) is not None:
            output, made_of = parts[0].clone(), frozenset({self._calls})  # as if it were never in place
            self._calls += 1
        else:
            output = func(*args, **kwargs)
            found = [self.made_of.get(id(part)) for part in parts]
            passes_on = func in _WITHOUT_EFFECT or func is torch.cat
            made_of = frozenset().union(*found) if passes_on and all(found) else None  # pyright: ignore[reportArgumentType]
            if made_of or not _tensors([output]):  # a shape or a size is no reading of values
                parts = []
        for part in parts:
            self.read |= self.made_of.get(id(part), frozenset())
        if made_of and isinstance(output, Tensor):
            self.made_of[id(output)] = made_of
        self._kept.append(output)
        return output


def _tensors(values: Sequence[Any]) -> list[Tensor]:
    found: list[Tensor] = []
    for value in values:
        if isinstance(value, Tensor):
            found.append(value)
        elif isinstance(value, list | tuple):
            found += [one for one in value if isinstance(one, Tensor)]
    return found


class _Seen(Exception):
    """Ends a forward pass: what comes after the layer need not run on such an input."""


def closing_relus(module: nn.Module, layer: str, input_shape: tuple[int, int, int]) -> frozenset[int]:
    """Number the ReLU calls that a layer's output consists of; none where it ends in something else.

    Args:
        module: the network, in eval mode.
        layer: dotted module name.
        input_shape: channels, rows, columns of one input image.

    Raises:
        ModelError: there is no such layer.
        RuntimeError: the network does not run on such an input as far as the layer.
    """
    found: frozenset[int] = frozenset()

    def look(_layer: str, activation: Tensor) -> None:
        nonlocal found
        found = provenance.made_of.get(id(activation), frozenset()) - provenance.read
        raise _Seen

    with suppress(_Seen), _Provenance() as provenance:
        run_on_meta(module, layer, input_shape, look)
    return found


class LayerFunction:
    """A network up to one layer, as a function of images that has a gradient.

    Args:
        module: the network, in eval mode; hooks sit on it only while it runs.
        layer: dotted module name.
        closing: the ReLU calls to leave out, as `closing_relus` numbers them; none measures the layer as it is.
    """

    def __init__(self, module: nn.Module, layer: str, closing: frozenset[int] = frozenset()) -> None:
        self._module, self._layer, self._closing = module, layer, closing

    def __call__(
        self, images: Float[Tensor, "image channel y x"], redirected: bool = False
    ) -> Float[Tensor, "image unit h w"]:
        """The layer's activation.

        Args:
            images: in the network's own input space.
            redirected: let the gradient pass ReLUs that block it, where following it leads out of where they do.

        Raises:
            ModelError: the layer's output is not one tensor of 4 or 2 dimensions.
        """
        found: list[Tensor] = []

        def on_relu(number: int, given: Tensor, end: float, compute: Callable[[], Tensor]) -> Tensor:
            if number in self._closing:
                return given
            return _Redirected.apply(given, end) if redirected else compute()  # pyright: ignore[reportReturnType]

        def keep(_layer: str, activation: Tensor) -> None:
            found.append(activation)

        if self._closing or redirected:
            with catch_relus(on_relu):
                forward(self._module, images, [self._layer], keep)
        else:
            forward(self._module, images, [self._layer], keep)
        return found[0]

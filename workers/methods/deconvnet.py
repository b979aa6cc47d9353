"""DeconvNet: what in an image drives a unit.

    R = W^T relu(R'),   switches from the forward pass undo the pools

Zeiler & Fergus 2014, section 2.1: all but one unit's map are set to zero, and what is left goes back to pixels through
transposed convolutions, with ReLU applied to the signal. That is the gradient, given this one rule for ReLUs:

    deconvnet    R = relu(R')               Zeiler & Fergus 2014
    gradient     R = R' * [x > 0]           Simonyan et al. 2014, section 4, shows that this is all the difference
    guided       R = relu(R') * [x > 0]     Springenberg et al. 2015, section 3.4

    for made in project(network, images, rounds): draw(made.pattern)

Differs from the paper: where pools overlap, what several windows send to one pixel is added up, as the transpose of
pooling has it; and contrast normalization goes back by its own transpose, where they leave it out.
With `extend`, activations that stand in a ReLU's place follow its rule, gates are taken as they were in the forward
pass, like switches, and attention keeps its gradient.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.overrides import TorchFunctionMode

from workers.nn.nonlinearities import nonlinearity

Rule = Literal["deconvnet", "guided", "gradient"]
Keep = Literal["cell", "map"]


class NonlinearityError(ValueError):
    """The network calls nonlinearities that the rule has no word for; the message names the first."""


@dataclass(frozen=True)
class Round:
    """One unit for each image of a batch; images that have none are left at 0.

    Attributes:
        unit: which; -1 for none.
        y: grid row of the cell to keep; of no say with keep=map.
        x: grid column.
    """

    unit: Int64[Tensor, " image"]
    y: Int64[Tensor, " image"]
    x: Int64[Tensor, " image"]


@dataclass(frozen=True)
class Projection:
    """What came of a round.

    Attributes:
        pattern: in the network's input space; 0 for images that had no unit.
        activation: the unit's value at the cell.
    """

    pattern: Float[Tensor, "image channel y x"]
    activation: Float[Tensor, " image"]


class _Rectify(torch.autograd.Function):
    """ReLU whose backward is a ReLU too; of the forward pass it asks nothing, or with `gated` where it was open."""

    @staticmethod
    def forward(ctx: Any, given: Tensor, gated: bool, in_place: bool) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        if in_place:
            ctx.mark_dirty(given)
        output = given.clamp_min_(0) if in_place else given.clamp_min(0)
        ctx.save_for_backward(*([output > 0] if gated else []))
        return output

    @staticmethod
    def backward(ctx: Any, signal: Tensor) -> tuple[Tensor, None, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        signal = signal.clamp_min(0)
        for is_open in ctx.saved_tensors:
            signal = signal * is_open
        return signal, None, None


class _RectifySignal(torch.autograd.Function):
    """The given value, whatever it was made of; its backward is a ReLU."""

    @staticmethod
    def forward(ctx: Any, given: Tensor, value: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        return value.clone()

    @staticmethod
    def backward(ctx: Any, signal: Tensor) -> tuple[Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return signal.clamp_min(0), None


class _Rules(TorchFunctionMode):
    """Has every nonlinearity of a forward pass go back by a rule; this thread's, and ends with the `with`."""

    def __init__(self, rule: Rule, extend: bool) -> None:
        super().__init__()
        self._rule, self._extend = rule, extend

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        found = nonlinearity(func, args, kwargs)
        if found is None or self._rule == "gradient":
            return func(*args, **kwargs)
        kind, name = found
        given = args[0] if args else kwargs["input"]
        if kind == "relu":
            return _Rectify.apply(given, self._rule == "guided", _is_in_place(func, args, kwargs))
        if not self._extend:
            raise NonlinearityError(f"the network calls {name}, for which rule={self._rule} is not defined")
        if kind == "attention":
            return func(*args, **kwargs)
        before = given.clone()  # for the call may be in place, and the signal goes back to what was there before
        value = func(before, *args[1:], **{name: value for name, value in kwargs.items() if name != "input"})
        in_place = value is before
        if kind == "gate":
            value = value.detach()
        else:
            value = _RectifySignal.apply(value if self._rule == "guided" else given, value.detach())
        return given.copy_(value) if in_place else value


def _is_in_place(func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> bool:
    """Whether a call of a ReLU changes its input, on which something may rely."""
    return func.__name__.endswith("_") or bool(kwargs.get("inplace", len(args) > 1 and args[1]))


def project(
    network: Callable[[Tensor], Tensor],
    images: Float[Tensor, "image channel y x"],
    rounds: Sequence[Round],
    rule: Rule = "deconvnet",
    keep: Keep = "cell",
    extend: bool = False,
) -> Iterator[Projection]:
    """Project units back to the pixels of a batch of images: one forward pass, one backward pass a round.

    Args:
        network: as far as the layer; images to its activation, `image unit h w`.
        images: in the network's input space.
        rounds: the units.
        rule: of ReLUs on the way back.
        keep: one cell's activation, or the unit's whole map.
        extend: whether other nonlinearities are let pass.

    Raises:
        NonlinearityError: the network has others than ReLU, and `extend` is not set; or the layer is a gate.
    """
    images = images.detach().requires_grad_()
    with torch.enable_grad(), _Rules(rule, extend):
        activation = network(images.clone())  # which it may change in place
    if extend and not activation.requires_grad:
        raise NonlinearityError("nothing but gates lead from the image to the layer, and gates are held: no pattern")
    every = torch.arange(len(images), device=images.device)
    for place, one in enumerate(rounds):
        some, unit = one.unit >= 0, one.unit.clamp_min(0)
        value = activation.detach()[every, unit, one.y, one.x].where(some, 0)
        signal = torch.zeros_like(activation)
        if keep == "cell":
            signal[every, unit, one.y, one.x] = value
        else:
            signal[every, unit] = activation.detach()[every, unit].where(some[:, None, None], 0)
        (pattern,) = torch.autograd.grad(activation, images, signal, retain_graph=place + 1 < len(rounds))
        yield Projection(pattern, value)

"""One forward pass or two: whether a layer's tail maps are kept in staging, or made again for the tally.

Kept, they cost bytes: written once, and read by everything that looks at masks. Made again, they cost
one more forward pass, which all such layers share. Deep layers have few cells and are cheap to keep;
the first layers of a VGG have millions an image and are reached soon. Tables are the same either way.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

Passes = Literal["auto", "one", "two"]

SECONDS_PER_BYTE = 1e-8
"""To find, compress, write, read and unpack a byte of tail maps on one core; about as much was measured on AlexNet."""

KEPT_PER_CELL_ABOVE = 4.3
"""Cells kept for every cell above its bound, it and its neighbors; 3.6 to 4.6 were measured on AlexNet and SqueezeNet."""

GIB = 2**30


@dataclass(frozen=True)
class Estimate:
    """What a layer would cost, over the whole data set.

    Attributes:
        layer: its name.
        bytes: of tail maps to keep.
        seconds: of one worker's forward pass up to the layer, as the pilot took.
    """

    layer: str
    bytes: int
    seconds: float


@dataclass(frozen=True)
class Choice:
    """How often the images go through the network for a layer, and why."""

    passes: Literal["one", "two"]
    reason: str

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def choose(estimates: Sequence[Estimate], asked: Passes, limit: float) -> dict[str, Choice]:
    """Choose for every layer.

    A second pass up to some layer serves all layers before it. So there are as many sensible choices as
    layers, and one more; the one with the fewest seconds is taken, of those that fit the limit.

    Args:
        estimates: of the layers that share the pass.
        asked: one or two settles it.
        limit: bytes of tail maps that may be kept; where even the last layer's do not fit, none are.
    """
    if asked != "auto":
        return {one.layer: Choice(asked, f"passes={asked} was asked for") for one in estimates}
    options = []
    for again in (0.0, *sorted(one.seconds for one in estimates)):
        kept = sum(one.bytes for one in estimates if one.seconds > again)
        options.append((kept > limit, again + kept * SECONDS_PER_BYTE, again))
    _, _, again = min(options)
    return {one.layer: _explain(one, again, limit) for one in estimates}


def _explain(one: Estimate, again: float, limit: float) -> Choice:
    size = f"tail maps take about {one.bytes / GIB:.3g} GiB, {one.bytes * SECONDS_PER_BYTE:.3g} s to write and read"
    if one.seconds > again:
        return Choice("one", f"{size}; a second forward pass this far takes {one.seconds:.3g} s")
    why = f"a second forward pass takes {again:.3g} s for all layers that share it"
    return Choice("two", f"{size}, at most {limit / GIB:.3g} GiB are allowed; {why}")

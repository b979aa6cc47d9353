"""Where flags are set, few of them."""

import torch
from jaxtyping import Bool, Int64
from torch import Tensor


def places_of(flags: Bool[Tensor, " flag"]) -> Int64[Tensor, " place"]:
    """As `nonzero`, many times as fast where few flags are set, for it looks at eight of them together."""
    whole = len(flags) // 8 * 8
    eights = flags[:whole].view(-1, 8)
    some = eights.view(torch.int64).flatten().nonzero().flatten()
    which, bit = eights.index_select(0, some).nonzero(as_tuple=True)
    return torch.cat([some.index_select(0, which) * 8 + bit, flags[whole:].nonzero().flatten() + whole])

"""What keeps pictures that are made by gradients near natural ones: penalties, and operators on the picture.

All work on a batch, each image by itself. Shapes: `image channel y x`; 0 is the mean color. Sources: Simonyan et al.
2014, section 2 (decay); Yosinski et al. 2015, section 3 (blur, clipping by norm and by contribution); Mahendran & Vedaldi
2016, section 3 (total variation, jitter).
"""

import math

import torch
from jaxtyping import Float, Int64
from torch import Tensor

BLUR_REACH = 4.0
"""Standard deviations after which a Gaussian is cut off, as SciPy's filter does it."""


def decay(images: Float[Tensor, "image channel y x"], rate: float) -> Float[Tensor, "image channel y x"]:
    """x <- (1 - rate) x: a step against the gradient of rate/2 ||x||^2."""
    return images * (1 - rate)


def gaussian_blur(images: Float[Tensor, "image channel y x"], sigma: float) -> Float[Tensor, "image channel y x"]:
    """Convolve with a Gaussian of `sigma` pixels; beyond its edges an image goes on as its mirror image."""
    rows, columns = (_blur_matrix(size, sigma).to(images) for size in images.shape[-2:])
    return rows @ images @ columns.T


def _blur_matrix(size: int, sigma: float) -> Float[Tensor, "size size"]:
    reach = int(BLUR_REACH * sigma + 0.5)
    offset = torch.arange(-reach, reach + 1)
    weight = torch.exp(-0.5 * (offset.double() / sigma) ** 2)
    place = (torch.arange(size)[:, None] + offset) % (2 * size)  # d c b a | a b c d | d c b a
    place = torch.where(place < size, place, 2 * size - 1 - place)
    matrix = torch.zeros(size, size, dtype=torch.float64)
    return matrix.scatter_add_(1, place, (weight / weight.sum()).expand(size, -1))


def clip_small_norms(images: Float[Tensor, "image channel y x"], percent: float) -> Float[Tensor, "image channel y x"]:
    """Set to the mean color the pixels whose norm is below this percentile of the image's."""
    return _clip(images, images.square().sum(1), percent)  # squares are in the order of the norms


def clip_small_contributions(
    images: Float[Tensor, "image channel y x"], gradient: Float[Tensor, "image channel y x"], percent: float
) -> Float[Tensor, "image channel y x"]:
    """Likewise those that contribute least to the objective: |g . x|, by how much it would change without the pixel."""
    return _clip(images, (gradient * images).sum(1).abs(), percent)


def _clip(images: Tensor, amount: Float[Tensor, "image y x"], percent: float) -> Tensor:
    """A value is below an interpolated percentile just if it is below the next value that is not under its place."""
    flat = amount.flatten(1)
    place = math.ceil(percent * (flat.shape[1] - 1) / 100)
    limit = flat.kthvalue(place + 1, dim=1).values
    return images * (amount >= limit[:, None, None])[:, None]


def total_variation(images: Float[Tensor, "image channel y x"], beta: float) -> Float[Tensor, " image"]:
    """TV_beta = sum over pixels and channels of (dx^2 + dy^2)^(beta/2), differences to the right and below."""
    down = images.diff(dim=2)[..., :-1]
    right = images.diff(dim=3)[..., :-1, :]
    squares = down.square() + right.square()
    if beta == 2:
        return squares.sum((1, 2, 3))
    tiny = torch.finfo(squares.dtype).tiny  # so that the root's gradient at 0 is 0, not NaN
    return (squares + tiny).pow(beta / 2).sum((1, 2, 3))


def roll(
    images: Float[Tensor, "image channel y x"], offset: Int64[Tensor, "image 2"]
) -> Float[Tensor, "image channel y x"]:
    """Shift each image by its own rows and columns; what leaves at one edge comes in at the other."""
    return torch.stack([one.roll((y, x), (1, 2)) for one, (y, x) in zip(images, offset.tolist(), strict=True)])

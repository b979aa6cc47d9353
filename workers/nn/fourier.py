"""Pictures as Fourier coefficients of decorrelated colors, and the transformations that keep them robust.

    rgb = sigmoid(C irfft2(z / max(f, 1/size)) sqrt(y x) / 4)

Olah, Mordvintsev & Schubert 2017 ("Feature visualization": preconditioning, transformation robustness). C is the
square root of the covariance of the colors of ImageNet's pixels, scaled to a largest column norm of 1, the numbers of
Lucid. Shapes: `image channel y x`.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

COLORS = ((0.26, 0.09, 0.02), (0.27, 0.00, -0.05), (0.27, -0.09, 0.03))
DULL = 0.02
"""Nearest to black and white that an image is taken as, whose coefficients are looked for."""


def _colors(like: Tensor) -> Float[Tensor, "rgb color"]:
    colors = torch.tensor(COLORS, dtype=torch.float64)
    return (colors / colors.norm(dim=0).max()).to(like)


def _amplitude(height: int, width: int, like: Tensor) -> Float[Tensor, "y half_x"]:
    y, x = (f(size, dtype=torch.float64) for f, size in ((torch.fft.fftfreq, height), (torch.fft.rfftfreq, width)))
    frequency = (y[:, None].square() + x.square()).sqrt()
    return ((height * width) ** 0.5 / 4 / frequency.clamp(min=1 / max(height, width))).to(like)


def to_rgb(spectrum: Float[Tensor, "image 3 y half_x 2"], width: int) -> Float[Tensor, "image 3 y x"]:
    """The pictures, from 0 to 1, that coefficients stand for; `width` is theirs, odd or even."""
    height = spectrum.shape[2]
    amplitude = _amplitude(height, width, spectrum)
    pixels = torch.fft.irfft2(torch.view_as_complex(spectrum) * amplitude, s=(height, width))
    return (_colors(spectrum) @ pixels.flatten(2)).view_as(pixels).sigmoid()


def from_rgb(rgb: Float[Tensor, "image 3 y x"]) -> Float[Tensor, "image 3 y half_x 2"]:
    """The coefficients of pictures, `DULL` away from black and white at least."""
    height, width = rgb.shape[-2:]
    pixels = torch.einsum("cr,iryx->icyx", torch.linalg.inv(_colors(rgb)), rgb.clamp(DULL, 1 - DULL).logit())
    return torch.view_as_real(torch.fft.rfft2(pixels) / _amplitude(height, width, rgb)).contiguous()


@dataclass(frozen=True)
class Transformations:
    """What each picture goes through at every step, drawn anew: shifted, scaled, rotated about its center.

    Attributes:
        jitter: pixels it is shifted by at the most, either way.
        scales: the factors it is scaled by, one of them.
        degrees: the angles it is rotated by, one of them.
    """

    jitter: int
    scales: tuple[float, ...] = (1.0,)
    degrees: tuple[float, ...] = (0.0,)

    def __call__(
        self, images: Float[Tensor, "image channel y x"], draws: Float[Tensor, "image 4"], fill: Tensor
    ) -> Float[Tensor, "image channel y x"]:
        """Transform a batch, bilinearly.

        Args:
            images: pictures.
            draws: uniform in [0, 1): which shift down, shift right, scale and angle each gets.
            fill: what lies around a picture, `channel 1 1`.
        """
        height, width = images.shape[-2:]
        draws = draws.double()  # in float32 the largest would round to 1
        shift = (draws[:, :2] * (2 * self.jitter + 1)).floor() - self.jitter
        scale = _choose(self.scales, draws[:, 2])
        angle = _choose(self.degrees, draws[:, 3]).deg2rad()
        cosine, sine = angle.cos() / scale, angle.sin() / scale
        down, right = shift[:, 0] * 2 / height, shift[:, 1] * 2 / width
        rows = [
            torch.stack([cosine, -sine * height / width, -right], 1),
            torch.stack([sine * width / height, cosine, -down], 1),
        ]
        grid = F.affine_grid(torch.stack(rows, 1).to(images), list(images.shape), align_corners=False)
        return F.grid_sample(images - fill, grid, align_corners=False) + fill


def _choose(values: tuple[float, ...], draws: Float[Tensor, " image"]) -> Float[Tensor, " image"]:
    return draws.new_tensor(values)[(draws * len(values)).long()]

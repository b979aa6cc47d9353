"""A network's input space: where black, white and the mean color lie in it, and how long one pixel value is.

The mean color is 0 in every channel. Shapes: `image channel y x` in the network's order of channels.
"""

from dataclasses import dataclass
from math import ceil

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

FITS = 0.995
"""Share of an image that is drawn within the range of pixels: a few points could make all the rest gray."""


@dataclass(frozen=True)
class InputSpace:
    """What preprocessing does to colors.

    Attributes:
        mean: subtracted after scaling, a number a channel.
        std: divided by after that.
        scale: what pixel values from 0 to 255 are divided by first.
        bgr: whether the channels are in the order blue, green, red.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    scale: float = 255.0
    bgr: bool = False

    @property
    def pixel(self) -> float:
        """The length of one pixel value of 255, by the mean over the channels: what step sizes are measured in."""
        return sum(1 / (self.scale * std) for std in self.std) / len(self.std)

    def bounds(self, like: Tensor) -> tuple[Float[Tensor, "channel 1 1"], Float[Tensor, "channel 1 1"]]:
        """Black and white."""
        mean, std = (torch.tensor(values).to(like)[:, None, None] for values in (self.mean, self.std))
        return -mean / std, (255 / self.scale - mean) / std

    def from_rgb(self, rgb: Float[Tensor, "image 3 y x"]) -> Float[Tensor, "image 3 y x"]:
        """Colors from 0 to 1 as the network takes them."""
        black, white = self.bounds(rgb)
        return black + (rgb.flip(1) if self.bgr else rgb) * (white - black)

    def to_rgb(self, images: Float[Tensor, "image 3 y x"]) -> Float[Tensor, "image 3 y x"]:
        """The network's input as colors, from 0 to 1 where it is in the range of pixels."""
        black, white = self.bounds(images)
        rgb = (images - black) / (white - black)
        return rgb.flip(1) if self.bgr else rgb

    def draw(
        self, images: Float[Tensor, "image 3 y x"]
    ) -> tuple[UInt8[Tensor, "image y x 3"], Float[Tensor, " image"]]:
        """Turn images into pixels; one that leaves their range is drawn nearer to the mean color, until most of it fits.

        Returns:
            pixels, and what each image's distance from the mean color was multiplied with, at most 1.
        """
        black, white = self.bounds(images)
        darkest, lightest = torch.where(black < 0, black, -torch.inf), torch.where(white > 0, white, torch.inf)
        excess = torch.maximum(images / darkest, images / lightest)  # 1 on the edge of the range
        flat = excess.flatten(1)
        contrast = 1 / flat.kthvalue(ceil(FITS * flat.shape[1]), dim=1).values.clamp(min=1)
        rgb = self.to_rgb(images * contrast[:, None, None, None])
        return (rgb * 255).round_().clamp_(0, 255).byte().movedim(1, -1), contrast

    def draw_signed(self, images: Float[Tensor, "image 3 y x"], fits: float = 1.0) -> UInt8[Tensor, "image y x 3"]:
        """Draw what is no color but a direction, as a filter or a gradient: gray where it is 0.

        Args:
            images: in the network's input space.
            fits: share of an image's values that lie between black and white; others are drawn as these.
        """
        flat = images.flatten(1).abs()
        largest = flat.kthvalue(ceil(fits * flat.shape[1]), dim=1).values
        scale = largest.where(largest > 0, flat.amax(1)).clamp(min=torch.finfo(images.dtype).tiny)
        signed = images / scale[:, None, None, None]
        rgb = signed.flip(1) if self.bgr else signed
        return (rgb * 127.5 + 127.5).round_().clamp_(0, 255).byte().movedim(1, -1)

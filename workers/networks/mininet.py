"""MiniNet: a small AlexNet for the demo, trained on the spot on 112x112 images.

Five convolutions with ReLU, three overlapping max pools, as in Krizhevsky et al. 2012, section 3.5; narrower, and
with one hidden layer in the classifier. No dropout: its noise would be drawn from the global generator.

Two variants differ from one another in the first two convolutions as AlexNet and ZFNet do (Zeiler & Fergus 2014,
section 4.1), and in nothing else: from the third on, both have the same grids. That is what `diagnosis` compares. These
two convolutions begin with weights of .001, so that what is seen of a filter is what it learned: from He's, a few hundred
steps on a few hundred images leave a filter at a cosine of .99 with the white noise that it began as, and from the .01
that AlexNet and ZFNet began with half of it is noise still.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

SIZE = 112  # images are squashed to SIZE x SIZE, bilinear
MEAN = (0.5, 0.5, 0.5)  # of RGB in [0, 1]
STD = (0.25, 0.25, 0.25)

VARIANTS: dict[str, dict[str, Any]] = {
    "mininet": {},
    "minialexnet": {"kernel": 11, "stride": 4, "deviation": 0.001},
    "minizfnet": {"kernel": 7, "stride": 2, "second_stride": 2, "deviation": 0.001},
}
"""Arguments of `MiniNet` by the name of the network."""


class MiniNet(nn.Module):
    """Logits of `num_classes` classes for 112x112 RGB images.

    Args:
        num_classes: length of the output.
        generator: draws the initial weights; without one, the global generator does.
        kernel: side of the first convolution's kernel, odd.
        stride: of the first convolution.
        second_stride: of the second, which is 5 x 5.
        deviation: of the first two convolutions' initial weights; None takes He's, as all others have.
    """

    def __init__(
        self,
        num_classes: int = 8,
        generator: torch.Generator | None = None,
        kernel: int = 7,
        stride: int = 2,
        second_stride: int = 1,
        deviation: float | None = None,
    ) -> None:
        super().__init__()
        if num_classes < 1:
            raise ValueError(f"num_classes is {num_classes}, must be at least 1")
        side = _pooled(_pooled(-(-_pooled(-(-SIZE // stride)) // second_stride)))
        self.features = nn.Sequential(
            nn.Conv2d(3, 32, kernel, stride, padding=kernel // 2),
            nn.ReLU(),
            nn.MaxPool2d(kernel_size=3, stride=2),
            nn.Conv2d(32, 48, kernel_size=5, stride=second_stride, padding=2),
            nn.ReLU(),
            nn.MaxPool2d(kernel_size=3, stride=2),
            nn.Conv2d(48, 64, kernel_size=3, padding=1),
            nn.ReLU(),
            nn.Conv2d(64, 96, kernel_size=3, padding=1),
            nn.ReLU(),
            nn.Conv2d(96, 96, kernel_size=3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(kernel_size=3, stride=2),
        )
        self.classifier = nn.Sequential(
            nn.Flatten(),
            nn.Linear(96 * side * side, 128),
            nn.ReLU(),
            nn.Linear(128, num_classes),
        )
        self._initialize(generator, deviation)

    def forward(self, x: Float[Tensor, "image 3 112 112"]) -> Float[Tensor, "image class"]:
        return self.classifier(self.features(x))

    @torch.no_grad()
    def _initialize(self, generator: torch.Generator | None, deviation: float | None) -> None:
        for module in self.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu", generator=generator)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        if deviation is not None:
            for module in self.features[:4]:
                if isinstance(module, nn.Conv2d):
                    nn.init.normal_(module.weight, std=deviation, generator=generator)
        next(self.classifier[-1].parameters()).mul_(0.1)  # so that training starts from nearly equal logits


def _pooled(side: int) -> int:
    return (side - 3) // 2 + 1

"""MiniNet: a small AlexNet for the demo, trained on the spot on 112x112 images.

Five convolutions with ReLU, three overlapping max pools, as in Krizhevsky et al. 2012, section 3.5; narrower, and
with one hidden layer in the classifier. No dropout: its noise would be drawn from the global generator.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

SIZE = 112  # images are squashed to SIZE x SIZE, bilinear
MEAN = (0.5, 0.5, 0.5)  # of RGB in [0, 1]
STD = (0.25, 0.25, 0.25)


class MiniNet(nn.Module):
    """Logits of `num_classes` classes for 112x112 RGB images.

    Args:
        num_classes: length of the output.
        generator: draws the initial weights; without one, the global generator does.
    """

    def __init__(self, num_classes: int = 8, generator: torch.Generator | None = None) -> None:
        super().__init__()
        if num_classes < 1:
            raise ValueError(f"num_classes is {num_classes}, must be at least 1")
        self.features = nn.Sequential(
            nn.Conv2d(3, 32, kernel_size=7, stride=2, padding=3),
            nn.ReLU(),
            nn.MaxPool2d(kernel_size=3, stride=2),
            nn.Conv2d(32, 48, kernel_size=5, padding=2),
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
            nn.Linear(96 * 6 * 6, 128),
            nn.ReLU(),
            nn.Linear(128, num_classes),
        )
        self._initialize(generator)

    def forward(self, x: Float[Tensor, "image 3 112 112"]) -> Float[Tensor, "image class"]:
        return self.classifier(self.features(x))

    @torch.no_grad()
    def _initialize(self, generator: torch.Generator | None) -> None:
        for module in self.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu", generator=generator)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        next(self.classifier[-1].parameters()).mul_(0.1)  # so that training starts from nearly equal logits

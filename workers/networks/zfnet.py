"""ZFNet: the network that the DeconvNet's pictures of AlexNet led to.

Zeiler, Fergus: Visualizing and Understanding Convolutional Networks, ECCV 2014, Figure 3: smaller filters
(7 x 7) and stride (2) in the first layer, hence no dead filters and no aliasing there.

Grids are the published ones, 110, 55, 26, 13, 13, 13, 13, 6 for a 224 x 224 input; that takes one pixel of
padding in `conv1`, which the paper leaves out, and pools that round up. The paper gives no constants for
"contrast normalized across feature maps"; these are Krizhevsky et al. 2012's, section 3.3 (torch divides
alpha by the size, they do not). Input is RGB, pixel values from 0 to 255 less the mean; the output is logits.
"""

from collections import OrderedDict

from torch import nn

SIZE = 224
MEAN = (122.67891434, 116.66876762, 104.00698793)
"""Red, green, blue; the paper subtracts the mean image, this is its mean over pixels."""


class ZFNet(nn.Sequential):
    """ZFNet with CaffeNet's layer names, `conv1` to `fc8`.

    Args:
        num_classes: logits of `fc8`.
    """

    def __init__(self, num_classes: int = 1000) -> None:
        super().__init__(
            OrderedDict(
                conv1=nn.Conv2d(3, 96, 7, stride=2, padding=1),
                relu1=nn.ReLU(),
                pool1=nn.MaxPool2d(3, stride=2, ceil_mode=True),
                norm1=nn.LocalResponseNorm(5, alpha=5e-4, beta=0.75, k=2.0),
                conv2=nn.Conv2d(96, 256, 5, stride=2),
                relu2=nn.ReLU(),
                pool2=nn.MaxPool2d(3, stride=2, ceil_mode=True),
                norm2=nn.LocalResponseNorm(5, alpha=5e-4, beta=0.75, k=2.0),
                conv3=nn.Conv2d(256, 384, 3, padding=1),
                relu3=nn.ReLU(),
                conv4=nn.Conv2d(384, 384, 3, padding=1),
                relu4=nn.ReLU(),
                conv5=nn.Conv2d(384, 256, 3, padding=1),
                relu5=nn.ReLU(),
                pool5=nn.MaxPool2d(3, stride=2, ceil_mode=True),
                flatten=nn.Flatten(),
                fc6=nn.Linear(256 * 6 * 6, 4096),
                relu6=nn.ReLU(),
                drop6=nn.Dropout(0.5),
                fc7=nn.Linear(4096, 4096),
                relu7=nn.ReLU(),
                drop7=nn.Dropout(0.5),
                fc8=nn.Linear(4096, num_classes),
            )
        )

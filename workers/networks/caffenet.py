"""CaffeNet: AlexNet in one tower, as Caffe's `bvlc_reference_caffenet` has it.

Krizhevsky, Sutskever, Hinton: ImageNet Classification with Deep Convolutional Neural Networks, NIPS
2012; Jia et al.: Caffe, 2014. This is the network of Bau et al. 2017 and of most papers on inversion.

Differs from AlexNet in that pooling comes before the normalization. Layers have Caffe's names, weights
convert one to one, and `fc6` reads the map in Caffe's order (unit, row, column). Input is 227 x 227, BGR,
pixel values from 0 to 255 less the mean of ImageNet: convert no channel, divide by nothing. The output
is logits; Caffe's `prob` is left to the caller.
"""

from collections import OrderedDict

from torch import nn

SIZE = 227
MEAN = (104.00698793, 116.66876762, 122.67891434)
"""Blue, green, red; Caffe's `ilsvrc_2012_mean.npy` averaged over pixels."""


class CaffeNet(nn.Sequential):
    """CaffeNet with Caffe's layer names, `conv1` to `fc8`.

    Args:
        num_classes: logits of `fc8`.
    """

    def __init__(self, num_classes: int = 1000) -> None:
        super().__init__(
            OrderedDict(
                conv1=nn.Conv2d(3, 96, 11, stride=4),
                relu1=nn.ReLU(),
                pool1=nn.MaxPool2d(3, stride=2, ceil_mode=True),
                norm1=nn.LocalResponseNorm(5, alpha=1e-4, beta=0.75, k=1.0),
                conv2=nn.Conv2d(96, 256, 5, padding=2, groups=2),
                relu2=nn.ReLU(),
                pool2=nn.MaxPool2d(3, stride=2, ceil_mode=True),
                norm2=nn.LocalResponseNorm(5, alpha=1e-4, beta=0.75, k=1.0),
                conv3=nn.Conv2d(256, 384, 3, padding=1),
                relu3=nn.ReLU(),
                conv4=nn.Conv2d(384, 384, 3, padding=1, groups=2),
                relu4=nn.ReLU(),
                conv5=nn.Conv2d(384, 256, 3, padding=1, groups=2),
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

"""The networks that are measured, each with the layer that the bars are about."""

from dataclasses import dataclass

from benchmarks.data import shared_folder


@dataclass(frozen=True)
class Network:
    """A network of the registry.

    Attributes:
        title: its name in tables.
        name: `model=...`.
        layer: the one layer that is dissected where it is not all.
        weights_file: below data/weights of the shared folder; random weights, seed 0, without it.
        fewer: by which the number of images is divided; slow networks have fewer.
    """

    title: str
    name: str
    layer: str
    weights_file: str = ""
    fewer: int = 1

    @property
    def weights(self) -> str:
        shared = shared_folder()
        path = shared / "data" / "weights" / self.weights_file if shared and self.weights_file else None
        return str(path) if path and path.exists() else "random"


ALEXNET = Network("AlexNet", "alexnet", "features.11")
VGG16 = Network("VGG16", "vgg16", "features.29", fewer=6)
SQUEEZENET = Network("SqueezeNet", "squeezenet1_1", "features.12", "squeezenet1_1_imagenet.safetensors")
RESNET18 = Network("ResNet-18", "resnet18", "layer4", fewer=3)
MININET = Network("MiniNet", "mininet", "features.9")

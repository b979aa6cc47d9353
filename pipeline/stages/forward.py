"""The forward pass over a shard, shared by the stages that need the network."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pipeline.stage import Job
from workers.activations import forward
from workers.batches import decode_image
from workers.methods.tail_maps import first_not_finite
from workers.models import LoadedModel
from workers.worker import Shard


class ActivationError(ValueError):
    """A layer's activations cannot be dissected; the message names layer, unit and image."""


@dataclass(frozen=True)
class Pictures:
    """A shard's images, decoded at the network's input size."""

    shard: Shard
    image_ids: list[int]
    paths: list[str]
    pixels: Tensor  # uint8, image channel y x


def picture_reader(job: Job, model: LoadedModel) -> Callable[[Shard], Pictures]:
    """Reads and decodes a shard."""
    size = model.preprocessing

    def read(shard: Shard) -> Pictures:
        table = job.store.read_table(shard.path, ["image_id", "image"])
        images = table["image"].to_pylist()
        pixels = [decode_image(image["bytes"], size.height, size.width, size.interpolation) for image in images]
        return Pictures(
            shard,
            table["image_id"].to_pylist(),
            [image["path"] for image in images],
            torch.from_numpy(np.stack(pixels).transpose(0, 3, 1, 2).copy()),
        )

    return read


def record_layers(
    job: Job, model: LoadedModel, pictures: Pictures, on_activation: Callable[[str, int, Tensor], None]
) -> None:
    """Run the network over a shard, batch by batch.

    Args:
        on_activation: called with the layer, the first image's place in the shard, and the layer's
            activation (image unit h w), which it must use up before it returns.

    Raises:
        ActivationError: an activation is NaN or infinite, or not of the size the layer had at first.
    """
    step = job.manifest.batch_size
    layers = list(pictures.shard.layers)
    for start in range(0, len(pictures.image_ids), step):
        batch = model.preprocessing.normalize(pictures.pixels[start : start + step].to(job.device))

        def check(layer: str, activation: Tensor, start: int = start) -> None:
            found = job.layers[layer].layer
            if activation.shape[1:] != (found.num_units, found.height, found.width):
                raise ActivationError(
                    f"layer {layer} gave {tuple(activation.shape[1:])} units x height x width, at first it was "
                    f"{(found.num_units, found.height, found.width)}"
                )
            if (bad := first_not_finite(activation)) is not None:
                image = pictures.paths[start + bad[0]]
                raise ActivationError(
                    f"layer {layer}, unit {bad[1]}, image {image}: the activation is NaN or infinite; "
                    "look at the weights, or leave the image out"
                )
            on_activation(layer, start, activation)

        forward(model.module, batch, layers, check)

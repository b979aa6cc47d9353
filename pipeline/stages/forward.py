"""The forward pass over a shard, shared by the stages that need the network."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.stage import Job
from workers.activations import forward
from workers.batches import decode_image
from workers.methods.tail_maps import first_not_finite
from workers.models import LoadedModel
from workers.precision import DTYPES, MEMORY_FORMATS, rounding
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
    """Reads a shard and decodes it on `job.decode_threads` threads; for a GPU into memory that it can fetch from."""
    size = model.preprocessing
    on_gpu = torch.device(job.device).type == "cuda"
    pool = ThreadPoolExecutor(job.decode_threads, "decoder") if job.decode_threads > 1 else None

    def read(shard: Shard) -> Pictures:
        table = job.store.read_table(shard.path, ["image_id", "image"])
        images = table["image"].to_pylist()
        pixels = torch.empty((len(images), 3, size.height, size.width), dtype=torch.uint8, pin_memory=on_gpu)
        planes = pixels.numpy()  # the same memory

        def decode(index: int) -> None:
            image = decode_image(images[index]["bytes"], size.height, size.width, size.interpolation)
            planes[index] = image.transpose(2, 0, 1)

        for _ in (pool.map if pool else map)(decode, range(len(images))):
            pass
        return Pictures(shard, table["image_id"].to_pylist(), [image["path"] for image in images], pixels)

    return read


def record_layers(
    job: Job, model: LoadedModel, pictures: Pictures, on_activation: Callable[[str, int, Tensor], None]
) -> None:
    """Run the network over a shard, batch by batch.

    Args:
        on_activation: called with the layer, the first image's place in the shard, and the layer's
            activation (image unit h w, float32, contiguous), which it must use up before it returns.

    Raises:
        ActivationError: an activation is NaN or infinite, or not of the size the layer had at first.
    """
    step, numerics = job.manifest.batch_size, job.study.numerics
    dtype, memory_format = DTYPES[numerics.precision], MEMORY_FORMATS[numerics.memory_format]
    layers = list(pictures.shard.layers)
    for start in range(0, len(pictures.image_ids), step):
        pixels = pictures.pixels[start : start + step].to(job.device, non_blocking=True)
        batch = model.preprocessing.normalize(pixels).to(dtype, memory_format=memory_format)

        def check(layer: str, activation: Tensor, start: int = start) -> None:
            activation = activation.to(torch.float32, memory_format=torch.contiguous_format)
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
                    f"look at the weights, or leave the image out{_largest(dtype)}"
                )
            on_activation(layer, start, activation)

        with rounding(numerics.precision):
            forward(model.module, batch, layers, check)


def _largest(dtype: torch.dtype) -> str:
    if dtype != torch.float16:
        return ""
    return f"; cluster.precision=float16 ends at {torch.finfo(dtype).max:g}, bfloat16 does not"

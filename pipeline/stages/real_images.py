"""A unit's exemplars as images: what to compare with, and where to start from."""

from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow.parquet as pq
import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor

from pipeline.errors import StoreError
from pipeline.results import find_result, read_result_table
from pipeline.stage import Job, LayerJob
from schemas import EXEMPLARS, THRESHOLDS
from workers.batches import decode_image
from workers.nn.viewport import Axis


@dataclass(frozen=True)
class RealImage:
    """An exemplar: which image, and the cell where the unit's map is largest."""

    image_id: int
    y: int
    x: int


def read_exemplars(job: Job, layer: LayerJob) -> dict[int, list[RealImage]]:
    """The exemplars of every unit that has some, by rank."""
    columns = ["unit", "rank", "image_id", "y", "x"]
    found: dict[int, list[RealImage]] = defaultdict(list)
    table = read_result_table(job.store, layer.inputs["exemplars"], EXEMPLARS, columns)
    for row in table.sort_by([("unit", "ascending"), ("rank", "ascending")]).to_pylist():
        found[row["unit"]].append(RealImage(row["image_id"], row["y"], row["x"]))
    return dict(found)


def read_maxima(job: Job, layer: LayerJob) -> dict[int, float]:
    """Every unit's largest cell over all images: also of units that saturate, and so have no exemplars."""
    exemplars = layer.inputs["exemplars"]
    thresholds = find_result(
        job.store, job.study.study_id, "thresholds", layer.layer.name, exemplars.inputs["thresholds"]
    )
    if thresholds is None:
        raise StoreError(f"result {exemplars.inputs['thresholds']}, which {exemplars.path} was made from, is gone")
    table = read_result_table(job.store, thresholds, THRESHOLDS, ["unit", "max"])
    return dict(zip(table["unit"].to_pylist(), table["max"].to_pylist(), strict=True))


def read_images(job: Job, image_ids: Collection[int]) -> dict[int, bytes]:
    """The encoded images of some ids; of a shard, only the batches that hold one are read."""
    found: dict[int, bytes] = {}
    for entry in job.manifest.shards:
        rows = sorted(one - entry.first_image for one in image_ids if 0 <= one - entry.first_image < entry.rows)
        if not rows:
            continue
        groups = sorted({row // job.manifest.batch_size for row in rows})

        def parse(file: object, groups: list[int] = groups) -> list[dict]:
            source = pq.ParquetFile(file, pre_buffer=False)
            return source.read_row_groups(groups, ["image_id", "image"], use_threads=False).to_pylist()

        wanted = {entry.first_image + row for row in rows}
        found |= {
            row["image_id"]: row["image"]["bytes"]
            for row in job.store.parse(entry.path, parse)
            if row["image_id"] in wanted
        }
    return found


def decode(job: Job, data: bytes) -> UInt8[Tensor, "3 y x"]:
    """An image as the network's preprocessing squashes it."""
    size = job.study.preprocessing
    image = decode_image(data, size["height"], size["width"], size["interpolation"])
    return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))


def seen_by_center(
    images: Sequence[Float[Tensor, "3 y x"]], cells: Sequence[RealImage], axes: tuple[Axis, Axis]
) -> Float[Tensor, "image 3 rows columns"]:
    """Cut images so that what each one's cell sees lies where the center cell looks; beyond them is the mean color.

    Where a cell sees everything, the whole image is squashed to the size that is wanted.
    """
    if axes[0].stride is None:
        size = [layout.side for layout in axes]
        return torch.cat([F.interpolate(one[None], size, mode="bilinear", antialias=True) for one in images])
    cut = torch.zeros(len(images), 3, axes[0].side, axes[1].side)
    for place, (image, real) in enumerate(zip(images, cells, strict=True)):
        (to_y, from_y), (to_x, from_x) = (
            _overlap(size, layout, cell)
            for size, layout, cell in zip(image.shape[1:], axes, (real.y, real.x), strict=True)
        )
        cut[place, :, to_y, to_x] = image[:, from_y, from_x]
    return cut


def _overlap(size: int, layout: Axis, cell: int) -> tuple[slice, slice]:
    """Where pixels go, and where they come from, along one axis."""
    shift = 0 if layout.stride is None else round(layout.stride * (cell - layout.cell))
    first, last = max(0, -shift), min(layout.side, size - shift)
    return slice(first, max(first, last)), slice(first + shift, max(first, last) + shift)

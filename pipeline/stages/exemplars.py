"""Exemplars: the images that activate each unit most, with the mask outlined."""

from collections import defaultdict
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import pyarrow as pa
import torch
from pydantic import Field
from torch import Tensor

from pipeline.stage import Job, LayerJob, Reduced, stage_writer, staged_tables
from pipeline.stages.masks import MaskSettings
from pipeline.stages.tails import MapSource, ShardMaps, ShardSource, read_top_images
from pipeline.stages.tally import read_thresholds
from schemas import EXEMPLARS, Table
from workers.methods.dissection import Alignment, binarize
from workers.pictures import decode_picture, dim, outline, to_jpeg
from workers.worker import Shard, Worker

PARTIAL = Table("partial_exemplars", 1, pa.schema(list(EXEMPLARS.schema)[3:]), sort=("unit", "rank"))

Wanted = dict[int, list[tuple[int, int]]]
"""image_id -> (unit, rank) of the exemplars it is."""


@dataclass(frozen=True)
class ShardExemplars:
    """What a shard's exemplars are drawn from."""

    shard: Shard
    images: dict[int, tuple[bytes, str]]
    source: ShardSource


class Exemplars(MaskSettings):
    """For each unit the images with the largest maxima, of those on which its mask is not empty."""

    name: ClassVar[str] = "exemplars"
    inputs: ClassVar[tuple[str, ...]] = ("record", "thresholds")

    count: int = Field(9, ge=1, le=100)  # Zeiler & Fergus 2014, section 4: top 9; at most `top_images` of record
    picture_size: int = Field(224, ge=16)  # longer side, in pixels

    def shards(self, job: Job) -> list[Shard]:
        return job.shards

    def build(self, job: Job) -> Worker:
        thresholds = {name: read_thresholds(job, layer) for name, layer in job.layers.items()}
        wanted = {name: self._choose(job, layer, thresholds[name]) for name, layer in job.layers.items()}
        source = MapSource(job, thresholds)
        input_size = (job.study.preprocessing["height"], job.study.preprocessing["width"])
        alignments = {name: self.alignment(layer.layer, input_size) for name, layer in job.layers.items()}

        def read(shard: Shard) -> ShardExemplars:
            ids = range(shard.first_image, shard.first_image + shard.rows)
            needed = {layer: [image for image in ids if image in wanted[layer]] for layer in shard.layers}
            every = set().union(*needed.values())
            table = job.store.read_table(shard.path, ["image_id", "image"]).to_pylist() if every else []
            images = {r["image_id"]: (r["image"]["bytes"], r["image"]["path"]) for r in table if r["image_id"] in every}
            layers = tuple(layer for layer in shard.layers if needed[layer])
            return ShardExemplars(shard, images, source.read(replace(shard, layers=layers)))

        @torch.inference_mode()
        def compute(loaded: ShardExemplars) -> dict[str, pa.Table]:
            rows: dict[str, list[dict]] = {layer: [] for layer in loaded.shard.layers}
            maps: dict[tuple[int, str], ShardMaps] = {}  # of the exemplars, in the order of `wanted`

            def take(layer: str, found: ShardMaps) -> None:
                for image_id in wanted[layer].keys() & set(found.image_id.tolist()):
                    units = torch.tensor([unit for unit, _ in wanted[layer][image_id]])
                    of_image = (found.image_id == image_id).nonzero().flatten()
                    maps[image_id, layer] = found[of_image[torch.searchsorted(found.unit[of_image], units)]]

            source.each(loaded.source, take)
            for image_id, (data, path) in sorted(loaded.images.items()):
                image = decode_picture(data, self.picture_size)
                dimmed = dim(image)
                for layer in loaded.shard.layers:
                    if (image_id, layer) not in maps:
                        continue
                    chosen, found = wanted[layer][image_id], maps[image_id, layer]
                    for (unit, rank), activation, mask in self._masks(
                        job.layers[layer], found, chosen, thresholds[layer], image.shape[:2], alignments[layer]
                    ):
                        best = int(activation.argmax())
                        rows[layer].append(
                            {
                                "unit": unit,
                                "rank": rank,
                                "image_id": image_id,
                                "image": path,
                                "activation": activation.flatten()[best].item(),
                                "y": best // activation.shape[1],
                                "x": best % activation.shape[1],
                                "mask_pixels": int(mask.sum()),
                                "picture": {"bytes": to_jpeg(outline(image, dimmed, mask)), "path": None},
                            }
                        )
            return {layer: PARTIAL.cast(pa.Table.from_pylist(r, schema=PARTIAL.schema)) for layer, r in rows.items()}

        return Worker(read, compute, stage_writer(job), alone=source.runs_network)

    def reduce(self, job: Job, layer: LayerJob) -> Reduced:
        parts = [part for _, _, part in staged_tables(job.store, layer.result_id, self.shards(job), "arrow")]
        return Reduced({"exemplars": pa.concat_tables(parts).replace_schema_metadata(None)})

    def _choose(self, job: Job, layer: LayerJob, threshold: Tensor) -> Wanted:
        """The exemplars of every unit; `top_images` comes in descending order within a unit."""
        table = read_top_images(job, layer)
        unit, image, largest = (table[name].to_numpy() for name in ("unit", "image_id", "max"))
        wanted, taken = defaultdict(list), np.zeros(layer.layer.num_units, dtype=np.int64)
        for row in np.flatnonzero(largest > threshold.numpy()[unit]):
            if taken[unit[row]] < self.count:
                wanted[int(image[row])].append((int(unit[row]), int(taken[unit[row]])))
                taken[unit[row]] += 1
        return dict(wanted)

    def _masks(
        self,
        layer: LayerJob,
        maps: ShardMaps,
        chosen: list[tuple[int, int]],
        threshold: Tensor,
        size: tuple[int, int],
        alignment: tuple[Alignment, Alignment] | None,
    ) -> list[tuple[tuple[int, int], Tensor, np.ndarray]]:
        """Map and mask of the chosen units on one image."""
        activation = maps.map.view(-1, layer.layer.height, layer.layer.width)
        mask = binarize(activation, threshold[maps.unit], (size[0], size[1]), self.mask_order, alignment).numpy()
        return list(zip(chosen, activation, mask, strict=True))

"""Tally: count the pixels where each unit's mask meets each concept."""

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import torch
from pydantic import Field
from torch import Tensor

from pipeline.columns import to_tensor
from pipeline.results import read_result_table
from pipeline.stage import Job, LayerJob, Reduced, stage_writer, staged_tables
from pipeline.stages.labels import ConceptIndex, read_annotations
from pipeline.stages.masks import MaskSettings
from pipeline.stages.tails import ShardMaps, read_tail_maps
from schemas import THRESHOLDS
from schemas.areas import AREA_COUNTS
from schemas.staging import PARTIAL_TALLY
from schemas.tally import CONCEPT_COUNTS
from workers.methods.dissection import Alignment, Annotation, Counts, binarize, derangement
from workers.worker import Shard, Worker

OWN_LABELS = -1
"""The `permutation` of rows that count an image's masks against its own labels."""

CONCEPT_COLUMNS = [column.name for column in CONCEPT_COUNTS]
AREA_COLUMNS = [column.name for column in AREA_COUNTS]
KEY = ["permutation", "unit", "split", "concept_id", "category"]


@dataclass(frozen=True)
class LabelledMaps:
    """A shard's annotations, whose labels each image's masks meet, and the tail maps of every layer."""

    shard: Shard
    annotations: dict[int, Annotation]
    pairings: dict[int, dict[int, int]]  # permutation -> image_id -> image_id
    maps: dict[str, ShardMaps]


class Tally(MaskSettings):
    """I[u,c] and the areas every meaning of A' needs, for the images' own labels and for the null."""

    name: ClassVar[str] = "tally"
    inputs: ClassVar[tuple[str, ...]] = ("record", "thresholds")

    null_permutations: int = Field(1, ge=0)  # derangements of the images within each shard; 0 turns the null off
    null_seed: int = 0

    def shards(self, job: Job) -> list[Shard]:
        return job.shards

    def build(self, job: Job) -> Worker:
        index = ConceptIndex.of(job)
        thresholds = {name: read_thresholds(job, layer) for name, layer in job.layers.items()}
        input_size = (job.study.preprocessing["height"], job.study.preprocessing["width"])
        alignments = {name: self.alignment(layer.layer, input_size) for name, layer in job.layers.items()}

        def read(shard: Shard) -> LabelledMaps:
            annotations = read_annotations(job, index, shard)
            maps = {layer: read_tail_maps(job, job.layers[layer], shard) for layer in shard.layers}
            return LabelledMaps(shard, annotations, self._pairings(shard, list(annotations)), maps)

        @torch.inference_mode()
        def compute(loaded: LabelledMaps) -> dict[str, pa.Table]:
            return {
                layer: self._count(job, job.layers[layer], index, loaded, thresholds[layer], alignments[layer])
                for layer in loaded.shard.layers
            }

        return Worker(read, compute, stage_writer(job))

    def reduce(self, job: Job, layer: LayerJob) -> Reduced:
        permutations = self.null_permutations if job.manifest.num_images > 1 else 0
        total, staging = _zero_areas(job, layer, permutations), []
        for _, file, part in staged_tables(job.store, layer.result_id, self.shards(job), "arrow"):
            staging.append(file)
            total = _sum(pa.concat_tables([total, part.replace_schema_metadata(None)]))
        own = np.asarray(total["permutation"]) == OWN_LABELS
        of_concept = np.asarray(total["concept_id"].is_valid())
        concepts, areas = (
            ["unit", "concept_id", "split", *CONCEPT_COLUMNS],
            ["unit", "category", "split", *AREA_COLUMNS],
        )
        tables = {
            "tally": total.filter(own & of_concept).select(concepts),
            "areas": total.filter(own & ~of_concept).select(areas),
            "null_tally": total.filter(~own & of_concept).select(["permutation", *concepts]),
            "null_areas": total.filter(~own & ~of_concept).select(["permutation", *areas]),
        }
        return Reduced(tables, staging)

    def _pairings(self, shard: Shard, image_ids: list[int]) -> dict[int, dict[int, int]]:
        """For every null permutation: which image's labels each image's masks meet."""
        pairings = {}
        for permutation in range(self.null_permutations if len(image_ids) > 1 else 0):
            seed = int(
                np.random.SeedSequence([self.null_seed, shard.index, permutation]).generate_state(1, np.uint64)[0]
            )
            generator = torch.Generator().manual_seed(seed)
            partner = derangement(len(image_ids), generator).tolist()
            pairings[permutation] = {image: image_ids[place] for image, place in zip(image_ids, partner, strict=True)}
        return pairings

    def _count(
        self,
        job: Job,
        layer: LayerJob,
        index: ConceptIndex,
        loaded: LabelledMaps,
        threshold: Tensor,
        alignment: tuple[Alignment, Alignment] | None,
    ) -> pa.Table:
        """Count one layer of one shard; maps that nowhere exceed their threshold have no mask."""
        found, maps = layer.layer, loaded.maps[layer.layer.name]
        shape = (len(job.manifest.splits), found.num_units, len(index.concept_ids), len(index.categories))
        counts = {
            permutation: Counts.zeros(*shape, device=job.device) for permutation in (OWN_LABELS, *loaded.pairings)
        }
        membership = index.membership.to(job.device)
        maps = maps[maps.max > threshold[maps.unit]]
        images, first = np.unique(maps.image_id.numpy(), return_index=True)
        for image, begin, end in zip(images.tolist(), first, [*first, len(maps.unit)][1:], strict=True):
            units = maps.unit[begin:end].to(job.device)
            activation = maps.map[begin:end].view(-1, found.height, found.width).to(job.device)
            masks: dict[tuple[int, int], Tensor] = {}
            for permutation, total in counts.items():
                met = image if permutation == OWN_LABELS else loaded.pairings[permutation][image]
                annotation = loaded.annotations[met].to(job.device)
                if annotation.size not in masks:
                    level = threshold.to(job.device)[units]
                    masks[annotation.size] = binarize(activation, level, annotation.size, self.mask_order, alignment)
                total.add(masks[annotation.size], units, annotation, membership)
        parts = [_to_rows(job, index, permutation, total) for permutation, total in counts.items()]
        return PARTIAL_TALLY.cast(pa.concat_tables([part for pair in parts for part in pair]))


def read_thresholds(job: Job, layer: LayerJob) -> Tensor:
    """T_u of every unit, float32."""
    table = read_result_table(job.store, layer.inputs["thresholds"], THRESHOLDS, ["threshold"])
    return to_tensor(table, "threshold")


def _to_rows(job: Job, index: ConceptIndex, permutation: int, counts: Counts) -> list[pa.Table]:
    """Rows of what is not zero: by concept, and by category."""
    by_concept = {name: getattr(counts, name).cpu() for name in CONCEPT_COLUMNS}  # split unit concept
    by_category = {name: getattr(counts, name).cpu() for name in AREA_COLUMNS}  # split unit category
    by_category["mask_pixels"] = by_category["mask_pixels"][..., None].expand(-1, -1, len(index.categories))
    rows = []
    for values, label, names in (
        (by_concept, "concept_id", index.concept_ids),
        (by_category, "category", np.asarray(index.categories)),
    ):
        filled = torch.stack(list(values.values())).ne(0).any(0).nonzero(as_tuple=True)
        split, unit, place = (axis.numpy() for axis in filled)
        columns: dict[str, Any] = {
            "permutation": np.full(len(unit), permutation),
            "unit": unit,
            "split": np.asarray(job.manifest.splits)[split],
            label: names[place],
            **{name: value[filled].numpy() for name, value in values.items()},
        }
        rows.append(_with_nulls(pa.table(columns)))
    return rows


def _with_nulls(rows: pa.Table) -> pa.Table:
    """The same rows with all columns of a partial tally, those that are missing null."""
    columns = [
        rows[field.name].cast(field.type) if field.name in rows.column_names else pa.nulls(len(rows), field.type)
        for field in PARTIAL_TALLY.schema
    ]
    return pa.table(columns, schema=PARTIAL_TALLY.schema)


def _sum(rows: pa.Table) -> pa.Table:
    """Add up the counts of equal keys."""
    counts = [name for name in PARTIAL_TALLY.schema.names if name not in KEY]
    summed = rows.group_by(KEY, use_threads=False).aggregate([(name, "sum") for name in counts])
    return summed.rename_columns([name.removesuffix("_sum") for name in summed.column_names]).select(rows.column_names)


def _zero_areas(job: Job, layer: LayerJob, permutations: int) -> pa.Table:
    """Areas of zero for every unit, category and split, so that `areas` has all of them."""
    axes = (range(OWN_LABELS, permutations), range(layer.layer.num_units), job.manifest.splits, job.manifest.categories)
    permutation, unit, split, category = (axis.ravel() for axis in np.meshgrid(*map(np.asarray, axes), indexing="ij"))
    keys = {"permutation": permutation, "unit": unit, "split": split, "category": category}
    zeros = np.zeros(len(unit), dtype=np.int64)
    return _with_nulls(pa.table({**keys, **dict.fromkeys(AREA_COLUMNS, zeros)})).replace_schema_metadata(None)

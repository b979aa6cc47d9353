"""Tally: count the pixels where each unit's mask meets each concept."""

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import torch
from pydantic import Field
from torch import Tensor

from pipeline.columns import places_in, to_tensor
from pipeline.results import read_result_table
from pipeline.stage import Job, LayerJob, Reduced, stage_writer, staged_tables
from pipeline.stages.labels import ConceptIndex, ShardLabels, read_annotations
from pipeline.stages.masks import MaskSettings
from pipeline.stages.tails import MapSource, ShardMaps, ShardSource
from schemas import THRESHOLDS
from schemas.areas import AREA_COUNTS
from schemas.staging import PARTIAL_TALLY
from schemas.tally import CONCEPT_COUNTS
from workers.methods.dissection import Alignment, Annotation, Counts, derangement, mask_pixels
from workers.worker import Shard, Worker

OWN_LABELS = -1
"""The `permutation` of rows that count an image's masks against its own labels."""

CONCEPT_COLUMNS = [column.name for column in CONCEPT_COUNTS]
AREA_COLUMNS = [column.name for column in AREA_COUNTS]

LABEL_PIXELS = 2**24
"""Pixels of the label maps that a portion of masks covers: bounds what their sparse pixels can take."""


@dataclass(frozen=True)
class LabelledMaps:
    """A shard's labels, whose labels each image's masks meet, and what the maps of every layer come from."""

    shard: Shard
    labels: ShardLabels
    pairings: dict[int, dict[int, int]]  # permutation -> image_id -> image_id
    source: ShardSource


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
        source = MapSource(job, thresholds)
        input_size = (job.study.preprocessing["height"], job.study.preprocessing["width"])
        alignments = {name: self.alignment(layer.layer, input_size) for name, layer in job.layers.items()}

        def read(shard: Shard) -> LabelledMaps:
            labels = read_annotations(job, index, shard)
            return LabelledMaps(shard, labels, self._pairings(shard, list(labels.annotations)), source.read(shard))

        @torch.inference_mode()
        def compute(loaded: LabelledMaps) -> dict[str, pa.Table]:
            tallies = {
                name: LayerTally(
                    self, job, job.layers[name], loaded.labels, loaded.pairings, thresholds[name], alignments[name]
                )
                for name in loaded.shard.layers
            }
            source.each(loaded.source, lambda name, maps: tallies[name].add(maps))
            return {name: tally.table() for name, tally in tallies.items()}

        return Worker(read, compute, stage_writer(job), alone=source.runs_network or job.device != "cpu")

    def reduce(self, job: Job, layer: LayerJob) -> Reduced:
        permutations = self.null_permutations if job.manifest.num_images > 1 else 0
        totals, staging = Totals(job, layer, permutations), []
        for _, file, part in staged_tables(job.store, layer.result_id, self.shards(job), "arrow"):
            staging.append(file)
            totals.add(part)
        return Reduced(totals.tables(), staging)

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


class LayerTally:
    """Counts one layer on one shard, whose maps come at once or in portions of whole images."""

    def __init__(
        self,
        stage: Tally,
        job: Job,
        layer: LayerJob,
        labels: ShardLabels,
        pairings: dict[int, dict[int, int]],
        threshold: Tensor,
        alignment: tuple[Alignment, Alignment] | None,
    ) -> None:
        self._stage, self._alignment, self._threshold = stage, alignment, threshold
        self._job, self._layer, self._labels, self._pairings = job, layer.layer, labels, pairings
        self._membership = labels.index.membership.to(job.device)
        shape = (len(job.manifest.splits), self._layer.num_units, *self._membership.shape)
        self._counts = {which: Counts.zeros(*shape, device=job.device) for which in (OWN_LABELS, *pairings)}

    def add(self, maps: ShardMaps) -> None:
        """Count some images; maps that nowhere exceed their threshold have no mask."""
        some = (maps.max > self._threshold[maps.unit]).nonzero().flatten()
        for sizes, places in self._by_sizes(maps.image_id[some]).items():
            step = max(1, LABEL_PIXELS // max(height * width for height, width in sizes))
            for portion in some[places].split(step):
                self._count(maps[portion], sizes)

    def table(self) -> pa.Table:
        """The shard's partial tally."""
        splits = self._job.manifest.splits
        parts = [_to_rows(splits, self._labels.index, which, counts) for which, counts in self._counts.items()]
        return PARTIAL_TALLY.cast(pa.concat_tables([part for pair in parts for part in pair]))

    def _met_by(self, image: int) -> dict[int, Annotation]:
        """Whose labels an image's masks meet: its own, and in every null permutation another's."""
        partners = {which: image if which == OWN_LABELS else self._pairings[which][image] for which in self._counts}
        return {which: self._labels.annotations[partner] for which, partner in partners.items()}

    def _by_sizes(self, image_id: Tensor) -> dict[tuple[tuple[int, int], ...], Tensor]:
        """Places of the maps, by the sizes of the annotations that they meet."""
        images, of_map = image_id.unique(return_inverse=True)
        sizes = [tuple(met.size for met in self._met_by(image).values()) for image in images.tolist()]
        found = {size: place for place, size in enumerate(dict.fromkeys(sizes))}
        group = torch.tensor([found[size] for size in sizes], dtype=torch.int64)[of_map]
        return {size: (group == place).nonzero().flatten() for size, place in found.items()}

    def _count(self, maps: ShardMaps, sizes: tuple[tuple[int, int], ...]) -> None:
        """Count maps whose annotations have the same sizes; masks are made once for each."""
        device, images, unit = self._job.device, maps.image_id, maps.unit.to(self._job.device)
        activation = maps.map.to(device).view(-1, self._layer.height, self._layer.width)
        threshold = self._threshold.to(device)[unit]
        masks = {
            size: mask_pixels(activation, threshold, size, self._stage.mask_order, self._alignment)
            for size in dict.fromkeys(sizes)
        }
        image_ids, lengths = images.unique_consecutive(return_counts=True)
        units = unit.split(lengths.tolist())
        of_image = {size: found.split(lengths.tolist()) for size, found in masks.items()}
        for place, image in enumerate(image_ids.tolist()):
            for which, annotation in self._met_by(image).items():
                met = annotation.to(device)
                self._counts[which].add(of_image[met.size][place], units[place], met, self._membership)


class Totals:
    """The counts of one layer, added up over the shards: arrays of permutation, split, unit, concept or category."""

    def __init__(self, job: Job, layer: LayerJob, permutations: int) -> None:
        self._index, self._splits = ConceptIndex.of(job), job.manifest.splits
        shape = (1 + permutations, len(self._splits), layer.layer.num_units)
        concepts, categories = (*shape, len(self._index.concept_ids)), (*shape, len(self._index.categories))
        self._of_concept = {name: np.zeros(concepts, np.int64) for name in CONCEPT_COLUMNS}
        self._of_category = {name: np.zeros(categories, np.int64) for name in AREA_COLUMNS}

    def add(self, part: pa.Table) -> None:
        """Add a shard's rows, of which no two have the same key."""
        _, splits, units, _ = self._of_concept["intersection"].shape
        unit = _numbers(part["permutation"]) - OWN_LABELS
        unit = (unit * splits + places_in(self._splits, part["split"])) * units + _numbers(part["unit"])
        of_concept = np.asarray(part["concept_id"].is_valid())
        concept = self._index.places(_numbers(part["concept_id"])).numpy()
        category = places_in(self._index.categories, part["category"])
        _add(self._of_concept, part, unit, concept, np.flatnonzero(of_concept))
        _add(self._of_category, part, unit, category, np.flatnonzero(~of_concept))

    def tables(self) -> dict[str, pa.Table]:
        """The tables to publish: of concepts, what is not zero; of categories, all."""
        met = self._of_concept["mask_pixels_concept"] != 0  # else there is no intersection
        every = np.ones(next(iter(self._of_category.values())).shape, bool)
        categories = np.asarray(self._index.categories)
        return {
            "tally": self._rows(self._of_concept, met, "concept_id", self._index.concept_ids, null=False),
            "areas": self._rows(self._of_category, every, "category", categories, null=False),
            "null_tally": self._rows(self._of_concept, met, "concept_id", self._index.concept_ids, null=True),
            "null_areas": self._rows(self._of_category, every, "category", categories, null=True),
        }

    def _rows(
        self, totals: dict[str, np.ndarray], chosen: np.ndarray, label: str, labels: np.ndarray, null: bool
    ) -> pa.Table:
        part = slice(1, None) if null else slice(0, 1)
        permutation, unit, place, split = chosen[part].transpose(0, 2, 3, 1).nonzero()  # in the order of the table
        key = {"unit": unit, label: pa.array(labels).take(place), "split": pa.array(self._splits).take(split)}
        counts = {name: values[part][permutation, split, unit, place] for name, values in totals.items()}
        return pa.table({**({"permutation": permutation} if null else {}), **key, **counts})


def _add(totals: dict[str, np.ndarray], part: pa.Table, unit: np.ndarray, place: np.ndarray, rows: np.ndarray) -> None:
    """Add some rows, whose concept or category has a place; to filter the table first takes many times as long."""
    width = next(iter(totals.values())).shape[-1]
    cell = unit[rows] * width + place[rows]
    for name, values in totals.items():
        values.reshape(-1)[cell] += _numbers(part[name])[rows]


def read_thresholds(job: Job, layer: LayerJob) -> Tensor:
    """T_u of every unit, float32."""
    table = read_result_table(job.store, layer.inputs["thresholds"], THRESHOLDS, ["threshold"])
    return to_tensor(table, "threshold")


def _to_rows(splits: tuple[str, ...], index: ConceptIndex, permutation: int, counts: Counts) -> list[pa.Table]:
    """Rows of what is not zero: by concept, and by category."""
    by_concept = {name: getattr(counts, name).cpu() for name in CONCEPT_COLUMNS}  # split unit concept
    by_category = {name: getattr(counts, name).cpu() for name in AREA_COLUMNS}  # split unit category
    by_category["mask_pixels"] = by_category["mask_pixels"][..., None].expand(-1, -1, len(index.categories))
    rows = []
    for values, area, label, names in (  # where the area is none, so are all others
        (by_concept, "mask_pixels_concept", "concept_id", index.concept_ids),
        (by_category, "mask_pixels", "category", index.categories),
    ):
        filled = values[area].nonzero(as_tuple=True)
        split, unit, place = (axis.numpy() for axis in filled)
        columns: dict[str, Any] = {
            "permutation": np.full(len(unit), permutation),
            "unit": unit,
            "split": pa.array(splits).take(split),
            label: pa.array(names).take(place),
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


def _numbers(column: pa.ChunkedArray) -> np.ndarray:
    """A column of whole numbers, 0 for a null."""
    return column.fill_null(0).to_numpy().astype(np.int64, copy=False)

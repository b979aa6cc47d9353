"""Detectors: each unit's best concept in every category, how sure it is, and whether it counts."""

from collections.abc import Iterator
from typing import ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from pydantic import Field
from torch import Tensor

from pipeline.columns import to_tensor
from pipeline.errors import InputError, SettingsError
from pipeline.results import read_result_table
from pipeline.stage import Job, Layer, LayerJob, Reduced, Stage, staged_tables
from pipeline.stages.labels import ConceptIndex
from pipeline.stages.tally import OWN_LABELS
from schemas import AREAS, LABEL_AREAS, NULL_AREAS, NULL_TALLY, SHARD_LABEL_AREAS, TALLY, Manifest
from workers.methods.detection import Jackknife, Union, best_concepts, ious, p_values, unions


class Detectors(Stage):
    """IoU from the tally's counts, under one meaning of A'; no image, no map, no model."""

    name: ClassVar[str] = "detectors"
    inputs: ClassVar[tuple[str, ...]] = ("tally",)

    union: Union = "annotated"  # Bau et al. 2017, section 2.2: at least one labeled concept of the category
    min_iou: float = Field(0.04, ge=0, lt=1)  # Bau et al. 2017, section 3
    splits: tuple[str, ...] | None = Field(None, min_length=1)  # None: all

    def reduce(self, job: Job, layer: LayerJob) -> Reduced:
        index = ConceptIndex.of(job)
        if not len(index.concept_ids):
            raise InputError(f"data set {job.manifest.name} has no labels: there is nothing to detect")
        counts = _Counts(job, layer, index, self.union, self.splits or job.manifest.splits)
        tally = layer.inputs["tally"]
        total, mask = counts.dense(
            read_result_table(job.store, tally, TALLY), read_result_table(job.store, tally, AREAS)
        )
        union = unions(total, mask, counts.label_pixels())
        iou = ious(total, union)  # unit concept
        overall = best_concepts(total, union, torch.ones(len(index.concept_ids), dtype=torch.bool))
        null = self._null(job, counts, layer)
        present = [place for place in range(len(index.categories)) if index.membership[:, place].any()]
        best = [best_concepts(total, union, index.membership[:, place]) for place in present]
        best = torch.stack(best, 1)  # unit category
        interval = self._interval(job, layer, counts, total, union, best)
        rows = []
        for column, place in enumerate(present):
            chosen = best[:, column]
            unit = torch.arange(len(chosen))
            value = iou[unit, chosen]
            rows.append(
                pa.table(
                    {
                        "unit": unit.numpy(),
                        "category": [index.categories[place]] * len(unit),
                        "concept_id": index.concept_ids[chosen.numpy()],
                        "concept": [index.names[concept] for concept in chosen.tolist()],
                        "iou": value.numpy(),
                        "iou_low": _or_null(interval and interval[0][:, column], len(unit)),
                        "iou_high": _or_null(interval and interval[1][:, column], len(unit)),
                        "p_value": _or_null(None if null is None else p_values(value, null), len(unit)),
                        "intersection": total[unit, chosen].numpy(),
                        "union": union[unit, chosen].numpy(),
                        "is_detector": (value > self.min_iou).numpy(),
                        "is_best_overall": (chosen == overall).numpy(),
                    }
                )
            )
        return Reduced({"detectors": pa.concat_tables(rows)})

    def check(self, layer: Layer, manifest: Manifest) -> None:
        if unknown := sorted(set(self.splits or ()) - set(manifest.splits)):
            raise SettingsError(f"splits {unknown} are not in the data set, which has {list(manifest.splits)}")

    def _null(self, job: Job, counts: "_Counts", layer: LayerJob) -> Tensor | None:
        """Best IoUs of all units under every null permutation; None without one."""
        tally = read_result_table(job.store, layer.inputs["tally"], NULL_TALLY)
        areas = read_result_table(job.store, layer.inputs["tally"], NULL_AREAS)
        best = []
        for permutation in areas["permutation"].unique().to_pylist():
            chosen = (part.filter(pc.field("permutation") == permutation) for part in (tally, areas))
            total, mask = counts.dense(*chosen)
            best.append(ious(total, unions(total, mask, counts.label_pixels())).amax(1))
        return torch.cat(best) if best else None

    def _interval(
        self, job: Job, layer: LayerJob, counts: "_Counts", total: Tensor, union: Tensor, best: Tensor
    ) -> tuple[Tensor, Tensor] | None:
        """Jackknife interval of every unit's best concepts; None with one shard."""
        jackknife = Jackknife(total.gather(1, best), union.gather(1, best))
        for part, label_pixels in self._shards(job, layer, counts):
            intersection, mask = counts.dense(part, part)
            own = unions(intersection, mask, label_pixels)
            jackknife.leave_out(intersection.gather(1, best), own.gather(1, best))
        return jackknife.interval()

    def _shards(self, job: Job, layer: LayerJob, counts: "_Counts") -> Iterator[tuple[pa.Table, Tensor]]:
        for shard, _, part in staged_tables(job.store, layer.inputs["tally"].result_id, job.shards, "arrow"):
            yield part.filter(pc.field("permutation") == OWN_LABELS), counts.label_pixels(shard.index)


class _Counts:
    """Reads counts from tables into dense arrays, for one meaning of A' and some splits."""

    def __init__(self, job: Job, layer: LayerJob, index: ConceptIndex, union: Union, splits: tuple[str, ...]) -> None:
        self._index, self._union, self._splits = index, union, list(splits)
        self._units = layer.layer.num_units
        self._areas = job.store.read_table(job.manifest.files[LABEL_AREAS.name])
        self._shard_areas = job.store.read_table(job.manifest.files[SHARD_LABEL_AREAS.name])
        self._category = index.membership.int().argmax(1)  # concept

    def dense(self, tally: pa.Table, areas: pa.Table) -> tuple[Tensor, Tensor]:
        """I and A', both int64 of unit and concept."""
        tally = self._chosen(tally, "concept_id")
        concepts = self._index.places(tally["concept_id"].to_numpy())
        intersection = self._add(tally, concepts, "intersection", len(self._index.concept_ids))
        if self._union == "concept":
            return intersection, self._add(tally, concepts, "mask_pixels_concept", len(self._index.concept_ids))
        areas = self._chosen(areas, "category")
        encoded = areas["category"].combine_chunks().dictionary_encode()
        order = [self._index.categories.index(name) for name in encoded.dictionary.to_pylist()]
        places = torch.tensor(order, dtype=torch.int64)[torch.from_numpy(encoded.indices.to_numpy().astype(np.int64))]
        column = "mask_pixels" if self._union == "all" else f"mask_pixels_{self._union}"
        by_category = self._add(areas, places, column, len(self._index.categories))
        return intersection, by_category[:, self._category]

    def label_pixels(self, shard: int | None = None) -> Tensor:
        """G of every concept, of the whole data set or of one shard."""
        areas = self._areas if shard is None else self._shard_areas.filter(pc.field("shard") == shard)
        areas = self._chosen(areas, "concept_id")
        places = self._index.places(areas["concept_id"].to_numpy())
        pixels = torch.zeros(len(self._index.concept_ids), dtype=torch.int64)
        return pixels.index_add_(0, places, to_tensor(areas, "label_pixels"))

    def _chosen(self, table: pa.Table, key: str) -> pa.Table:
        return table.filter(pc.field("split").isin(self._splits) & pc.field(key).is_valid())

    def _add(self, table: pa.Table, places: Tensor, column: str, width: int) -> Tensor:
        total = torch.zeros(self._units * width, dtype=torch.int64)
        cells = to_tensor(table, "unit", np.int64) * width + places
        total.index_add_(0, cells, to_tensor(table, column, np.int64))
        return total.view(self._units, width)


def _or_null(values: Tensor | None, rows: int) -> pa.Array:
    return pa.nulls(rows, pa.float64()) if values is None else pa.array(values.numpy())

"""Detectors: each unit's best concept in every category, how sure it is, and whether it counts."""

from collections.abc import Iterator
from itertools import pairwise
from typing import ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from jaxtyping import Int64
from pydantic import Field
from torch import Tensor

from pipeline.columns import places_in, to_tensor
from pipeline.errors import InputError, SettingsError
from pipeline.results import read_result_table
from pipeline.stage import Job, Layer, LayerJob, Reduced, Stage, staged_tables
from pipeline.stages.labels import ConceptIndex
from pipeline.stages.tally import OWN_LABELS
from schemas import AREAS, LABEL_AREAS, NULL_AREAS, NULL_TALLY, SHARD_LABEL_AREAS, TALLY, Table
from workers.methods.detection import Jackknife, Union, best_concepts, best_of_categories, ious, p_values, unions


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
        total, mask = counts.dense(*counts.read(TALLY, AREAS))
        union = unions(total, mask, counts.label_pixels)
        null = self._null(counts)
        present = index.membership.any(0).nonzero().flatten().tolist()
        best = [best_concepts(total, union, index.membership[:, place]) for place in present]
        best = torch.stack(best, 1)  # unit category
        total, union = total.gather(1, best), union.gather(1, best)  # unit category
        iou, overall = ious(total, union), best_of_categories(best, total, union)
        jackknife = Jackknife(total, union)
        for own in counts.shards(best):
            jackknife.leave_out(*own)
        interval = jackknife.interval()
        rows = []
        for column, place in enumerate(present):
            chosen, value = best[:, column], iou[:, column]
            unit = torch.arange(len(chosen))
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
                        "intersection": total[:, column].numpy(),
                        "union": union[:, column].numpy(),
                        "is_detector": (value > self.min_iou).numpy(),
                        "is_best_overall": (chosen == overall).numpy(),
                    }
                )
            )
        return Reduced({"detectors": pa.concat_tables(rows)})

    def check(self, layer: Layer, job: Job) -> None:
        splits = job.manifest.splits
        if unknown := sorted(set(self.splits or ()) - set(splits)):
            raise SettingsError(f"splits {unknown} are not in the data set, which has {list(splits)}")

    def _null(self, counts: "_Counts") -> Tensor | None:
        """Best IoUs of all units under every null permutation; None without one."""
        tally, areas = counts.read(NULL_TALLY, NULL_AREAS)  # both in the order of permutations
        best = []
        for permutation in areas["permutation"].unique().to_pylist():
            total, mask = counts.dense(*(_of_permutation(table, permutation) for table in (tally, areas)))
            best.append(ious(total, unions(total, mask, counts.label_pixels)).amax(1))
        return torch.cat(best) if best else None


class _Counts:
    """Reads counts for one meaning of A' and some splits: whole tables, or a shard's own where `best` needs them.

    Attributes:
        label_pixels: G of every concept.
    """

    def __init__(self, job: Job, layer: LayerJob, index: ConceptIndex, union: Union, splits: tuple[str, ...]) -> None:
        self._job, self._tally, self._index, self._union = job, layer.inputs["tally"], index, union
        self._splits = None if set(splits) >= set(job.manifest.splits) else list(splits)  # None: all
        self._units, self._concepts = layer.layer.num_units, len(index.concept_ids)
        self._category = index.membership.int().argmax(1)  # concept
        column = {"all": "mask_pixels", "concept": "mask_pixels_concept"}.get(union, f"mask_pixels_{union}")
        split = [] if self._splits is None else ["split"]
        self._of_concepts = ["unit", "concept_id", "intersection", *([column] if union == "concept" else []), *split]
        self._of_categories = ["unit", "category", *([] if union == "concept" else [column]), *split]
        self._of_labels = ["concept_id", "label_pixels", *split]
        self._mask_pixels = column
        areas = job.store.read_table(job.manifest.files[LABEL_AREAS.name], self._of_labels)
        self.label_pixels = self._sum_labels(areas)

    def read(self, tally: Table, areas: Table) -> tuple[pa.Table, pa.Table]:
        """Two tables of the tally, the columns that count."""
        permutation = [name for name in tally.schema.names if name == "permutation"]
        return (
            read_result_table(self._job.store, self._tally, tally, [*permutation, *self._of_concepts]),
            read_result_table(self._job.store, self._tally, areas, [*permutation, *self._of_categories]),
        )

    def dense(self, tally: pa.Table, areas: pa.Table) -> tuple[Tensor, Tensor]:
        """I and A', both int64 of unit and concept."""
        tally = self._chosen(tally)
        cells = self._cells(tally)
        intersection = _add(tally, "intersection", cells, self._units * self._concepts).view(self._units, -1)
        if self._union == "concept":
            return intersection, _add(tally, self._mask_pixels, cells, intersection.numel()).view_as(intersection)
        return intersection, self._by_category(areas)[:, self._category]

    def shards(self, best: Int64[Tensor, "unit category"]) -> Iterator[tuple[Tensor, Tensor]]:
        """Every shard's own I and U of each unit's best concepts, both of unit and category."""
        spare = best.numel()  # a cell that takes in all other concepts: cheaper than to leave their rows out
        cell_of = torch.full((self._units, self._concepts), spare)
        cell_of.scatter_(1, best, torch.arange(spare).view_as(best))
        columns = ["permutation", *self._of_concepts, *self._of_categories]
        staged = staged_tables(self._job.store, self._tally.result_id, self._job.shards, "arrow", columns)
        for (_, _, part), label_pixels in zip(staged, self._label_pixels_of_shards(), strict=True):
            own = np.asarray(part["permutation"]) == OWN_LABELS
            tally = self._chosen(part.select(self._of_concepts).filter(own & np.asarray(part["concept_id"].is_valid())))
            cells = cell_of.flatten()[self._cells(tally)]
            intersection = _add(tally, "intersection", cells, spare + 1)[:spare].view_as(best)
            if self._union == "concept":
                mask = _add(tally, self._mask_pixels, cells, spare + 1)[:spare].view_as(best)
            else:
                of_category = own & np.asarray(part["category"].is_valid())
                areas = self._by_category(part.select(self._of_categories).filter(of_category))
                mask = areas.gather(1, self._category[best])
            yield intersection, unions(intersection, mask, label_pixels[best])

    def _label_pixels_of_shards(self) -> Iterator[Tensor]:
        """G of every concept, shard by shard."""
        path = self._job.manifest.files[SHARD_LABEL_AREAS.name]
        areas = self._job.store.read_table(path, ["shard", *self._of_labels])
        bounds = np.searchsorted(areas["shard"].to_numpy(), np.arange(len(self._job.shards) + 1))
        for begin, end in pairwise(bounds.tolist()):
            yield self._sum_labels(areas.slice(begin, end - begin))

    def _sum_labels(self, areas: pa.Table) -> Tensor:
        areas = self._chosen(areas)
        return _add(areas, "label_pixels", self._index.places(areas["concept_id"].to_numpy()), self._concepts)

    def _cells(self, tally: pa.Table) -> Tensor:
        """Where each row stands in a flat array of unit and concept."""
        return _units(tally) * self._concepts + self._index.places(tally["concept_id"].to_numpy())

    def _by_category(self, areas: pa.Table) -> Tensor:
        """A' of unit and category."""
        areas, width = self._chosen(areas), len(self._index.categories)
        places = torch.from_numpy(places_in(self._index.categories, areas["category"]))
        return _add(areas, self._mask_pixels, _units(areas) * width + places, self._units * width).view(-1, width)

    def _chosen(self, table: pa.Table) -> pa.Table:
        return table if self._splits is None else table.filter(pc.field("split").isin(self._splits))


def _units(table: pa.Table) -> Tensor:
    return torch.from_numpy(table["unit"].to_numpy().astype(np.int64))


def _add(table: pa.Table, column: str, cells: Tensor, size: int) -> Tensor:
    """Add up a column by cell, exactly."""
    return torch.zeros(size, dtype=torch.int64).index_add_(0, cells, to_tensor(table, column, np.int64))


def _of_permutation(table: pa.Table, permutation: int) -> pa.Table:
    begin, end = np.searchsorted(table["permutation"].to_numpy(), [permutation, permutation + 1]).tolist()
    return table.slice(begin, end - begin)


def _or_null(values: Tensor | None, rows: int) -> pa.Array:
    return pa.nulls(rows, pa.float64()) if values is None else pa.array(values.numpy())

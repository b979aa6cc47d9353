"""A shard's labels, as the tally needs them."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Bool, Int64
from torch import Tensor

from pipeline.stage import Job
from workers.batches import unpack_concepts
from workers.methods.dissection import Annotation
from workers.worker import Shard

LABEL_COLUMNS = [
    "image_id",
    "split",
    "label_height",
    "label_width",
    "concept_ids",
    "concept_masks",
    "image_concept_ids",
]


LOOKED_UP = 2**20
"""Concept ids below this are looked up in a table, which has a place for each."""


@dataclass(frozen=True)
class ConceptIndex:
    """The data set's concepts and categories, by their places in its lists.

    Attributes:
        concept_ids: concepts that occur in the data set, ascending.
        categories: in the order of the manifest.
        membership: the category each concept belongs to.
    """

    concept_ids: np.ndarray
    names: list[str]
    categories: tuple[str, ...]
    membership: Bool[Tensor, "concept category"]

    @classmethod
    def of(cls, job: Job) -> "ConceptIndex":
        table = job.concepts.sort_by("concept_id")
        table = table.filter(np.asarray(table["pixels"]) > 0)
        categories = job.manifest.categories
        own = np.asarray(table["category"].to_pylist(), dtype=object)
        membership = torch.from_numpy(own[:, None] == np.asarray(categories, dtype=object))
        return cls(table["concept_id"].to_numpy(), table["name"].to_pylist(), categories, membership)

    def of_some(self, places: Int64[Tensor, " some_concept"]) -> "ConceptIndex":
        """Some of the concepts, by their places, which ascend; and all categories."""
        names = [self.names[place] for place in places.tolist()]
        return ConceptIndex(self.concept_ids[places.numpy()], names, self.categories, self.membership[places])

    def places(self, concept_ids: Sequence[int] | np.ndarray) -> Int64[Tensor, " concept"]:
        """Where these concepts are: each is in `concept_ids`, or 0 where there is none and its place means nothing."""
        wanted = np.asarray(concept_ids, dtype=np.int64)
        if self._place_of is None:
            return torch.from_numpy(np.searchsorted(self.concept_ids, wanted))
        return torch.from_numpy(self._place_of[wanted])

    @cached_property
    def _place_of(self) -> np.ndarray | None:
        """The place of every number up to the last concept's: quicker to look up than to search for."""
        numbers = int(self.concept_ids[-1]) + 1 if len(self.concept_ids) else 1
        if numbers > LOOKED_UP:
            return None
        place_of = np.zeros(numbers, np.int64)
        place_of[self.concept_ids] = np.arange(len(self.concept_ids))
        return place_of


@dataclass(frozen=True)
class ShardLabels:
    """A shard's annotations.

    Attributes:
        index: the concepts in them, for counts to be as wide as that, not as the data set's list is long.
        annotations: by image_id; a concept is its place in `index`.
    """

    index: ConceptIndex
    annotations: dict[int, Annotation]


def read_annotations(job: Job, index: ConceptIndex, shard: Shard) -> ShardLabels:
    """The annotations of a shard's images."""
    rows = job.store.read_table(shard.path, LABEL_COLUMNS).to_pylist()
    present = {concept for row in rows for ids in (row["concept_ids"], row["image_concept_ids"]) for concept in ids}
    index = index.of_some(index.places(sorted(present)))
    annotations = {}
    for row in rows:
        masks = unpack_concepts(row["concept_masks"], len(row["concept_ids"]), row["label_height"], row["label_width"])
        annotations[row["image_id"]] = Annotation(
            torch.from_numpy(np.ascontiguousarray(masks.transpose(1, 2, 0))),
            index.places(row["concept_ids"]),
            index.places(row["image_concept_ids"]),
            job.manifest.splits.index(row["split"]),
        )
    return ShardLabels(index, annotations)

"""A shard's labels, as the tally needs them."""

from dataclasses import dataclass

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

    def places(self, concept_ids: list[int]) -> Int64[Tensor, " concept"]:
        return torch.from_numpy(np.searchsorted(self.concept_ids, np.asarray(concept_ids, dtype=np.int64)))


def read_annotations(job: Job, index: ConceptIndex, shard: Shard) -> dict[int, Annotation]:
    """The annotations of a shard's images, by image_id."""
    table = job.store.read_table(shard.path, LABEL_COLUMNS)
    annotations = {}
    for row in table.to_pylist():
        masks = unpack_concepts(row["concept_masks"], len(row["concept_ids"]), row["label_height"], row["label_width"])
        annotations[row["image_id"]] = Annotation(
            torch.from_numpy(masks).float(),
            index.places(row["concept_ids"]),
            index.places(row["image_concept_ids"]),
            job.manifest.splits.index(row["split"]),
        )
    return annotations

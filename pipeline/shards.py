"""One shard of a data set: from samples to rows, bytes and label areas. Pure functions."""

import hashlib
import io
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.datasets import Areas
from pipeline.sources import BadImageError, Row, Sample
from schemas import SHARD
from schemas.table import PICTURE
from workers.batches import pack_concepts


@dataclass(frozen=True)
class Encoded:
    """One image as a shard's row holds it, all but its `image_id`.

    Attributes:
        row: where it comes from.
        data: the encoded image.
        height: rows of the label map.
        width: columns of the label map.
        concept_ids: concepts labeled pixel by pixel, ascending.
        concept_masks: their packed masks.
        concept_pixels: pixels of each.
        image_concept_ids: concepts of the whole image, ascending.
    """

    row: Row
    data: bytes
    height: int
    width: int
    concept_ids: tuple[int, ...]
    concept_masks: bytes
    concept_pixels: tuple[int, ...]
    image_concept_ids: tuple[int, ...]


@dataclass(frozen=True)
class Reject:
    """An image that cannot be used."""

    row: Row
    error: BadImageError


@dataclass
class Group:
    """What becomes one shard: its images, the rejects met on the way, and the row after its last."""

    images: list[Encoded] = field(default_factory=list)
    rejects: list[Reject] = field(default_factory=list)
    end: int = 0

    def add(self, outcome: Encoded | Reject, end: int) -> None:
        if isinstance(outcome, Encoded):
            self.images.append(outcome)
        else:
            self.rejects.append(outcome)
        self.end = end


def encode(sample: Sample) -> Encoded:
    """Turn label planes into one mask a concept, whatever plane it stands in.

    Label 0 is none; a concept of the whole image is left out of the masks; one that several planes hold
    is the union of its pixels.
    """
    whole = sorted(set(sample.image_concepts))
    masks: dict[int, np.ndarray] = {}
    for plane in sample.planes:
        for concept in np.unique(plane).tolist():
            if concept and concept not in whole:
                mask = plane == concept
                masks[concept] = masks[concept] | mask if concept in masks else mask
    ids = sorted(masks)
    stack = np.array([masks[concept] for concept in ids], np.bool_)
    stack = stack.reshape(len(ids), sample.label_height, sample.label_width)  # concept y x
    return Encoded(
        sample.row,
        sample.data,
        sample.label_height,
        sample.label_width,
        tuple(ids),
        pack_concepts(stack),
        tuple(np.count_nonzero(stack, axis=(1, 2)).tolist()),
        tuple(whole),
    )


def cut(outcomes: Iterable[tuple[int, Encoded | Reject]], size: int) -> Iterator[Group]:
    """Cut a stream of images into shards of `size`; a single image left over joins the last shard.

    So every shard holds at least two images if the data set does, and where a shard ends depends on the
    accepted images alone.

    Args:
        outcomes: the position of each row and what became of it.
        size: images a shard, at least 2.
    """
    current, following = Group(), Group()
    for position, outcome in outcomes:
        full = len(current.images) == size
        (following if full else current).add(outcome, position + 1)
        if len(following.images) == 2:
            yield current
            current, following = following, Group()
    for rest in (*following.images, *following.rejects):
        current.add(rest, following.end)
    yield current


def shard_table(images: list[Encoded], first_image: int) -> pa.Table:
    """The rows of a shard, as `schemas.SHARD` documents them."""
    concepts = pa.list_(pa.int32())
    pictures = [{"bytes": image.data, "path": image.row.image} for image in images]
    return SHARD.cast(
        pa.table(
            {
                "image_id": pa.array(range(first_image, first_image + len(images)), pa.int64()),
                "split": [image.row.split for image in images],
                "image": pa.array(pictures, PICTURE),
                "label_height": pa.array([image.height for image in images], pa.int32()),
                "label_width": pa.array([image.width for image in images], pa.int32()),
                "concept_ids": pa.array([image.concept_ids for image in images], concepts),
                "concept_masks": pa.array([image.concept_masks for image in images], pa.binary()),
                "image_concept_ids": pa.array([image.image_concept_ids for image in images], concepts),
            }
        )
    )


def to_parquet(table: pa.Table, batch_size: int) -> bytes:
    """Serialize a shard with one row group a batch; the same table gives the same bytes."""
    buffer = io.BytesIO()
    pq.write_table(
        table,
        buffer,
        row_group_size=batch_size,
        compression="zstd",
        use_dictionary=["split"],  # pyright: ignore[reportArgumentType]
        write_statistics=["image_id"],  # pyright: ignore[reportArgumentType]
    )
    return buffer.getvalue()


def label_areas(images: Iterable[Encoded]) -> Areas:
    """G[c] by concept and split: label pixels and images; a whole-image concept covers the label map."""
    areas: dict[tuple[int, str], list[int]] = defaultdict(lambda: [0, 0])
    for image in images:
        labels = [*zip(image.concept_ids, image.concept_pixels, strict=True)]
        labels += [(concept, image.height * image.width) for concept in image.image_concept_ids]
        for concept, pixels in labels:
            area = areas[concept, image.row.split]
            area[0] += pixels
            area[1] += 1
    return [(concept, split, pixels, count) for (concept, split), (pixels, count) in sorted(areas.items())]


def images_digest(images: Iterable[Encoded]) -> str:
    """Hash of what the forward pass sees: image bytes, paths and splits, in order."""
    total = hashlib.sha256()
    for image in images:
        line = (hashlib.sha256(image.data).hexdigest(), image.row.image, image.row.split)
        total.update(repr(line).encode())
    return total.hexdigest()


def labels_digest(images: Iterable[Encoded]) -> str:
    """Hash of the labels, in the order of the images."""
    total = hashlib.sha256()
    for image in images:
        masks = hashlib.sha256(image.concept_masks).hexdigest()
        line = (image.height, image.width, image.concept_ids, masks, image.image_concept_ids)
        total.update(repr(line).encode())
    return total.hexdigest()

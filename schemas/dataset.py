"""A data set in the store: shards of images and labels, its concepts, its manifest."""

import pyarrow as pa
from pydantic import BaseModel, ConfigDict

from schemas.table import PICTURE, SPLIT, Table, column

SHARD = Table(
    "shard",
    1,
    pa.schema(
        [
            column("image_id", pa.int64(), "place of the image in the data set, from 0"),
            column("split", pa.string(), "train, val, ..."),
            column("image", PICTURE, "the encoded image as it was in the source, and its path there"),
            column("label_height", pa.int32(), "rows of the label map"),
            column("label_width", pa.int32(), "columns of the label map"),
            column("concept_ids", pa.list_(pa.int32()), "concepts labelled pixel by pixel, ascending, each once"),
            column("concept_masks", pa.binary(), "their masks one after another, row-major, one bit a pixel (numpy.packbits), each padded to whole bytes"),
            column("image_concept_ids", pa.list_(pa.int32()), "concepts that label the whole image, ascending, each once"),
        ]
    ),
)  # fmt: skip

CONCEPTS = Table(
    "concepts",
    1,
    pa.schema(
        [
            column("dataset_id", pa.string(), "images and labels"),
            column("concept_id", pa.int32(), "label number"),
            column("name", pa.string(), "name as published"),
            column("category", pa.string(), "its own category: the one of largest coverage, ties to the later"),
            column("categories", pa.list_(pa.string()), "all categories it is listed under"),
            column("pixels", pa.int64(), "label pixels in the data set"),
            column("images", pa.int64(), "images that hold it"),
        ]
    ),
    sort=("concept_id",),
)

_AREA = (
    column("concept_id", pa.int32(), "label number"),
    SPLIT,
    column(
        "label_pixels", pa.int64(), "G[c]: pixels of the concept; an image's whole label map for a whole-image label"
    ),
    column("images", pa.int64(), "images that hold the concept"),
)

LABEL_AREAS = Table(
    "label_areas",
    1,
    pa.schema([column("dataset_id", pa.string(), "images and labels"), *_AREA]),
    sort=("concept_id", "split"),
)

SHARD_LABEL_AREAS = Table(
    "shard_label_areas",
    1,
    pa.schema([column("shard", pa.int32(), "place of the shard in the manifest"), *_AREA]),
    sort=("shard", "concept_id", "split"),
)

REJECTS = Table(
    "rejects",
    1,
    pa.schema(
        [
            column("image", pa.string(), "path of the image in the source"),
            column("row", pa.int64(), "line of index.csv, from 2 for the first row after the header"),
            column("error", pa.string(), "kind of the error"),
            column("message", pa.string(), "which file is wrong, how, and what to do"),
        ]
    ),
    sort=("row",),
)


class ShardEntry(BaseModel):
    """One shard in the manifest: where it is, what is in it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    path: str  # relative to the store
    sha256: str
    rows: int
    first_image: int  # image_id of its first row
    bytes: int


class Manifest(BaseModel):
    """`manifest.json` of a data set, written last: a data set without one does not exist."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    dataset_id: str  # images and labels
    images_id: str  # images, splits and batches: what the forward pass depends on
    name: str
    source: str
    num_images: int
    num_rejects: int
    batch_size: int  # batches never cross shards; their bounds are part of the numerics
    categories: tuple[str, ...]
    splits: tuple[str, ...]
    shards: tuple[ShardEntry, ...]
    files: dict[str, str]  # concepts, label_areas, shard_label_areas, rejects: path in the store
    schema_version: int = SHARD.version

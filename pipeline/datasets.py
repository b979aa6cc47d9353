"""Data sets in a store: where they lie, how they are found, what is in them."""

import re
from collections import Counter
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import ValidationError

from pipeline.errors import InputError
from pipeline.sources import Concept
from pipeline.store import Store
from schemas import CONCEPTS, LABEL_AREAS, REJECTS, SHARD_LABEL_AREAS, Manifest, Table

DATASETS = "datasets"
NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$"

Areas = list[tuple[int, str, int, int]]
"""Concept, split, label pixels, images."""

Rejects = list[tuple[str, int, str, str]]
"""Image, row, kind of error, message."""


@dataclass(frozen=True)
class Summary:
    """What a data set holds, in numbers.

    Attributes:
        name: the name it was first ingested under.
        dataset_id: images and labels.
        images: how many it holds.
        shards: how many hold them.
        bytes: of its shards.
        concepts: concepts that label at least one pixel, by category.
        absent: concepts that are listed but label nothing.
        rejects: images that could not be used, by kind of error.
        first_rejects: the messages of the first few.
        rejects_path: where all of them are listed.
    """

    name: str
    dataset_id: str
    images: int
    shards: int
    bytes: int
    concepts: dict[str, int]
    absent: int
    rejects: dict[str, int]
    first_rejects: tuple[str, ...]
    rejects_path: str


def manifest_path(dataset_id: str) -> str:
    return f"{DATASETS}/{dataset_id}/manifest.json"


def shard_path(sha256: str) -> str:
    return f"{DATASETS}/shards/{sha256}.parquet"


def by_source_path(key: str) -> str:
    return f"{DATASETS}/by-source/{key}.json"


def by_name_path(name: str) -> str:
    return f"{DATASETS}/by-name/{name}.json"


def load_manifest(store: Store, dataset: str) -> Manifest:
    """The manifest of a data set.

    Args:
        store: where it lies.
        dataset: its `dataset_id`, or a name: the data set last ingested under that name.

    Raises:
        InputError: there is none; the message lists those there are.
    """
    if re.match(NAME, dataset):
        if store.exists(manifest_path(dataset)):
            return _read(store, dataset)
        if store.exists(by_name_path(dataset)):
            dataset_id = store.read_json(by_name_path(dataset))["dataset_id"]
            if store.exists(manifest_path(dataset_id)):
                return _read(store, dataset_id)
    known = ", ".join(f"{found.name} ({found.dataset_id})" for found in list_datasets(store)) or "none"
    raise InputError(f"no data set {dataset!r} in {store.url}: run `raydissect ingest`; there is {known}")


def list_datasets(store: Store) -> list[Manifest]:
    """All data sets of a store, in the order of their names."""
    paths = [path for path in store.list(DATASETS) if path.endswith("/manifest.json")]
    found = [_read(store, path.split("/")[1]) for path in paths]
    return sorted(found, key=lambda manifest: (manifest.name, manifest.dataset_id))


def summary(manifest: Manifest, store: Store) -> Summary:
    """Count what a data set holds: what `raydissect ingest` prints at its end."""
    concepts = store.read_table(manifest.files["concepts"], columns=["category", "images"])
    present = Counter(concepts.filter(pc.field("images") > 0)["category"].to_pylist())
    rejects = store.read_table(manifest.files["rejects"])
    return Summary(
        name=manifest.name,
        dataset_id=manifest.dataset_id,
        images=manifest.num_images,
        shards=len(manifest.shards),
        bytes=sum(shard.bytes for shard in manifest.shards),
        concepts={category: present[category] for category in manifest.categories},
        absent=concepts.num_rows - present.total(),
        rejects=dict(sorted(Counter(rejects["error"].to_pylist()).items())),
        first_rejects=tuple(rejects["message"].slice(0, 3).to_pylist()),
        rejects_path=store.location(manifest.files["rejects"]),
    )


def _read(store: Store, dataset_id: str) -> Manifest:
    path = manifest_path(dataset_id)
    try:
        return Manifest.model_validate_json(store.read(path))
    except ValidationError as error:
        raise InputError(
            f"{store.location(path)} is no manifest this version reads; ingest into another store: {error}"
        ) from error


def rejects_table(rejects: Rejects) -> pa.Table:
    return _from_rows(REJECTS, rejects)


def areas_table(shards: list[Areas]) -> pa.Table:
    """The `shard_label_areas` of a data set: label areas by shard."""
    return _from_rows(SHARD_LABEL_AREAS, [(index, *row) for index, rows in enumerate(shards) for row in rows])


def label_areas_table(dataset_id: str, areas: pa.Table) -> pa.Table:
    """The `label_areas` of a data set: `areas` summed over its shards."""
    total = areas.group_by(["concept_id", "split"]).aggregate([("label_pixels", "sum"), ("images", "sum")])
    total = total.rename_columns([name.removesuffix("_sum") for name in total.column_names])
    return LABEL_AREAS.cast(total.append_column("dataset_id", pa.array([dataset_id] * len(total), pa.string())))


def concepts_table(dataset_id: str, concepts: dict[int, Concept], areas: pa.Table) -> pa.Table:
    """The `concepts` of a data set: all that its source lists, with 0 pixels where no image holds them."""
    total = areas.group_by("concept_id").aggregate([("label_pixels", "sum"), ("images", "sum")])
    counts = {row["concept_id"]: (row["label_pixels_sum"], row["images_sum"]) for row in total.to_pylist()}
    rows = [
        (dataset_id, number, concept.name, concept.category, concept.categories, *counts.get(number, (0, 0)))
        for number, concept in concepts.items()
    ]
    return _from_rows(CONCEPTS, rows)


def _from_rows(table: Table, rows: list[tuple]) -> pa.Table:
    columns = zip(*rows, strict=True) if rows else [()] * len(table.schema)
    arrays = [pa.array(values, field.type) for values, field in zip(columns, table.schema, strict=True)]
    return table.cast(pa.table(arrays, names=table.schema.names))

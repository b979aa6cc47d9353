"""Turn a source into a data set: content-addressed, immutable shards, its tables, its manifest.

Images stand in the order of the md5 hash of their path, whatever order the source lists them in, and are
cut into shards of `shard_size`; one image left over joins the last shard. A shard is written the moment it
is full, beside a marker in `staging/ingest-<key>/` that says how far it reaches, so that a killed ingest goes
on after the last marker. The key hashes the source's fingerprint and the settings that shape the data set.

    datasets/shards/<sha256>.parquet        one shard; data sets of the same images and labels share it
    datasets/<dataset_id>/*.parquet         concepts, label_areas, shard_label_areas, rejects-<key>
    datasets/<dataset_id>/manifest.json     written last, create-only
    datasets/by-source/<key>.json           where an ingest of the same source finds what it made
    datasets/by-name/<name>.json            the data set last ingested under a name
"""

import hashlib
import logging
import os
import re
import tempfile
from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from itertools import islice
from pathlib import Path
from time import perf_counter
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from pipeline import datasets
from pipeline.datasets import NAME, Areas, Rejects, list_datasets, load_manifest, summary
from pipeline.errors import InputError, SettingsError
from pipeline.redact import shown
from pipeline.settings import Settings
from pipeline.shards import (
    Encoded,
    Group,
    Reject,
    cut,
    encode,
    images_digest,
    label_areas,
    labels_digest,
    shard_table,
    to_parquet,
)
from pipeline.sources import BadImageError, Concept, Row, Source, broden, folder, hash_order
from pipeline.sources.files import Files, open_files
from pipeline.store import Store, digest
from schemas import Manifest
from schemas.dataset import ShardEntry

__all__ = ["SOURCES", "DataSettings", "ingest", "list_datasets", "load_manifest", "summary"]

VERSION = 1
"""Raised when the same source gives another data set."""

SOURCES: dict[str, tuple[str, Callable[[Files], Source]]] = {
    "broden": (broden.MARKER, broden.Broden),
    "folder": (folder.MARKER, folder.Folder),
    "mini": (broden.MARKER, broden.Broden),
}
"""By name: the file at the top of such a source, and how to read it."""

Progress = Callable[[int, int], None]

_log = logging.getLogger("raydissect")


class DataSettings(Settings):
    """What to ingest, and how (`data=...`)."""

    source: Literal["broden", "folder", "mini"] = "broden"
    root: str | None = None  # folder or zip, a path or any fsspec URL; not for mini, which is generated
    name: str | None = Field(None, pattern=NAME)  # None: the last part of root
    shard_size: int = Field(64, ge=2)  # images; batches never cross shards
    batch_size: int = Field(32, ge=1)  # images a forward pass, part of the numerics
    max_bad_images: int = Field(10, ge=0)  # rejected images past which ingest fails
    limit: int | None = Field(None, ge=1)  # only the first images in hash order: a random sample
    follow_links: bool = False  # also to files and folders outside of root, as of a local folder of links
    threads: int | None = Field(None, ge=1)  # that read and decode; None: one a core
    num_images: int = Field(480, ge=2)  # mini only
    size: int = Field(112, ge=16)  # mini only: side of its images in pixels
    seed: int = 0  # mini only

    @model_validator(mode="after")
    def _check(self) -> "DataSettings":
        if self.shard_size % self.batch_size:
            raise ValueError(f"shard_size is {self.shard_size}, must be a multiple of batch_size ({self.batch_size})")
        if self.root is not None and self.source == "mini":
            raise ValueError(f"root is {self.root!r} for data source mini: leave it out, it is generated")
        return self

    @property
    def dataset_name(self) -> str:
        if self.name or self.root is None:
            return self.name or self.source
        last = shown(self.root).rstrip("/").split("/")[-1].removesuffix(".zip")
        return re.sub("[^A-Za-z0-9._-]+", "-", last).lstrip("._-")[:100] or self.source


class _Marker(BaseModel):
    """What a finished shard leaves behind, so that it is never decoded again."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    entry: ShardEntry
    end: int  # rows of the source, in hash order, that are done with it
    images_sha256: str
    labels_sha256: str
    splits: tuple[str, ...]
    areas: Areas  # concept, split, label pixels, images
    rejects: Rejects  # image, row, error, message


def ingest(settings: DataSettings, store: Store, *, on_progress: Progress | None = None) -> Manifest:
    """Turn a source into a data set, or find the one it was turned into before.

    Args:
        settings: the source, and how to cut it.
        store: where the data set goes.
        on_progress: called after every shard with the images done and their total.

    Returns:
        The manifest of the data set; the same for the same images, labels and batches.

    Raises:
        InputError: the source cannot be used, or more than `max_bad_images` images cannot.
    """
    marker, kind = SOURCES[settings.source]
    if settings.root is not None:
        with open_files(settings.root, marker, follow_links=settings.follow_links) as files:
            key = _key(settings, files.fingerprint())
            return _find(settings, store, key) or _Ingest(settings, store, key, on_progress).run(kind(files))
    if settings.source != "mini":
        raise SettingsError(f"data.root is not set: give the folder, zip or URL of the {settings.source} data set")
    from pipeline.sources import mini  # only here: its drawing code is of no use to other sources

    key = _key(settings, _mini_fingerprint(settings, Path(mini.__file__)))
    if found := _find(settings, store, key):
        return found
    with tempfile.TemporaryDirectory(prefix="raydissect-mini-") as path:
        mini.write_mini(Path(path), num_images=settings.num_images, size=settings.size, seed=settings.seed)
        with open_files(path, marker) as files:
            return _Ingest(settings, store, key, on_progress).run(kind(files))


class _Ingest:
    """One ingest under way."""

    def __init__(self, settings: DataSettings, store: Store, key: str, on_progress: Progress | None) -> None:
        self._settings = settings
        self._store = store
        self._key = key
        self._staging = f"staging/ingest-{key}"
        self._on_progress = on_progress or (lambda done, total: None)

    def run(self, source: Source) -> Manifest:
        concepts = source.concepts()
        rows = sorted(source.rows(), key=lambda row: (hash_order(row.image), row.line))
        if not rows:
            raise InputError(f"{shown(self._settings.root or self._settings.source)} lists no image")
        markers = self._finished()
        rejects = [reject for marker in markers for reject in marker.rejects]
        for group in self._groups(source, rows, markers):
            if group.images:
                markers.append(self._write(len(markers), markers, group))
            rejects += _reject_rows(group.rejects)
            self._report(group.end, markers, len(rows))
        self._check_rejects(rejects, _num_images(markers))
        return self._publish(source.categories(), concepts, markers, rejects)

    def _finished(self) -> list[_Marker]:
        """Markers of the shards that an earlier ingest of this source finished."""
        markers: list[_Marker] = []
        while self._store.exists(path := self._marker_path(len(markers))):
            marker = _Marker.model_validate_json(self._store.read(path))
            if not self._store.exists(marker.entry.path):
                break
            markers.append(marker)
        if markers:
            _log.info("found %d finished shards in %s", len(markers), self._store.location(self._staging))
        return markers

    def _groups(self, source: Source, rows: list[Row], markers: list[_Marker]) -> Iterator[Group]:
        start = markers[-1].end if markers else 0
        limit = self._settings.limit
        if limit is not None:
            limit -= _num_images(markers)
        if start == len(rows) or limit == 0:
            return
        threads = self._settings.threads or os.cpu_count() or 1
        with closing(_outcomes(source, rows, start, limit, threads)) as outcomes:
            yield from cut(outcomes, self._settings.shard_size)

    def _write(self, index: int, markers: list[_Marker], group: Group) -> _Marker:
        start = perf_counter()
        first_image = _num_images(markers)
        data = to_parquet(shard_table(group.images, first_image), self._settings.batch_size)
        sha256 = hashlib.sha256(data).hexdigest()
        # Not `create`: gc takes an old file that no manifest names yet for a leftover.
        self._store.write(datasets.shard_path(sha256), data)
        marker = _Marker(
            entry=ShardEntry(
                path=datasets.shard_path(sha256),
                sha256=sha256,
                rows=len(group.images),
                first_image=first_image,
                bytes=len(data),
            ),
            end=group.end,
            images_sha256=images_digest(group.images),
            labels_sha256=labels_digest(group.images),
            splits=tuple(sorted({image.row.split for image in group.images})),
            areas=label_areas(group.images),
            rejects=_reject_rows(group.rejects),
        )
        self._store.write(self._marker_path(index), marker.model_dump_json().encode())
        _log.info(
            "shard %d: %d images, %d rejected, %d bytes, written in %.2f s",
            index, len(group.images), len(group.rejects), len(data), perf_counter() - start,
        )  # fmt: skip
        return marker

    def _report(self, end: int, markers: list[_Marker], num_rows: int) -> None:
        if self._settings.limit is None:
            self._on_progress(end, num_rows)
        else:
            self._on_progress(_num_images(markers), self._settings.limit)

    def _marker_path(self, index: int) -> str:
        return f"{self._staging}/{index:06d}.json"

    def _check_rejects(self, rejects: Rejects, num_images: int) -> None:
        """Log every reject; fail past the limit, or if nothing is left."""
        for *_, message in rejects[:100]:
            _log.warning("rejected: %s", message)
        if num_images and len(rejects) <= self._settings.max_bad_images:
            return
        path = f"{self._staging}/rejects.parquet"
        self._store.write_table(path, datasets.rejects_table(rejects))
        messages = [message for *_, message in rejects[:5]]
        raise _too_many(self._settings, len(rejects), messages, self._store.location(path))

    def _publish(
        self,
        categories: tuple[str, ...],
        concepts: dict[int, Concept],
        markers: list[_Marker],
        rejects: Rejects,
    ) -> Manifest:
        """Write the tables, then the manifest, then what finds it; the markers are of no more use."""
        store = self._store
        images_id, dataset_id = _ids(self._settings.batch_size, categories, concepts, markers)
        files = {
            "rejects": f"{datasets.DATASETS}/{dataset_id}/rejects-{self._key}.parquet",
            "concepts": f"{datasets.DATASETS}/{dataset_id}/concepts.parquet",
            "label_areas": f"{datasets.DATASETS}/{dataset_id}/label_areas.parquet",
            "shard_label_areas": f"{datasets.DATASETS}/{dataset_id}/shard_label_areas.parquet",
        }
        store.write_table(files["rejects"], datasets.rejects_table(rejects))
        path = datasets.manifest_path(dataset_id)
        if not store.exists(path):
            areas = datasets.areas_table([marker.areas for marker in markers])
            store.write_table(files["concepts"], datasets.concepts_table(dataset_id, concepts, areas))
            store.write_table(files["label_areas"], datasets.label_areas_table(dataset_id, areas))
            store.write_table(files["shard_label_areas"], areas)
            manifest = Manifest(
                dataset_id=dataset_id,
                images_id=images_id,
                name=self._settings.dataset_name,
                source=self._settings.source,
                num_images=_num_images(markers),
                num_rejects=len(rejects),
                batch_size=self._settings.batch_size,
                categories=categories,
                splits=tuple(sorted({split for marker in markers for split in marker.splits})),
                shards=tuple(marker.entry for marker in markers),
                files=files,
            )
            store.create(path, manifest.model_dump_json(indent=1).encode() + b"\n")
        made = {"dataset_id": dataset_id, "num_rejects": len(rejects), "rejects": files["rejects"]}
        store.write_json(datasets.by_source_path(self._key), made)
        store.write_json(datasets.by_name_path(self._settings.dataset_name), {"dataset_id": dataset_id})
        for staged in store.list(self._staging):
            store.remove(staged)
        return load_manifest(store, dataset_id)


def _ids(
    batch_size: int, categories: tuple[str, ...], concepts: dict[int, Concept], markers: list[_Marker]
) -> tuple[str, str]:
    """`images_id` and `dataset_id`: of what is in the shards, not of their bytes, which vary with pyarrow."""
    shards = [(marker.entry.rows, marker.images_sha256) for marker in markers]
    images_id = digest(["images", VERSION, batch_size, shards])
    labels = [marker.labels_sha256 for marker in markers]
    listed = [(number, c.name, c.category, c.categories) for number, c in sorted(concepts.items())]
    return images_id, digest(["dataset", images_id, labels, listed, categories])


def _num_images(markers: list[_Marker]) -> int:
    return sum(marker.entry.rows for marker in markers)


def _find(settings: DataSettings, store: Store, key: str) -> Manifest | None:
    """The data set that an earlier ingest of the same source made, if it is still there."""
    if not store.exists(datasets.by_source_path(key)):
        return None
    made = store.read_json(datasets.by_source_path(key))
    if not store.exists(datasets.manifest_path(made["dataset_id"])):
        return None
    if made["num_rejects"] > settings.max_bad_images:
        messages = store.read_table(made["rejects"])["message"].slice(0, 5).to_pylist()
        raise _too_many(settings, made["num_rejects"], messages, store.location(made["rejects"]))
    store.write_json(datasets.by_name_path(settings.dataset_name), {"dataset_id": made["dataset_id"]})
    return load_manifest(store, made["dataset_id"])


def _key(settings: DataSettings, fingerprint: str) -> str:
    shaping = settings.model_dump(include={"source", "shard_size", "batch_size", "limit"})
    return digest(["ingest", VERSION, fingerprint, shaping])


def _mini_fingerprint(settings: DataSettings, code: Path) -> str:
    """What the generated data set depends on: its settings, and the code that draws it."""
    drawing = [code, *sorted((code.parent / "drawing").glob("*.py"))]
    sources = [hashlib.sha256(path.read_bytes()).hexdigest() for path in drawing]
    return digest([settings.num_images, settings.size, settings.seed, sources])


def _outcomes(
    source: Source, rows: list[Row], start: int, limit: int | None, threads: int
) -> Generator[tuple[int, Encoded | Reject], None, None]:
    """Read rows from `start` on in threads, a few ahead, and give them in order, up to `limit` good ones."""
    pool = ThreadPoolExecutor(threads, thread_name_prefix="ingest")
    pending: deque[tuple[int, Future[Encoded | Reject]]] = deque()
    positions = iter(range(start, len(rows)))
    accepted = 0
    try:
        while accepted != limit:
            for position in islice(positions, 4 * threads - len(pending)):
                pending.append((position, pool.submit(_outcome, source, rows[position])))
            if not pending:
                return
            position, future = pending.popleft()
            outcome = future.result()
            accepted += isinstance(outcome, Encoded)
            yield position, outcome
    finally:
        pool.shutdown(cancel_futures=True)


def _outcome(source: Source, row: Row) -> Encoded | Reject:
    try:
        return encode(source.sample(row))
    except BadImageError as error:
        return Reject(row, error)


def _too_many(settings: DataSettings, number: int, messages: list[str], path: str) -> InputError:
    first = "\n".join(f"  {message}" for message in messages)
    return InputError(
        f"{number} images of {shown(settings.root or settings.source)} cannot be used, "
        f"max_bad_images is {settings.max_bad_images}. "
        f"The first:\n{first}\nAll of them are listed in {path}. Repair them, or raise data.max_bad_images; "
        "finished shards are kept"
    )


def _reject_rows(rejects: list[Reject]) -> Rejects:
    return [(r.row.image, r.row.line, r.error.kind, str(r.error)) for r in rejects]

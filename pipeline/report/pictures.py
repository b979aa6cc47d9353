"""Pictures: from a table's column into files."""

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from pipeline.errors import InputError
from workers.batches import ImageError, load_image, open_image

FORMATS = {
    "JPEG": (re.compile(rb"\xff\xd8\xff"), ".jpg"),
    "PNG": (re.compile(rb"\x89PNG\r\n\x1a\n"), ".png"),
    "WebP": (re.compile(rb"RIFF.{4}WEBP", re.DOTALL), ".webp"),
}
"""First bytes of the formats a report shows; anything else could hold a script."""
STILL = ("JPEG", "PNG")


@dataclass(frozen=True)
class Exemplar:
    """One exemplar on a page; `file` is the name of its picture."""

    rank: int
    image_id: int
    image: str
    activation: float
    file: str


def write_pictures(
    folder: Path, exemplars: pa.Table | Iterable[pa.Table | pa.RecordBatch], units: set[int]
) -> dict[int, list[Exemplar]]:
    """Write the pictures of some units, named by unit and rank.

    Args:
        folder: where the files go.
        exemplars: rows of the `exemplars` table in any order.
        units: the units whose pictures are wanted.

    Returns:
        the exemplars of each unit that has some, by rank.

    Raises:
        InputError: a picture is neither JPEG nor PNG.
    """
    folder.mkdir(parents=True, exist_ok=True)
    found: dict[int, list[Exemplar]] = {}
    for row in _rows(exemplars, units):
        what = f"picture of unit {row['unit']}, rank {row['rank']}, image {row['image']!r} in layer {row['layer']}"
        path = folder / f"unit-{row['unit']}-rank-{row['rank']}"
        file = write_picture(path, row["picture"], what, "record the exemplars again")
        exemplar = Exemplar(row["rank"], row["image_id"], row["image"], row["activation"], file)
        found.setdefault(row["unit"], []).append(exemplar)
    return {unit: sorted(found[unit], key=lambda exemplar: exemplar.rank) for unit in sorted(found)}


def write_picture(
    path: Path, picture: dict[str, Any] | None, what: str, cure: str, formats: tuple[str, ...] = STILL
) -> str:
    """Write one encoded picture.

    Args:
        path: where it goes, without the suffix, which its first bytes decide.
        picture: a cell of a column of pictures; the path it holds is never used.
        what: begins the message of the error.
        cure: ends it.
        formats: which of `FORMATS` it may be in.

    Returns:
        the name of the file.

    Raises:
        InputError: the picture is missing or in another format.
    """
    data = (picture or {}).get("bytes") or b""
    for name in formats:
        start, suffix = FORMATS[name]
        if start.match(data):
            path.with_name(path.name + suffix).write_bytes(data)
            return path.name + suffix
    must = " or ".join(formats)
    raise InputError(f"{what} is {len(data)} bytes that begin {data[:8]!r}, must be {must}: {cure}")


def write_whole_picture(path: Path, picture: dict[str, Any] | None, what: str, cure: str) -> str:
    """Write one encoded picture that can be decoded to its last pixel; see `write_picture`.

    Raises:
        InputError: it cannot, or is missing, or in another format.
    """
    file = write_picture(path, picture, what, cure)
    with decoding(what, cure):
        load_image(open_image((picture or {})["bytes"]))
    return file


@contextmanager
def decoding(what: str, cure: str) -> Iterator[None]:
    """Says of a picture that cannot be decoded which it is, and what to do about it.

    Raises:
        InputError: in place of `ImageError`.
    """
    try:
        yield
    except ImageError as error:
        raise InputError(f"{what} {error}: {cure}") from error


def _rows(exemplars: pa.Table | Iterable[pa.Table | pa.RecordBatch], units: set[int]) -> Iterator[dict[str, Any]]:
    """The rows of some units, each made a Python object only when it is its turn."""
    parts: Iterable[Any] = [exemplars] if isinstance(exemplars, pa.Table) else exemplars
    for part in parts:
        for i, unit in enumerate(part.column("unit").to_pylist()):
            if unit in units:
                yield part.slice(i, 1).to_pylist()[0]

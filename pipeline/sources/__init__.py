"""Where a data set comes from: a source lists its images cheaply and reads them one at a time."""

import hashlib
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from pipeline.errors import InputError


class BadImageError(InputError):
    """One image cannot be used; the others can.

    Args:
        kind: missing, broken, too_large, size, label, row, duplicate: what the rejects are counted by.
        message: which file is wrong, how, and what to do.
    """

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


@dataclass(frozen=True)
class Concept:
    """A label: its name, its own category, and all categories it is listed under."""

    name: str
    category: str
    categories: tuple[str, ...]


@dataclass(frozen=True)
class Row:
    """One image as the source lists it, before anything of it is read.

    Attributes:
        image: its path in the source, unique among the rows without a problem.
        line: line of the list it stands in, from 1; 0 where there is no list.
        split: train, val, ...
        label_size: height and width of the label map, where the list says so.
        cells: category and cell of the list, where the cell is not empty.
        problem: why the image cannot be used, if that is known from the list alone.
    """

    image: str
    line: int
    split: str = ""
    label_size: tuple[int, int] | None = None
    cells: tuple[tuple[str, str], ...] = ()
    problem: BadImageError | None = None


@dataclass(frozen=True, eq=False)
class Sample:
    """One image and its labels, read and checked.

    Attributes:
        row: the row it was read from.
        data: the encoded image as it is in the source.
        label_height: rows of the label map.
        label_width: columns of the label map.
        planes: label numbers, int32, `y x` each; 0 is no label. A pixel has a label for every plane.
        image_concepts: labels of the whole image.
    """

    row: Row
    data: bytes
    label_height: int
    label_width: int
    planes: tuple[np.ndarray, ...]
    image_concepts: tuple[int, ...]


class Source(Protocol):
    """Images and labels somewhere outside the store."""

    def categories(self) -> tuple[str, ...]:
        """All categories, in the order reports show them."""
        ...

    def concepts(self) -> dict[int, Concept]:
        """All labels by number, whether or not an image holds them."""
        ...

    def rows(self) -> list[Row]:
        """All images in any order, without reading them."""
        ...

    def sample(self, row: Row) -> Sample:
        """Read and check one image; may be called from several threads.

        Raises:
            BadImageError: this image cannot be used.
            InputError: the source as a whole cannot be read.
        """
        ...


def hash_order(image: str) -> str:
    """What images are ordered by, as in Broden: the md5 of their path, so any prefix is a random sample."""
    return hashlib.md5(image.encode(), usedforsecurity=False).hexdigest()


def hash_split(image: str) -> str:
    """Broden's rule where no split is given: train if the md5 of the path, as a fraction, is at most .7."""
    return "train" if int(hash_order(image), 16) / 16**32 <= 0.7 else "val"


def check_path(path: str) -> str | None:
    """Why a path from a list of images is refused, or None: it must stay below its folder."""
    if "\\" in path or any(part in ("", ".", "..") for part in path.split("/")):
        return (
            f"path {path!r} is no path below images/: write it with forward slashes, "
            "without a leading slash, '..' or '\\'"
        )
    return None


def mark_duplicates(rows: list[Row], where: str) -> list[Row]:
    """Give every later row of an image that is already listed a problem that names both lines."""
    first: dict[str, int] = {}
    marked = []
    for row in rows:
        if row.problem is None and row.image in first:
            message = (
                f"{where} line {row.line}: image {row.image!r} is already listed in line {first[row.image]}; "
                "remove one of the two"
            )
            row = Row(row.image, row.line, problem=BadImageError("duplicate", message))
        elif row.problem is None:
            first[row.image] = row.line
        marked.append(row)
    return marked

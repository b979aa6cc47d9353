"""Own images and masks, in a folder or a zip, at a path or any fsspec URL.

    concepts.csv    number,name,category: every concept once; numbers from 1 to 65535, names unique within a
                    category; categories in the order in which they first appear
    images/         JPEG or PNG files, in folders of any depth
    masks/<category>/<image without extension>.png
                    the labels of one image, pixel by pixel, in this category; as many categories as there are
                    masks. Grayscale (8 or 16 bit) or palette PNG: the value or palette index is the concept's
                    number; RGB: number = R + 256 * G. 0 is no label
    images.csv      optional: image,split and a column for every category that has labels of the whole
                    image: names or numbers of concepts joined by `;`. Only the images it lists are read.
                    `image` is the path below images/

The image `cats/tom.jpg` has its masks at `masks/object/cats/tom.png`, `masks/part/cats/tom.png`, ... All
masks of an image have one size, which need not be the image's. Without masks its label map has the image's
size. Without images.csv every file below images/ is read. An image without a split goes to `train` if the
md5 hash of its path, as a fraction of 2^128, is at most .7, else to `val`. Files and folders whose name
begins with a dot are not looked at.
"""

import logging
import posixpath
from collections import defaultdict
from functools import cached_property

import numpy as np

from pipeline.errors import InputError
from pipeline.sources import BadImageError, Concept, Row, Sample, check_path, hash_split, mark_duplicates
from pipeline.sources.files import Files, read_csv, read_records
from pipeline.sources.images import check_label_size, check_labels, read_image, read_plane

MARKER = "concepts.csv"
LIST = "images.csv"
_SUFFIXES = (".jpg", ".jpeg", ".png")

_log = logging.getLogger("raydissect")


class Folder:
    """A data set of own images and masks.

    Args:
        files: the folder or zip it lies in.
    """

    def __init__(self, files: Files) -> None:
        self._files = files

    def categories(self) -> tuple[str, ...]:
        return self._categories

    @cached_property
    def _categories(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(concept.category for concept in self._concepts.values()))

    def concepts(self) -> dict[int, Concept]:
        return self._concepts

    @cached_property
    def _concepts(self) -> dict[int, Concept]:
        concepts: dict[int, Concept] = {}
        for line, record in read_records(self._files, MARKER, ["number", "name", "category"]):
            number, name, category = record["number"], record["name"], record["category"]
            where = f"{MARKER} line {line} of {self._files.root}"
            if not number.isdecimal() or not 1 <= int(number) <= 65535:
                raise InputError(f"{where}: number is {number!r}, must be an integer from 1 to 65535")
            if not name or not category or "/" in category:
                raise InputError(f"{where}: name {name!r} and category {category!r} must be given, without '/'")
            if int(number) in concepts:
                raise InputError(f"{where}: number {number} is already that of {concepts[int(number)].name!r}")
            if (category, name) in {(concept.category, concept.name) for concept in concepts.values()}:
                raise InputError(f"{where}: {name!r} is already a concept of category {category!r}")
            concepts[int(number)] = Concept(name, category, (category,))
        if not concepts:
            raise InputError(f"{MARKER} of {self._files.root} lists no concept")
        return concepts

    @cached_property
    def _numbers(self) -> dict[tuple[str, str], int]:
        return {(concept.category, concept.name): number for number, concept in self._concepts.items()}

    @cached_property
    def _masks(self) -> dict[str, list[str]]:
        """Paths of the masks of every image, by its path without extension."""
        masks = defaultdict(list)
        for path in sorted(_visible(self._files, "masks")):
            category, _, name = path.removeprefix("masks/").partition("/")
            if category not in self._categories:
                raise InputError(
                    f"{path} of {self._files.root} is in no category of {MARKER}, which has "
                    f"{list(self._categories)}: masks lie in masks/<category>/"
                )
            masks[_stem(name)].append(path)
        return dict(masks)

    def rows(self) -> list[Row]:
        try:
            self._files.read(LIST)
        except FileNotFoundError:
            paths = sorted(path.removeprefix("images/") for path in _visible(self._files, "images"))
            rows = [_checked(Row(path, 0, hash_split(path))) for path in paths]
        else:
            rows = self._listed()
        rows = _mark_shared_stems(mark_duplicates(rows, LIST))
        self._check_masks(rows)
        return rows

    def _listed(self) -> list[Row]:
        header, lines = read_csv(self._files, LIST, ["image"])
        unknown = [name for name in header if name not in ("image", "split", *self._categories)]
        if unknown:
            raise InputError(
                f"{LIST} of {self._files.root} has the columns {unknown}, must be image, split or a category "
                f"of {MARKER}, which has {list(self._categories)}"
            )
        return [self._row(header, line, values) for line, values in lines]

    def _row(self, header: list[str], line: int, values: list[str]) -> Row:
        cells = dict(zip(header, values, strict=False))
        image = cells.get("image", "")
        if len(values) != len(header):
            message = f"{LIST} line {line}, image {image!r}: has {len(values)} cells, the header has {len(header)}"
            return Row(image, line, problem=BadImageError("row", message))
        labels = tuple((category, cells[category]) for category in self._categories if cells.get(category))
        return _checked(Row(image, line, cells.get("split") or hash_split(image), None, labels))

    def _check_masks(self, rows: list[Row]) -> None:
        stems = {_stem(row.image) for row in rows}
        orphans = [paths[0] for stem, paths in self._masks.items() if stem not in stems]
        if orphans and len(orphans) == len(self._masks):
            raise InputError(
                f"no mask of {self._files.root} belongs to an image, {orphans[0]} for one: the mask of "
                "images/a/b.jpg is masks/<category>/a/b.png"
            )
        if orphans:
            _log.warning("%s: %d masks belong to no image, the first is %s", self._files.root, len(orphans), orphans[0])

    def sample(self, row: Row) -> Sample:
        if row.problem:
            raise row.problem
        data, size = read_image(self._files, row, f"images/{row.image}")
        planes: list[np.ndarray] = []
        for path in self._masks.get(_stem(row.image), []):
            plane = read_plane(self._files, row, path, planes[0].shape if planes else None, gray_is_label=True)
            check_labels(row, f"mask {path}", plane, self._concepts, MARKER)
            planes.append(plane)
        height, width = planes[0].shape if planes else size
        check_label_size(row, height, width)
        return Sample(row, data, height, width, tuple(planes), self._image_concepts(row))

    def _image_concepts(self, row: Row) -> tuple[int, ...]:
        numbers = []
        for category, cell in row.cells:
            for entry in filter(None, map(str.strip, cell.split(";"))):
                number = int(entry) if entry.isdecimal() else self._numbers.get((category, entry))
                if number != 0 and number not in self._concepts:
                    raise BadImageError(
                        "label",
                        f"image {row.image!r}: {LIST} line {row.line} has {entry!r} in column {category}, "
                        f"which {MARKER} does not list there; add it there or correct the label",
                    )
                numbers.append(number)
        return tuple(number for number in numbers if number)


def _visible(files: Files, folder: str) -> list[str]:
    return [path for path, _ in files.entries(folder) if not any(part.startswith(".") for part in path.split("/"))]


def _stem(path: str) -> str:
    return posixpath.splitext(path)[0]


def _checked(row: Row) -> Row:
    problem = check_path(row.image)
    if problem is None and not row.image.lower().endswith(_SUFFIXES):
        problem = f"images/{row.image} is none of {', '.join(_SUFFIXES)}; convert or remove it"
    if problem is None:
        return row
    return Row(row.image, row.line, problem=BadImageError("row", f"image {row.image!r}: {problem}"))


def _mark_shared_stems(rows: list[Row]) -> list[Row]:
    """Refuse images that differ by extension only: their masks would be the same files."""
    first: dict[str, str] = {}
    marked = []
    for row in rows:
        if row.problem is None and first.setdefault(_stem(row.image), row.image) != row.image:
            message = (
                f"image {row.image!r} and image {first[_stem(row.image)]!r} differ by extension only and "
                "would share their masks; rename one"
            )
            row = Row(row.image, row.line, problem=BadImageError("duplicate", message))
        marked.append(row)
    return marked

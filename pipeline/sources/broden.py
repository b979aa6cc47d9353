"""Broden as published (Bau et al. 2017), in a folder or a zip, at a path or any fsspec URL.

    index.csv       image,split,ih,iw,sh,sw and one column a category; read by name, in any order
    label.csv       number,name,category,frequency,coverage,syns; category as `part(213);material(207)`
    category.csv    name,first,last,count,frequency; its order is the order of the categories
    c_<category>.csv    code,number,name,frequency,coverage; used where a label has several categories
    images/         every image and label plane that index.csv names

A category's cell holds entries joined by `;`: an integer labels the whole image, anything else is a PNG of
`sh` x `sw` pixels with label = R + 256 * G. Label 0 is none. Byte order marks, CRLF, shuffled rows and
missing c_<category>.csv are fine.
"""

import logging
import re
from functools import cached_property

import numpy as np

from pipeline.errors import InputError
from pipeline.sources import BadImageError, Concept, Row, Sample, check_path, mark_duplicates
from pipeline.sources.files import Files, read_csv, read_records
from pipeline.sources.images import check_label_size, check_labels, read_image, read_plane

MARKER = "index.csv"
_ROW = ("image", "split", "sh", "sw")
_IGNORED = ("ih", "iw")  # the image's own size is what counts

_log = logging.getLogger("raydissect")


class Broden:
    """A data set in Broden's format.

    Args:
        files: the folder or zip it lies in.
    """

    def __init__(self, files: Files) -> None:
        self._files = files

    def categories(self) -> tuple[str, ...]:
        return self._categories

    @cached_property
    def _categories(self) -> tuple[str, ...]:
        names = [record["name"] for _, record in read_records(self._files, "category.csv", ["name"])]
        if not names or "" in names or len(set(names)) < len(names):
            raise InputError(f"category.csv of {self._files.root} must name each category once, it has {names}")
        return tuple(names)

    def concepts(self) -> dict[int, Concept]:
        return self._concepts

    @cached_property
    def _concepts(self) -> dict[int, Concept]:
        records = read_records(self._files, "label.csv", ["number", "name", "category"])
        listed: dict[int, tuple[str, dict[str, int]]] = {}
        for line, record in records:
            number = _number(record["number"])
            where = f"label.csv line {line} of {self._files.root}"
            if not number:
                raise InputError(f"{where}: number is {record['number']!r}, must be an integer of at least 1")
            if number in listed:
                raise InputError(f"{where}: number {number} is already that of {listed[number][0]!r}")
            listed[number] = (record["name"], self._frequencies(where, record["category"]))
        own = self._own_categories({number: frequencies for number, (_, frequencies) in listed.items()})
        return {
            number: Concept(name, own[number], tuple(frequencies))
            for number, (name, frequencies) in sorted(listed.items())
        }

    def _frequencies(self, where: str, cell: str) -> dict[str, int]:
        """Frequency by category of a cell such as `part(213);material(207)`."""
        frequencies = {}
        for entry in cell.split(";"):
            name, _, frequency = entry.strip().partition("(")
            if name not in self._categories:
                raise InputError(
                    f"{where}: category {name!r} is not in category.csv, which lists {list(self._categories)}"
                )
            frequencies[name] = _number(frequency.rstrip(")")) or 0
        return frequencies

    def _own_categories(self, listed: dict[int, dict[str, int]]) -> dict[int, str]:
        """The category of largest coverage, ties to the later one, as in the original."""
        own = {number: next(iter(frequencies)) for number, frequencies in listed.items()}
        several = {number: frequencies for number, frequencies in listed.items() if len(frequencies) > 1}
        coverages = {
            category: self._coverages(category)
            for category in self._categories
            if any(category in frequencies for frequencies in several.values())
        }
        present = {category: coverage for category, coverage in coverages.items() if coverage is not None}
        missing = [category for category in coverages if category not in present]
        fallback = 0
        for number, frequencies in several.items():
            if any(category in missing for category in frequencies):
                own[number] = max(frequencies, key=lambda category: frequencies[category])
                fallback += 1
            else:
                own[number] = max(
                    (present[category].get(number, 0.0), index, category)
                    for index, category in enumerate(self._categories)
                    if category in frequencies
                )[2]
        if fallback:
            _log.warning(
                "%s has no %s: %d labels of several categories go to the most frequent one of label.csv",
                self._files.root, ", ".join(f"c_{category}.csv" for category in missing), fallback,
            )  # fmt: skip
        return own

    def _coverages(self, category: str) -> dict[int, float] | None:
        """Coverage by label number, or None where the file is missing."""
        path = f"c_{category}.csv"
        try:
            self._files.read(path)
        except FileNotFoundError:
            return None
        records = read_records(self._files, path, ["number", "coverage"])
        try:
            return {int(record["number"]): float(record["coverage"]) for _, record in records}
        except ValueError as error:
            raise InputError(f"{path} of {self._files.root}: number and coverage must be numbers: {error}") from error

    def rows(self) -> list[Row]:
        header, lines = read_csv(self._files, MARKER, [*_ROW, *self._categories])
        unknown = [name for name in header if name not in (*_ROW, *_IGNORED, *self._categories)]
        if unknown:
            _log.warning(
                "%s: columns %s of index.csv are in no category.csv and are not read",
                self._files.root,
                unknown,
            )
        return mark_duplicates([self._row(header, line, cells) for line, cells in lines], MARKER)

    def _row(self, header: list[str], line: int, values: list[str]) -> Row:
        cells = dict(zip(header, values, strict=False))
        image = cells.get("image", "")
        height, width = _number(cells.get("sh", "")), _number(cells.get("sw", ""))
        if len(values) != len(header):
            problem = f"has {len(values)} cells, the header has {len(header)}"
        elif not cells["split"]:
            problem = "has no split: write train or val"
        elif height is None or width is None:
            problem = f"sh, sw is {cells['sh']!r}, {cells['sw']!r}, must be the size of its label planes"
        else:
            problem = check_path(image)
        if problem:
            error = BadImageError("row", f"{MARKER} line {line}, image {image!r}: {problem}")
            return Row(image, line, problem=error)
        labels = tuple((category, cells[category]) for category in self._categories if cells[category])
        return Row(image, line, cells["split"], (height or 0, width or 0), labels)

    def sample(self, row: Row) -> Sample:
        if row.problem:
            raise row.problem
        size = row.label_size or (0, 0)
        check_label_size(row, *size)
        data, _ = read_image(self._files, row, f"images/{row.image}")
        planes, image_concepts = [], []
        for category, cell in row.cells:
            for entry in filter(None, map(str.strip, cell.split(";"))):
                number = _number(entry)
                if number is None:
                    path = f"images/{entry}"
                    plane = read_plane(self._files, row, path, size)
                    check_labels(row, f"label plane {path}", plane, self._concepts, "label.csv")
                    planes.append(plane)
                elif number:
                    where = f"{MARKER} line {row.line}, column {category},"
                    check_labels(row, where, np.array([number]), self._concepts, "label.csv")
                    image_concepts.append(number)
        return Sample(row, data, *size, tuple(planes), tuple(image_concepts))


def _number(text: str) -> int | None:
    """A decimal integer as index.csv writes label numbers; None for anything else."""
    return int(text) if re.fullmatch("[0-9]{1,9}", text) else None

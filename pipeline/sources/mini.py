"""The `mini` source: a small data set in Broden's format, generated, so that a demo needs no download.

Little scenes (streets, beaches, kitchens, ...) are painted from parts, with materials, textures and colors;
the strokes that paint the image also write its labels, which are therefore exact. A twelfth of the images are
swatches of textures, labelled as a whole, as Broden's are.
"""

import csv
import hashlib
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline.errors import SettingsError
from pipeline.sources.drawing.canvas import Canvas, Pen
from pipeline.sources.drawing.palette import NUMBERS
from pipeline.sources.drawing.scenes import SCENES, swatch

CATEGORIES = ("color", "object", "part", "material", "scene", "texture")
SWATCH_EVERY = 12  # one image in so many is a swatch of textures, which has no scene
TRAIN_SHARE = 0.7  # of the range of hashes, as in Broden
NAMES = {number: name for name, number in NUMBERS.items()}

LabelMap = NDArray[np.uint16]  # y x


@dataclass
class _Counts:
    """Images that hold a concept, and the sum of the shares of pixels it covers in them."""

    frequency: dict[tuple[str, int], int] = field(default_factory=lambda: defaultdict(int))
    coverage: dict[tuple[str, int], float] = field(default_factory=lambda: defaultdict(float))

    def add(self, category: str, planes: Sequence[LabelMap], whole_image: Iterable[int]) -> None:
        for number in sorted({int(n) for plane in planes for n in np.unique(plane)} - {0}):
            pixels = np.logical_or.reduce([plane == number for plane in planes])
            self.frequency[category, number] += 1
            self.coverage[category, number] += float(pixels.mean())
        for number in whole_image:
            self.frequency[category, number] += 1
            self.coverage[category, number] += 1.0


def write_mini(folder: Path, num_images: int = 480, size: int = 112, seed: int = 0) -> None:
    """Write a generated data set in Broden's format: the same bytes for the same arguments.

    Image i depends on `size`, `seed` and i alone, so that a larger set holds a smaller one.

    Args:
        folder: created where it does not exist; `index.csv` is written last.
        num_images: images in all.
        size: side of the images; label maps have half of it.
        seed: another one gives other images.

    Raises:
        SettingsError: `num_images` or `size` is out of range, or `folder` is a file.
    """
    if num_images < 1:
        raise SettingsError(f"num_images is {num_images}, must be at least 1")
    if size < 32 or size % 2:
        raise SettingsError(f"size is {size}, must be even and at least 32: label maps have half an image's side")
    if seed < 0:
        raise SettingsError(f"seed is {seed}, must not be negative")
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise SettingsError(f"{folder} is a file, must be a folder to write images and tables into")
    counts = _Counts()
    rows = [_write_image(folder, index, size, seed, counts) for index in range(num_images)]
    _write_labels(folder, counts)
    rows.sort(key=lambda row: _hash(row["image"]))
    columns = ["image", "split", "ih", "iw", "sh", "sw", *CATEGORIES]
    _write_csv(folder / "index.csv", columns, [[row[column] for column in columns] for row in rows])


def _write_image(folder: Path, index: int, size: int, seed: int, counts: _Counts) -> dict[str, str]:
    """Paint one image, write it and its label maps, and return its row of index.csv."""
    canvas = Canvas(size, np.random.default_rng([seed, index]))
    swatch_number, place = divmod(index, SWATCH_EVERY)
    if place == SWATCH_EVERY - 1:
        stem, scenes = f"texture/texture_{index:05d}", []
        textures = [NUMBERS[name] for name in swatch(Pen(canvas))]
        canvas.planes["texture"][:] = 0
    else:
        scene = list(SCENES)[(index - swatch_number) % len(SCENES)]
        kind = scene.removesuffix("-s").split("-")[0]
        stem, scenes, textures = f"{kind}/{kind}_{index:05d}", [NUMBERS[scene]], []
        SCENES[scene](Pen(canvas))
    mirrored = bool(canvas.rng.random() < 0.5)

    path = folder / "images" / f"{stem}.jpg"
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(canvas.image(mirrored)).save(path, quality=92)
    sides = dict.fromkeys(("ih", "iw"), str(size)) | dict.fromkeys(("sh", "sw"), str(size // 2))
    row = {
        "image": f"{stem}.jpg",
        "split": "train" if _hash(f"{stem}.jpg") <= TRAIN_SHARE else "val",
        **sides,
    }
    for category in CATEGORIES:
        names = {"part": ("part", "detail"), "scene": ()}.get(category, (category,))
        planes = [plane for name in names if (plane := canvas.label_map(name, mirrored)).any()]
        whole_image = {"scene": scenes, "texture": textures}.get(category, [])
        counts.add(category, planes, whole_image)
        files = _write_planes(folder, f"{stem}_{category}", planes)
        row[category] = ";".join([*files, *map(str, whole_image)])
    return row


def _write_planes(folder: Path, stem: str, planes: Sequence[LabelMap]) -> list[str]:
    files = [f"{stem}.png"] if len(planes) == 1 else [f"{stem}_{i + 1}.png" for i in range(len(planes))]
    for file, plane in zip(files, planes, strict=True):
        channels = np.stack([plane % 256, plane // 256, np.zeros_like(plane)], axis=-1)
        Image.fromarray(channels.astype(np.uint8)).save(folder / "images" / file)
    return files


def _write_labels(folder: Path, counts: _Counts) -> None:
    """label.csv, category.csv and c_<category>.csv, with what was counted in the label maps."""
    listed: dict[int, list[str]] = defaultdict(list)
    categories = []
    for category in CATEGORIES:
        numbers = [number for of, number in counts.frequency if of == category]
        numbers.sort(key=lambda number: (-counts.frequency[category, number], number))
        rows = []
        for code, number in enumerate(numbers, start=1):
            listed[number].append(category)
            frequency, coverage = counts.frequency[category, number], counts.coverage[category, number]
            rows.append([code, number, NAMES[number], frequency, f"{coverage:.12g}"])
        if rows:
            _write_csv(folder / f"c_{category}.csv", ["code", "number", "name", "frequency", "coverage"], rows)
            total = sum(counts.frequency[category, number] for number in numbers)
            categories.append([category, min(numbers), max(numbers), len(numbers), total])
    _write_csv(folder / "category.csv", ["name", "first", "last", "count", "frequency"], categories)

    labels = []
    for number in sorted(listed):
        of = sorted(listed[number], key=lambda category: -counts.frequency[category, number])
        text = ";".join(f"{category}({counts.frequency[category, number]})" for category in of)
        frequency = sum(counts.frequency[category, number] for category in of)
        coverage = sum(counts.coverage[category, number] for category in of)
        labels.append([number, NAMES[number], text, frequency, f"{coverage:.6f}", ""])
    _write_csv(folder / "label.csv", ["number", "name", "category", "frequency", "coverage", "syns"], labels)


def _write_csv(path: Path, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows(rows)


def _hash(name: str) -> float:
    """The MD5 of a name as a number in [0, 1): Broden's order and its split."""
    return int(hashlib.md5(name.encode(), usedforsecurity=False).hexdigest(), 16) / 2**128

"""Tiny data sets in Broden's format, written with whatever hazard a test asks for."""

import csv
import io
import struct
import zipfile
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

CATEGORIES = ("color", "object", "part", "material", "scene", "texture")
LABELS = {
    1: ("red-c", "color(9)"),
    2: ("blue-c", "color(7)"),
    255: ("cat", "object(5)"),
    256: ("dog", "object(4)"),
    300: ("hair", "part(5);material(5)"),
    301: ("leg", "part(3)"),
    700: ("street-s", "scene(2)"),
    1197: ("dotted", "texture(2)"),
}
COVERAGES = {"part": {300: 2.0, 301: 1.0}, "material": {300: 3.0}}


@dataclass(frozen=True)
class TinyImage:
    """One row of index.csv and its files.

    Attributes:
        path: below images/.
        split: train, val, ...
        data: the encoded image; None writes no file.
        planes: label numbers, `y x`, by category; several a category where several planes.
        whole: numbers of the whole image by category.
        label_size: height and width in index.csv.
    """

    path: str
    split: str = "train"
    data: bytes | None = b""
    planes: Mapping[str, Sequence[np.ndarray]] = field(default_factory=dict)
    whole: Mapping[str, Sequence[int]] = field(default_factory=dict)
    label_size: tuple[int, int] = (6, 5)


def encode_image(pixels: np.ndarray, kind: str = "JPEG") -> bytes:
    """Encode an array that Pillow knows the mode of."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


def encode_labels(labels: np.ndarray) -> bytes:
    """A label plane as Broden stores it: R + 256 * G."""
    rgb = np.zeros((*labels.shape, 3), np.uint8)
    rgb[..., 0] = labels % 256
    rgb[..., 1] = labels // 256
    return encode_image(rgb, "PNG")


def png_file(width: int, height: int, bits: int = 8, pixels: bytes = b"") -> bytes:
    """An RGB PNG put together by hand, so that its header can claim what its pixels do not hold."""
    header = struct.pack(">IIBBBBB", width, height, bits, 2, 0, 0, 0)
    data = b"\x89PNG\r\n\x1a\n"
    for kind, body in [(b"IHDR", header), (b"IDAT", pixels), (b"IEND", b"")]:
        data += struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
    return data


def tiny_images(number: int, seed: int = 0, label_size: tuple[int, int] = (6, 5)) -> list[TinyImage]:
    """Random images with a color plane each, some with objects, two part planes, a scene or a texture."""
    generator = np.random.default_rng(seed)
    images = []
    for index in range(number):
        pixels = generator.integers(0, 256, (12, 10, 3), dtype=np.uint8)
        planes = {"color": [generator.choice([0, 1, 2], label_size)]}
        if index % 2:
            planes["object"] = [generator.choice([0, 255, 256], label_size)]
            planes["part"] = [generator.choice([0, 300, 301], label_size) for _ in range(2)]
        whole = {"scene": [700]} if index % 3 == 0 else {"texture": [1197]} if index % 5 == 0 else {}
        split = "val" if index % 4 == 3 else "train"
        path = f"source{index % 2}/image_{index:03d}.jpg"
        images.append(TinyImage(path, split, encode_image(pixels), planes, whole, label_size))
    return images


def write_csv(
    path: Path, header: Sequence[str], rows: Iterable[Sequence[object]], newline: str = "\n", bom: bool = False
) -> None:
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator=newline)
    writer.writerow(header)
    writer.writerows(rows)
    path.write_bytes((b"\xef\xbb\xbf" if bom else b"") + buffer.getvalue().encode())


def write_broden(
    folder: Path,
    images: Sequence[TinyImage],
    *,
    labels: Mapping[int, tuple[str, str]] = LABELS,
    coverages: Mapping[str, Mapping[int, float]] = COVERAGES,
    columns: Sequence[str] = ("image", "split", "ih", "iw", "sh", "sw", *CATEGORIES),
    newline: str = "\n",
    bom: bool = False,
) -> Path:
    """Write a Broden folder; `coverages` lists the c_<category>.csv that are written."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for image in images:
        height, width = image.label_size
        row = {"image": image.path, "split": image.split, "ih": 12, "iw": 10, "sh": height, "sw": width}
        if image.data is not None:
            _write(folder / "images" / image.path, image.data)
        for category in CATEGORIES:
            entries = []
            for index, plane in enumerate(image.planes.get(category, [])):
                entries.append(f"{image.path.rsplit('.', 1)[0]}_{category}_{index}.png")
                _write(folder / "images" / entries[-1], encode_labels(plane))
            row[category] = ";".join([*entries, *map(str, image.whole.get(category, []))])
        rows.append([row[column] for column in columns])
    write_csv(folder / "index.csv", columns, rows, newline, bom)
    listed = [(number, name, category, 1, 1.0, "") for number, (name, category) in labels.items()]
    header = ("number", "name", "category", "frequency", "coverage", "syns")
    write_csv(folder / "label.csv", header, listed, newline, bom)
    header = ("name", "first", "last", "count", "frequency")
    write_csv(folder / "category.csv", header, [(name, 1, 2, 2, 2) for name in CATEGORIES], newline, bom)
    for category, numbers in coverages.items():
        listed = [(code, number, "", 1, value) for code, (number, value) in enumerate(numbers.items(), 1)]
        header = ("code", "number", "name", "frequency", "coverage")
        write_csv(folder / f"c_{category}.csv", header, listed, newline, bom)
    return folder


def zip_folder(folder: Path, path: Path, top: str = "") -> Path:
    """Zip a folder, its files below `top` where that is given."""
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(folder.rglob("*")):
            if file.is_file():
                archive.write(file, f"{top}{file.relative_to(folder).as_posix()}")
    return path


def _write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)

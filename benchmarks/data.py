"""The data sets that are measured on, each a folder in Broden's format.

Real photographs where there are some (`--data`, or `data/broden_real` of `$RAYDISSECT_SHARED` or `../shared`),
otherwise scenes that the `mini` source draws at 224 pixels. From either, the same images with ten times the
concepts; and any number of images too small to matter, for the benchmark of memory.
"""

import csv
import hashlib
import io
import os
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
from jaxtyping import Int64
from PIL import Image

from pipeline.sources.mini import write_mini

ROOT = Path(__file__).parents[1]
SIDE = 224  # of drawn scenes
TIMES = 10  # concepts made of one

Plane = Int64[np.ndarray, "y x"]
Part = Callable[[str, int, Plane], Plane]
"""Which of a concept's ten every pixel goes to, given the image, the concept, and its mask."""


def shared_folder() -> Path | None:
    """The folder with data/broden_real and data/weights, where there is one."""
    given = os.environ.get("RAYDISSECT_SHARED")
    folder = Path(given) if given else ROOT.parent / "shared"
    return folder if (folder / "data").is_dir() else None


def find_photographs() -> Path | None:
    """A Broden folder of real photographs, where there is one."""
    shared = shared_folder()
    found = shared / "data" / "broden_real" if shared else None
    return found if found and (found / "index.csv").exists() else None


def draw_scenes(folder: Path, number: int) -> Path:
    """Scenes as the demo's, but of the size that ImageNet's networks take."""
    write_mini(folder, number, SIDE)
    return folder


def split_by_image(concepts: Counter[int]) -> Part:
    """Ten concepts of one, each in a tenth of its images: more in the data set, as many an image."""
    given: dict[tuple[str, int], int] = {}

    def part(image: str, number: int, mask: Plane) -> Plane:
        if (image, number) not in given:
            given[image, number] = concepts[number] % TIMES
            concepts[number] += 1
        return np.full_like(mask, given[image, number])

    return part


def split_by_stripe(image: str, number: int, mask: Plane) -> Plane:
    """Ten concepts of one, each a tenth of the label map's rows: ten times as many an image."""
    stripes = np.arange(mask.shape[0]) * TIMES // mask.shape[0]  # y
    return np.broadcast_to(stripes[:, None], mask.shape)


def multiply_concepts(source: Path, target: Path, images: int, part: Part) -> Path:
    """Write a Broden folder of some of a source's images, with ten concepts for each of its own.

    Concept c becomes 10 c .. 10 c + 9. The images are the ones that `copy_images` takes, so that the folders differ
    in their labels alone. A label of the whole image has no rows, and is all in its first stripe.
    """
    rows = _first_rows(source, images)
    categories = [name for name in rows[0] if name not in ("image", "split", "ih", "iw", "sh", "sw")]
    written = []
    for row in rows:
        _write_bytes(target / "images" / row["image"], (source / "images" / row["image"]).read_bytes())
        changed = dict(row)
        for category in categories:
            entries = filter(None, row[category].split(";"))
            changed[category] = ";".join(_multiply(source, target, row["image"], entry, part) for entry in entries)
        written.append(changed)
    for path in sorted(source.glob("*.csv")):
        if path.name not in ("index.csv", "category.csv"):
            _write_csv(target / path.name, [_renamed(row, k) for row in _read(path) for k in range(TIMES)])
    _write_bytes(target / "category.csv", (source / "category.csv").read_bytes())
    _write_csv(target / "index.csv", written)
    return target


def copy_images(source: Path, target: Path, images: int) -> Path:
    """Write a Broden folder of some of a source's images, with its own concepts."""
    rows = _first_rows(source, images)
    for row in rows:
        planes = [entry for cell in row.values() for entry in cell.split(";") if entry.endswith(".png")]
        for name in {row["image"], *planes}:
            _write_bytes(target / "images" / name, (source / "images" / name).read_bytes())
    for path in sorted(source.glob("*.csv")):
        _write_bytes(target / path.name, path.read_bytes())
    _write_csv(target / "index.csv", rows)
    return target


def write_specks(folder: Path, images: int, distinct: int = 50, side: int = 32) -> Path:
    """Any number of images of `side` pixels, of which only some differ, with four objects."""
    generator = np.random.default_rng(0)
    for index in range(min(distinct, images)):
        blotches = generator.integers(0, 256, (4, 4, 3)).repeat(side // 4, 0).repeat(side // 4, 1)
        labels = generator.integers(0, 5, (4, 4)).repeat(side // 4, 0).repeat(side // 4, 1)
        _write_bytes(folder / "images" / f"speck{index}.jpg", _encode(blotches.astype(np.uint8), "JPEG"))
        _write_plane(folder / "images" / f"speck{index}.png", labels)
    rows = []
    for index in range(images):
        name = f"{index // 1000:03d}/{index % 1000:03d}.jpg"
        path = folder / "images" / name
        path.parent.mkdir(exist_ok=True)
        path.hardlink_to(folder / "images" / f"speck{index % distinct}.jpg")
        size = dict.fromkeys(("ih", "iw", "sh", "sw"), side)
        rows.append({"image": name, "split": "train", **size, "object": f"speck{index % distinct}.png"})
    _write_csv(folder / "index.csv", rows)
    _write_csv(folder / "category.csv", [{"name": "object"}])
    labels = [{"number": number, "name": f"speck {number}", "category": "object(1)"} for number in range(1, 5)]
    _write_csv(folder / "label.csv", labels)
    return folder


def _first_rows(source: Path, images: int) -> list[dict[str, str]]:
    """Rows of index.csv in the order of their paths' hashes, as ingest has them: a sample of all sources."""
    rows = _read(source / "index.csv")
    return sorted(rows, key=lambda row: hashlib.md5(row["image"].encode()).hexdigest())[:images]


def _multiply(source: Path, target: Path, image: str, entry: str, part: Part) -> str:
    """One entry of index.csv with its concepts replaced; a plane is written anew."""
    if entry.isdigit():
        number = np.full((1, 1), int(entry))
        return str(int((number * TIMES + part(image, int(entry), number)).item()))
    with Image.open(source / "images" / entry) as file:
        rgb = np.asarray(file.convert("RGB")).astype(np.int64)
    labels = rgb[..., 0] + 256 * rgb[..., 1]  # y x
    changed = np.zeros_like(labels)
    for number in np.unique(labels[labels > 0]).tolist():
        mask = labels == number
        changed[mask] = (number * TIMES + part(image, number, labels))[mask]
    written = (
        f"{image.rpartition('.')[0]}/{entry.replace('/', '-')}"  # images may share a plane, but not what becomes of it
    )
    _write_plane(target / "images" / written, changed)
    return written


def _renamed(row: dict[str, str], k: int) -> dict[str, str]:
    """A row of label.csv or c_<category>.csv for one of the ten."""
    return {**row, "number": str(int(row["number"]) * TIMES + k), "name": f"{row['name']} {k}"}


def _write_plane(path: Path, labels: np.ndarray) -> None:
    """A label plane as Broden stores it: R + 256 * G."""
    if labels.max() >= 2**16:
        raise ValueError(f"a label is {labels.max()}, must be below 65536: Broden's planes have two bytes a pixel")
    rgb = np.stack([labels % 256, labels // 256, np.zeros_like(labels)], -1).astype(np.uint8)
    _write_bytes(path, _encode(rgb, "PNG"))


def _encode(pixels: np.ndarray, kind: str) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


def _write_bytes(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def _read(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        return list(csv.DictReader(file))


def _write_csv(path: Path, rows: Iterable[dict]) -> None:
    rows = list(rows)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]) if rows else [])
        writer.writeheader()
        writer.writerows(rows)

"""The generated data set against what Broden's format promises, recounted from the files alone."""

import csv
import hashlib
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.errors import SettingsError
from pipeline.sources.drawing.canvas import Canvas, Pen
from pipeline.sources.drawing.palette import NUMBERS, SHADES, Surface
from pipeline.sources.mini import CATEGORIES, write_mini

NUM_IMAGES, SIZE = 36, 64


@pytest.fixture(scope="module")
def mini(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mini")
    write_mini(folder, NUM_IMAGES, SIZE)
    return folder


def read_rows(path: Path) -> list[dict[str, str]]:
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def read_plane(path: Path) -> np.ndarray:
    channels = np.asarray(Image.open(path)).astype(int)
    assert channels[..., 2].max() == 0
    return channels[..., 0] + 256 * channels[..., 1]


def read_size(path: Path) -> tuple[int, int]:
    with Image.open(path) as image:
        return image.size


def digests(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def shares(folder: Path, row: dict[str, str], category: str) -> dict[int, float]:
    """The share of pixels of every label in one cell of the index, the slow way: pixel by pixel."""
    labels = defaultdict(set)
    for entry in filter(None, row[category].split(";")):
        if entry.isdigit():
            labels[int(entry)] = {(y, x) for y in range(SIZE // 2) for x in range(SIZE // 2)}
        else:
            for (y, x), number in np.ndenumerate(read_plane(folder / "images" / entry)):
                if number:
                    labels[int(number)].add((y, x))
    return {number: len(pixels) / (SIZE // 2) ** 2 for number, pixels in labels.items()}


@pytest.fixture(scope="module")
def counted(mini):
    """(category, number) -> images that hold the label and the sum of its shares."""
    counts = defaultdict(lambda: [0, 0.0])
    for row in read_rows(mini / "index.csv"):
        for category in CATEGORIES:
            for number, share in shares(mini, row, category).items():
                counts[category, number][0] += 1
                counts[category, number][1] += share
    return counts


def test_the_same_arguments_give_the_same_bytes(mini, tmp_path):
    write_mini(tmp_path, NUM_IMAGES, SIZE)
    assert digests(tmp_path) == digests(mini)


def test_every_image_differs_from_every_other_and_from_those_of_another_seed(mini, tmp_path):
    write_mini(tmp_path, NUM_IMAGES, SIZE, seed=1)
    images = [path for folder in (mini, tmp_path) for path in folder.rglob("*.jpg")]
    assert len({path.read_bytes() for path in images}) == 2 * NUM_IMAGES


def test_a_larger_set_holds_a_smaller_one(mini, tmp_path):
    write_mini(tmp_path, 10, SIZE)
    small = {name: sha256 for name, sha256 in digests(tmp_path).items() if name.startswith("images")}
    assert small.items() <= digests(mini).items()
    assert len(read_rows(tmp_path / "index.csv")) == 10


def test_index_is_in_hash_order_and_split_by_it(mini):
    rows = read_rows(mini / "index.csv")
    hashes = [int(hashlib.md5(row["image"].encode()).hexdigest(), 16) / 2**128 for row in rows]
    assert len(rows) == NUM_IMAGES
    assert hashes == sorted(hashes)
    assert [row["split"] for row in rows] == ["train" if value <= 0.7 else "val" for value in hashes]
    assert {row["split"] for row in rows} == {"train", "val"}


def test_sizes_are_those_of_the_index(mini):
    for row in read_rows(mini / "index.csv"):
        assert read_size(mini / "images" / row["image"]) == (int(row["iw"]), int(row["ih"])) == (SIZE, SIZE)
        for category in CATEGORIES:
            for entry in row[category].split(";"):
                if entry.endswith(".png"):
                    label_size = read_size(mini / "images" / entry)
                    assert label_size == (int(row["sw"]), int(row["sh"])) == (SIZE // 2, SIZE // 2)


def test_index_names_every_file_once(mini):
    named = []
    for row in read_rows(mini / "index.csv"):
        named.append(row["image"])
        named += [entry for c in CATEGORIES for entry in row[c].split(";") if entry.endswith(".png")]
    there = [path.relative_to(mini / "images").as_posix() for path in (mini / "images").rglob("*.*")]
    assert sorted(named) == sorted(there)


def test_category_tables_hold_what_is_recounted_from_the_planes(mini, counted):
    listed = {}
    for category in CATEGORIES:
        rows = read_rows(mini / f"c_{category}.csv")
        assert [int(row["code"]) for row in rows] == list(range(1, len(rows) + 1))
        assert [int(row["frequency"]) for row in rows] == sorted((int(r["frequency"]) for r in rows), reverse=True)
        for row in rows:
            assert NUMBERS[row["name"]] == int(row["number"])
            listed[category, int(row["number"])] = int(row["frequency"]), float(row["coverage"])
    assert listed.keys() == counted.keys()
    for key, (frequency, coverage) in listed.items():
        assert (frequency, coverage) == (counted[key][0], pytest.approx(counted[key][1], rel=1e-9))


def test_label_table_sums_the_category_tables(mini, counted):
    rows = read_rows(mini / "label.csv")
    assert [int(row["number"]) for row in rows] == sorted({number for _, number in counted})
    for row in rows:
        number = int(row["number"])
        of = {category: counts for (category, n), counts in counted.items() if n == number}
        assert set(row["category"].split(";")) == {f"{category}({counts[0]})" for category, counts in of.items()}
        assert int(row["frequency"]) == sum(counts[0] for counts in of.values())
        assert float(row["coverage"]) == pytest.approx(sum(counts[1] for counts in of.values()), abs=1e-6)


def test_category_list_sums_up_the_category_tables(mini):
    rows = {row["name"]: row for row in read_rows(mini / "category.csv")}
    assert list(rows) == list(CATEGORIES)
    for category, row in rows.items():
        labels = read_rows(mini / f"c_{category}.csv")
        numbers = [int(label["number"]) for label in labels]
        assert (int(row["first"]), int(row["last"]), int(row["count"])) == (min(numbers), max(numbers), len(numbers))
        assert int(row["frequency"]) == sum(int(label["frequency"]) for label in labels)


def test_the_set_has_every_kind_of_cell(mini):
    rows = read_rows(mini / "index.csv")
    labels = read_rows(mini / "label.csv")
    assert any(row["texture"].replace(";", "").isdigit() and ";" in row["texture"] for row in rows)
    assert any(row["texture"].endswith(".png") for row in rows)
    assert any(row["part"].endswith("_part_2.png") for row in rows)
    assert any(row["scene"] == "" for row in rows)
    assert all(";" not in row["scene"] for row in rows)
    assert {"part", "material"} in [{entry.split("(")[0] for entry in row["category"].split(";")} for row in labels]
    assert max(int(row["number"]) for row in labels) > 255


def test_a_stroke_hides_what_it_covers_and_nothing_else():
    canvas = Canvas(64, np.random.default_rng(0))
    pen = Pen(canvas)
    pen.box(0, 0, 1, 1, Surface("white", "snow"), object="snow")
    pen.box(0.25, 0.5, 0.75, 1, Surface("red", "brick"), object="house", part="wall")
    pen.box(0.5, 0.75, 0.75, 1, Surface("blue", "wood"), part="door")
    for plane, outside, house, door in (
        ("object", "snow", "house", "house"),
        ("part", "", "wall", "door"),
        ("material", "snow", "brick", "wood"),
        ("color", "white-c", "red-c", "blue-c"),
    ):
        expected = np.full((32, 32), NUMBERS.get(outside, 0))
        expected[16:, 8:24] = NUMBERS[house]
        expected[24:, 16:24] = NUMBERS[door]
        # A stroke may spill by one pixel of the label map where its edge lies on one.
        differs = canvas.label_map(plane, mirrored=False) != expected
        assert not differs[:15].any()
        assert not differs[18:23, 10:23].any()
        assert not differs[26:, 18:23].any()
        assert not differs[:, :7].any()


def test_a_mirrored_image_has_mirrored_labels():
    canvas = Canvas(64, np.random.default_rng(0))
    Pen(canvas).box(0, 0, 1, 1, Surface("white"), object="snow")
    Pen(canvas).box(0, 0, 0.4, 1, Surface("black"), object="house")
    dark = canvas.image(mirrored=True).mean(axis=2)[::2, ::2] < 100
    house = canvas.label_map("object", mirrored=True) == NUMBERS["house"]
    assert (dark == house).mean() > 0.95
    assert house[:, -1].all()
    assert not house[:, 0].any()


def test_colors_are_those_painted(tmp_path):
    write_mini(tmp_path, 24, SIZE)
    sums, pixels = defaultdict(lambda: np.zeros(3)), defaultdict(int)
    for row in read_rows(tmp_path / "index.csv"):
        plane = read_plane(tmp_path / "images" / row["color"])
        image = np.asarray(Image.open(tmp_path / "images" / row["image"]).reduce(2)) / 255
        for number in np.unique(plane):
            sums[number] += image[plane == number].sum(axis=0)
            pixels[number] += (plane == number).sum()
    mean = {name: sums[NUMBERS[name]] / pixels[NUMBERS[name]] for name in {name for name, _ in SHADES.values()}}
    assert min(mean, key=lambda name: mean[name].sum()) == "black-c"
    assert max(mean, key=lambda name: mean[name].sum()) == "white-c"
    assert [int(mean[name].argmax()) for name in ("red-c", "green-c", "blue-c")] == [0, 1, 2]
    assert np.ptp(mean["grey-c"]) < 0.1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_images": 0}, "num_images is 0"),
        ({"size": 33}, "size is 33"),
        ({"size": 16}, "size is 16"),
        ({"seed": -1}, "seed is -1"),
    ],
)
def test_settings_out_of_range_are_named(tmp_path, settings, message):
    with pytest.raises(SettingsError, match=message):
        write_mini(tmp_path / "none", **settings)
    assert not (tmp_path / "none").exists()


def test_a_file_in_place_of_the_folder_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(SettingsError, match="is a file, must be a folder"):
        write_mini(tmp_path / "file", 1)

import csv
import io
import stat
import zipfile
import zlib
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from pipeline.errors import InputError
from pipeline.sources import BadImageError
from pipeline.sources.broden import MARKER, Broden
from pipeline.sources.files import open_files
from tests.shared import shared_data
from tests.tiny_broden import (
    CATEGORIES,
    COVERAGES,
    LABELS,
    TinyImage,
    encode_image,
    encode_labels,
    png_file,
    tiny_images,
    write_broden,
    write_csv,
    zip_folder,
)

JPEG = encode_image(np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8))


def read(folder):
    return Broden(open_files(str(folder), MARKER))


def only_sample(folder):
    source = read(folder)
    (row,) = source.rows()
    return source.sample(row)


def rejected(folder):
    """The error of the only image of a data set."""
    with pytest.raises(BadImageError) as caught:
        only_sample(folder)
    return caught.value


def edit(path, old, new, count=1):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, count))


def test_labels_are_widened_before_the_green_channel_is_added(tmp_path):
    plane = np.array([[0, 1, 255], [256, 300, 301]])
    image = TinyImage("a/b.jpg", data=JPEG, planes={"object": [plane]}, label_size=(2, 3))
    sample = only_sample(write_broden(tmp_path, [image]))
    assert sample.planes[0].tolist() == plane.tolist()
    assert sample.data == JPEG


def test_integers_are_labels_of_the_whole_image_and_0_is_none(tmp_path):
    image = TinyImage("a.jpg", data=JPEG, whole={"scene": [0], "texture": [1197, 700]})
    sample = only_sample(write_broden(tmp_path, [image]))
    assert sample.image_concepts == (1197, 700)
    assert sample.planes == ()


def test_a_category_may_have_several_planes_and_whole_image_labels_at_once(tmp_path):
    planes = [np.full((6, 5), number) for number in (300, 301, 0, 300, 301, 300)]
    image = TinyImage("a.jpg", data=JPEG, planes={"part": planes}, whole={"part": [301]})
    sample = only_sample(write_broden(tmp_path, [image]))
    assert [int(plane[0, 0]) for plane in sample.planes] == [300, 301, 0, 300, 301, 300]
    assert sample.image_concepts == (301,)


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
@pytest.mark.parametrize("bom", [False, True])
def test_line_ends_byte_order_marks_and_column_order_do_not_matter(tmp_path, newline, bom):
    images = tiny_images(3)
    columns = (*reversed(CATEGORIES), "sw", "sh", "split", "image")
    plain = read(write_broden(tmp_path / "plain", images))
    odd = read(write_broden(tmp_path / "odd", images, columns=columns, newline=newline, bom=bom))
    assert odd.rows() == plain.rows()
    assert odd.concepts() == plain.concepts()
    assert odd.categories() == plain.categories() == CATEGORIES


def test_the_own_category_has_the_largest_coverage_ties_go_to_the_later(tmp_path):
    def own(coverages):
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        concept = read(write_broden(folder, [], coverages=coverages)).concepts()[300]
        assert concept.categories == ("part", "material")
        return concept.category

    assert own({"part": {300: 2.0}, "material": {300: 3.0}}) == "material"
    assert own({"part": {300: 4.0}, "material": {300: 3.0}}) == "part"
    assert own({"part": {300: 3.0}, "material": {300: 3.0}}) == "material"
    assert own({"part": {300: 0.1}, "material": {}}) == "part"


def test_without_coverage_files_the_most_frequent_category_is_its_own(tmp_path, caplog):
    labels = {**LABELS, 300: ("hair", "part(5);material(6)"), 301: ("leg", "part(3);object(3)")}
    concepts = read(write_broden(tmp_path, [], labels=labels, coverages={"part": {300: 9.0}})).concepts()
    assert concepts[300].category == "material"
    assert concepts[301].category == "part"
    assert "c_object.csv, c_material.csv: 2 labels of several categories" in caplog.text


def test_coverage_files_are_not_missed_where_every_label_has_one_category(tmp_path, caplog):
    labels = {number: label for number, label in LABELS.items() if number != 300}
    read(write_broden(tmp_path, [], labels=labels, coverages={})).concepts()
    assert caplog.text == ""


@pytest.mark.parametrize("name", ["index.csv", "label.csv", "category.csv"])
def test_a_missing_list_is_named(tmp_path, name):
    folder = write_broden(tmp_path, tiny_images(1))
    (folder / name).unlink()
    with pytest.raises(InputError, match=f"has no {name}: give the folder"):
        (read(folder).rows(), read(folder).concepts())


@pytest.mark.parametrize("column", ["image", "split", "sh", "sw", "object"])
def test_a_missing_column_is_named_beside_those_there_are(tmp_path, column):
    columns = [name for name in ("image", "split", "sh", "sw", *CATEGORIES) if name != column]
    folder = write_broden(tmp_path, tiny_images(1), columns=columns)
    with pytest.raises(InputError, match=rf"index.csv of .* lacks the columns \['{column}'\].*'texture'"):
        read(folder).rows()


def test_a_column_of_no_category_is_not_read_and_said_so(tmp_path, caplog):
    folder = write_broden(tmp_path, tiny_images(1))
    edit(folder / "index.csv", "texture\n", "texture,notes\n")
    edit(folder / "index.csv", "700,\n", "700,,a note\n")
    assert read(folder).rows()[0].problem is None
    assert "['notes']" in caplog.text


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("255,cat", "x,cat", r"label.csv line 4 of .*number is 'x', must be an integer of at least 1"),
        ("255,cat", "0,cat", r"number is '0', must be an integer"),
        ("255,cat", "1,cat", r"number 1 is already that of 'red-c'"),
        ("object(5)", "thing(5)", r"category 'thing' is not in category.csv, which lists \['color'"),
        ("255,cat", "cat", r"label.csv line 4 of .* has 5 cells, the header has 6"),
        ("number,name", "number,number", r"lacks the columns \['name'\]"),
    ],
)
def test_a_bad_label_list_is_refused_by_line(tmp_path, old, new, message):
    folder = write_broden(tmp_path, [])
    edit(folder / "label.csv", old, new)
    with pytest.raises(InputError, match=message):
        read(folder).concepts()


def test_bad_coverage_text_and_bytes_are_refused(tmp_path):
    folder = write_broden(tmp_path, [])
    edit(folder / "c_part.csv", "2.0", "much")
    with pytest.raises(InputError, match=r"c_part.csv of .*'much'"):
        read(folder).concepts()
    (folder / "category.csv").write_bytes(b"name\ncaf\xe9\n")
    with pytest.raises(InputError, match=r"category.csv of .* is no CSV in UTF-8"):
        read(folder).rows()
    (folder / "category.csv").write_text("name\nobject\nobject\n")
    with pytest.raises(InputError, match="must name each category once"):
        read(folder).rows()


def test_an_unknown_label_rejects_the_image_by_file_and_number(tmp_path):
    plane = np.array([[1, 0], [77, 513]])
    folder = write_broden(tmp_path, [TinyImage("a.jpg", data=JPEG, planes={"color": [plane]}, label_size=(2, 2))])
    error = rejected(folder)
    assert error.kind == "label"
    assert "image 'a.jpg': label plane images/a_color_0.png holds label 77, 513, which label.csv" in str(error)


def test_an_unknown_whole_image_label_rejects_the_image_by_line_and_column(tmp_path):
    error = rejected(write_broden(tmp_path, [TinyImage("a.jpg", data=JPEG, whole={"scene": [12]})]))
    assert error.kind == "label"
    assert "index.csv line 2, column scene, holds label 12" in str(error)


def test_a_plane_of_another_size_names_both(tmp_path):
    planes = {"color": [np.ones((4, 7), int)]}
    error = rejected(write_broden(tmp_path, [TinyImage("a.jpg", data=JPEG, planes=planes)]))
    assert error.kind == "size"
    assert "images/a_color_0.png is 4 x 7 (height x width), must be 6 x 5" in str(error)


def test_the_images_own_size_need_not_be_that_of_the_list(tmp_path):
    assert only_sample(write_broden(tmp_path, [TinyImage("a.jpg", data=JPEG)])).label_height == 6


@pytest.mark.parametrize(
    ("kind", "data", "message"),
    [
        ("missing", None, "has no file images/a.jpg; add it or remove the row"),
        ("broken", JPEG[: len(JPEG) // 2], "cut short or broken"),
        ("broken", b"GIF89a", r"is no JPEG or PNG \(6 bytes"),
        ("broken", b"", r"is no JPEG or PNG \(0 bytes"),
        ("broken", png_file(20_000, 10_000), "more than"),
        ("broken", png_file(10_000, 9_000), "more than"),
    ],
)
def test_an_unusable_image_is_rejected_with_a_reason(tmp_path, kind, data, message):
    folder = write_broden(tmp_path, [TinyImage("a.jpg", data=data)])
    error = rejected(folder)
    assert error.kind == kind
    with pytest.raises(BadImageError, match=message):
        raise error


def test_unusable_planes_are_rejected_with_a_reason(tmp_path):
    image = TinyImage("a.jpg", data=JPEG, planes={"color": [np.ones((6, 5), int)]})
    plane = write_broden(tmp_path, [image]) / "images" / "a_color_0.png"
    whole = plane.read_bytes()
    gray = np.full((6, 5), 255, np.uint8)
    noise = np.random.default_rng(0).integers(0, 256, (6, 5, 3), dtype=np.uint8)
    for data, message in [
        (encode_image(noise), "is no PNG"),
        (whole[:-30], "broken"),
        (encode_image(gray, "PNG"), "is a 8-bit PNG of mode L, must be 8-bit RGB"),
        (encode_image(gray.astype(np.uint16), "PNG"), "of mode I;16"),
    ]:
        plane.write_bytes(data)
        assert rejected(tmp_path).kind == "broken"
        with pytest.raises(BadImageError, match=message):
            only_sample(tmp_path)
    plane.unlink()
    assert "has no file images/a_color_0.png" in str(rejected(tmp_path))


def test_a_16_bit_rgb_plane_is_refused(tmp_path):
    """Pillow drops the low bytes of 16-bit RGB without a word."""
    image = TinyImage("a.jpg", data=JPEG, label_size=(1, 1), planes={"color": [np.ones((1, 1), int)]})
    plane = write_broden(tmp_path, [image]) / "images" / "a_color_0.png"
    pixel = zlib.compress(b"\0" + b"\0\1" * 3)
    plane.write_bytes(png_file(1, 1, bits=16, pixels=pixel))
    assert "is a 16-bit PNG of mode RGB" in str(rejected(tmp_path))


def test_planes_that_an_optimizer_rewrote_keep_their_labels(tmp_path):
    labels = np.array([[0, 1], [256, 301]])
    rgb = Image.open(io.BytesIO(encode_labels(labels)))
    image = TinyImage("a.jpg", data=JPEG, planes={"color": [labels, labels, labels]}, label_size=(2, 2))
    folder = write_broden(tmp_path, [image])
    rgb.quantize(4).save(folder / "images" / "a_color_0.png")
    rgb.convert("RGBA").save(folder / "images" / "a_color_1.png")
    Image.new("L", (2, 2)).save(folder / "images" / "a_color_2.png")
    planes = only_sample(folder).planes
    assert planes[0].tolist() == planes[1].tolist() == labels.tolist()
    assert not planes[2].any()


@pytest.mark.parametrize("path", ["../a.jpg", "/etc/passwd", "a/../../b.jpg", "a\\b.jpg", "", "a//b.jpg", "./a.jpg"])
def test_paths_stay_below_images(tmp_path, path):
    folder = write_broden(tmp_path, [TinyImage("ok.jpg", data=JPEG)])
    edit(folder / "index.csv", "ok.jpg", path)
    assert rejected(folder).kind == "row"
    assert f"index.csv line 2, image {path!r}" in str(rejected(folder))
    edit(folder / "index.csv", f"{path},train", "ok.jpg,train")
    edit(folder / "index.csv", "6,5,", f"6,5,{path or '..'}")
    assert rejected(folder).kind == "row"
    assert "is no path below images/" in str(rejected(folder))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (",12,10,6,5,", ",12,10,six,5,", "sh, sw is 'six', '5', must be the size"),
        (",12,10,6,5,", ",12,10,-6,5,", "sh, sw is '-6', '5'"),
        (",12,10,6,5,", ",12,10,0,5,", "its label map is 0 x 5 pixels, must have 1 to"),
        (",12,10,6,5,", ",12,10,99999,99999,", "its label map is 99999 x 99999 pixels"),
        (",12,10,6,5,", ",12,10,6,5", "has 11 cells, the header has 12"),
        ("train", "", "has no split"),
    ],
)
def test_a_bad_row_rejects_its_image_alone(tmp_path, old, new, message):
    folder = write_broden(tmp_path, [TinyImage("a.jpg", data=JPEG), TinyImage("b.jpg", data=JPEG)])
    edit(folder / "index.csv", old, new)
    source = read(folder)
    bad, good = source.rows()
    with pytest.raises(BadImageError, match=message):
        source.sample(bad)
    assert source.sample(good).row.image == "b.jpg"


def test_an_image_listed_twice_is_rejected_the_second_time_naming_both_lines(tmp_path):
    image = TinyImage("a.jpg", data=JPEG)
    source = read(write_broden(tmp_path, [image, TinyImage("b.jpg", data=JPEG), replace(image, split="val")]))
    first, _, second = source.rows()
    assert source.sample(first).row.line == 2
    with pytest.raises(BadImageError, match=r"line 4: image 'a.jpg' is already listed in line 2") as caught:
        source.sample(second)
    assert caught.value.kind == "duplicate"


def test_zips_with_and_without_a_top_folder_read_as_the_folder_does(tmp_path):
    folder = write_broden(tmp_path / "d", tiny_images(2))
    with open_files(str(folder), MARKER) as files:
        expected = [(Broden(files).sample(row).data, row) for row in Broden(files).rows()]
    for top in ("", "broden1_224/"):
        path = zip_folder(folder, tmp_path / "d.zip", top)
        with zipfile.ZipFile(path, "a") as archive:
            archive.writestr("__MACOSX/._index.csv", b"")
        with open_files(str(path), MARKER) as files:
            source = Broden(files)
            assert [(source.sample(row).data, row) for row in source.rows()] == expected


def link(name):
    info = zipfile.ZipInfo(name)
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    return info


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("../evil.jpg", r"entry '../evil.jpg' would leave the folder"),
        ("images/../../evil.jpg", "would leave the folder"),
        ("/etc/evil", "would leave the folder"),
        ("images\\..\\..\\evil.jpg", "would leave the folder"),
        ("C:/evil.jpg", "would leave the folder"),
        (link("images/a.jpg"), "entry 'images/a.jpg' is a link"),
    ],
)
def test_a_zip_with_a_hostile_entry_is_refused_by_name(tmp_path, entry, message):
    path = zip_folder(write_broden(tmp_path / "d", tiny_images(1)), tmp_path / "d.zip")
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(entry, b"x")
    with pytest.raises(InputError, match=message):
        open_files(str(path), MARKER)


def test_a_zip_entry_that_unpacks_to_too_much_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("pipeline.sources.files.MAX_FILE_BYTES", 1000)
    with zipfile.ZipFile(tmp_path / "d.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("images/a.png", bytes(1001))
    with pytest.raises(InputError, match="has 1001 bytes, more than 1000"):
        open_files(str(tmp_path / "d.zip"), MARKER)


def test_a_damaged_zip_entry_rejects_its_image_alone(tmp_path):
    images = [TinyImage(name, data=JPEG) for name in ("a.jpg", "b.jpg")]
    path = zip_folder(write_broden(tmp_path / "d", images), tmp_path / "d.zip")
    data = bytearray(path.read_bytes())
    start = data.index(JPEG[:50])
    data[start + 30] ^= 255
    path.write_bytes(data)
    with open_files(str(path), MARKER) as files:
        source = Broden(files)
        bad, good = source.rows()
        with pytest.raises(BadImageError, match=r"images/a.jpg is damaged: Bad CRC-32"):
            source.sample(bad)
        assert source.sample(good).data == JPEG


def test_what_is_no_source_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"does not exist: give the folder or zip that holds index.csv"):
        open_files(str(tmp_path / "none"), MARKER)
    (tmp_path / "file").write_text("text")
    with pytest.raises(InputError, match="is neither a folder nor a zip"):
        open_files(str(tmp_path / "file"), MARKER)
    with pytest.raises(InputError, match="cannot open nothing://x"):
        open_files("nothing://x", MARKER)
    with zipfile.ZipFile(tmp_path / "empty.zip", "w") as archive:
        archive.writestr("a/other.csv", b"")
        archive.writestr("b/index.csv", b"")
    with pytest.raises(InputError, match=r"holds no index.csv, neither.*\['a', 'b'\]"):
        open_files(str(tmp_path / "empty.zip"), MARKER)


def test_the_fingerprint_changes_with_any_file(tmp_path):
    folder = write_broden(tmp_path / "d", tiny_images(2))

    def fingerprint():
        return open_files(str(folder), MARKER).fingerprint()

    before = fingerprint()
    assert fingerprint() == before
    (folder / "images" / "new.jpg").write_bytes(JPEG)
    assert fingerprint() != before
    (folder / "images" / "new.jpg").unlink()
    assert fingerprint() == before
    edit(folder / "label.csv", "cat", "cow")
    assert fingerprint() != before


def test_linked_folders_are_followed_on_request(tmp_path):
    folder = write_broden(tmp_path / "d", tiny_images(2))
    (folder / "images").rename(tmp_path / "elsewhere")
    (folder / "images").symlink_to(tmp_path / "elsewhere")
    paths = [path for path, _ in open_files(str(folder), MARKER, follow_links=True).entries()]
    assert "images/source0/image_000.jpg" in paths


@pytest.mark.real
def test_the_official_labels_have_the_categories_of_largest_coverage():
    folder = shared_data("broden_official_meta")
    source = read(folder)
    concepts = source.concepts()
    assert source.categories() == CATEGORIES
    assert len(concepts) == 1197
    coverage = {}
    for index, category in enumerate(CATEGORIES):
        with open(folder / f"c_{category}.csv", newline="") as file:
            for row in csv.DictReader(file):
                found = (float(row["coverage"]), index, category)
                coverage[int(row["number"])] = max(coverage.get(int(row["number"]), found), found)
    assert {number: concept.category for number, concept in concepts.items()} == {
        number: category for number, (_, _, category) in coverage.items()
    }
    several = [concept for concept in concepts.values() if len(concept.categories) > 1]
    assert any(concept.category != concept.categories[0] for concept in several)


def test_a_coverage_file_lacking_its_columns_is_refused(tmp_path):
    folder = write_broden(tmp_path, [], coverages=COVERAGES)
    write_csv(folder / "c_part.csv", ("number", "frequency"), [(300, 1)])
    with pytest.raises(InputError, match=r"c_part.csv of .* lacks the columns \['coverage'\]"):
        read(folder).concepts()

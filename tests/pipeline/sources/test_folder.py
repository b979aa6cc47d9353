import hashlib
import io

import numpy as np
import pytest
from PIL import Image

from pipeline.errors import InputError
from pipeline.sources import BadImageError
from pipeline.sources.files import open_files
from pipeline.sources.folder import MARKER, Folder
from tests.tiny_broden import encode_image, encode_labels

JPEG = encode_image(np.random.default_rng(0).integers(0, 256, (12, 10, 3), dtype=np.uint8))
CONCEPTS = "number,name,category\n1,cat,object\n300,dog,object\n301,leg,part\n40000,street,scene\n"


def write(folder, files, concepts=CONCEPTS):
    for path, data in {MARKER: concepts, **files}.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(data.encode() if isinstance(data, str) else data)
    return Folder(open_files(str(folder), MARKER))


def samples(source):
    return {row.image: source.sample(row) for row in source.rows()}


def test_every_kind_of_mask_png_gives_its_numbers(tmp_path):
    labels = np.array([[0, 1], [300, 301]])
    small = np.array([[0, 1], [1, 0]], np.uint8)
    palette = io.BytesIO()
    indexed = Image.fromarray(small).copy()
    indexed.putpalette([9, 9, 9, 8, 8, 8])
    indexed.save(palette, "PNG")
    assert indexed.mode == "P"
    files = {f"images/{name}.jpg": JPEG for name in ("rgb", "gray", "gray16", "palette", "bits")}
    files |= {
        "masks/object/rgb.png": encode_labels(labels),
        "masks/object/gray.png": encode_image(small, "PNG"),
        "masks/object/gray16.png": encode_image(labels.astype(np.uint16), "PNG"),
        "masks/object/palette.png": palette.getvalue(),
        "masks/object/bits.png": encode_image(small.astype(bool), "PNG"),
    }
    found = samples(write(tmp_path, files))
    for name, expected in [("rgb", labels), ("gray16", labels), ("gray", small), ("palette", small), ("bits", small)]:
        assert found[f"{name}.jpg"].planes[0].tolist() == expected.tolist(), name


def test_masks_are_found_by_category_and_path_and_may_have_another_size_than_the_image(tmp_path):
    files = {
        "images/a/b.c.jpg": JPEG,
        "images/a/d.png": encode_image(np.zeros((4, 3, 3), np.uint8), "PNG"),
        "masks/object/a/b.c.png": encode_labels(np.full((5, 7), 1)),
        "masks/part/a/b.c.png": encode_labels(np.full((5, 7), 301)),
    }
    found = samples(write(tmp_path, files))
    sample = found["a/b.c.jpg"]
    assert [int(plane[0, 0]) for plane in sample.planes] == [1, 301]
    assert (sample.label_height, sample.label_width) == (5, 7)
    assert (found["a/d.png"].label_height, found["a/d.png"].label_width) == (4, 3)
    assert found["a/d.png"].planes == ()


def test_without_a_list_every_image_is_read_and_split_by_its_hash(tmp_path):
    names = [f"{index}.JPG" for index in range(20)]
    files = {f"images/{name}": JPEG for name in names} | {"images/.DS_Store": b"", "images/.thumbs/1.jpg": b""}
    rows = write(tmp_path, files).rows()
    assert sorted(row.image for row in rows) == sorted(names)
    for row in rows:
        fraction = int(hashlib.md5(row.image.encode()).hexdigest(), 16) / 2**128
        assert row.split == ("train" if fraction <= 0.7 else "val")
    assert {row.split for row in rows} == {"train", "val"}


def test_labels_of_the_whole_image_are_given_by_name_or_number(tmp_path):
    files = {f"images/{name}.jpg": JPEG for name in "abcd"}
    files["images.csv"] = "image,split,scene,object\na.jpg,val,street,\nb.jpg,train,40000,cat;300\nc.jpg,,0,\n"
    source = write(tmp_path, files)
    found = samples(source)
    assert {image: sample.image_concepts for image, sample in found.items()} == {
        "a.jpg": (40000,),
        "b.jpg": (1, 300, 40000),
        "c.jpg": (),
    }
    assert found["a.jpg"].row.split == "val"
    assert found["c.jpg"].row.split in ("train", "val")
    assert (found["a.jpg"].label_height, found["a.jpg"].label_width) == (12, 10)
    assert source.categories() == ("object", "part", "scene")


@pytest.mark.parametrize(
    ("concepts", "message"),
    [
        ("number,name\n1,cat\n", r"lacks the columns \['category'\]"),
        ("number,name,category\n", "lists no concept"),
        ("number,name,category\n0,cat,object\n", "line 2 .*number is '0', must be an integer from 1 to 65535"),
        ("number,name,category\n65536,cat,object\n", "number is '65536'"),
        ("number,name,category\nx,cat,object\n", "number is 'x'"),
        ("number,name,category\n1,cat,object\n1,dog,object\n", "line 3 .*number 1 is already that of 'cat'"),
        ("number,name,category\n1,cat,object\n2,cat,object\n", "'cat' is already a concept of category 'object'"),
        ("number,name,category\n1,,object\n", "name '' and category 'object' must be given"),
        ("number,name,category\n1,cat,a/b\n", "category 'a/b' must be given, without '/'"),
    ],
)
def test_a_bad_list_of_concepts_is_refused_by_line(tmp_path, concepts, message):
    with pytest.raises(InputError, match=message):
        write(tmp_path, {}, concepts).concepts()


def test_masks_in_no_category_or_of_no_image_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"masks/thing/a.png of .* is in no category of concepts.csv, which has"):
        write(tmp_path / "1", {"images/a.jpg": JPEG, "masks/thing/a.png": b""}).rows()
    with pytest.raises(InputError, match=r"no mask of .* belongs to an image, masks/object/a_mask.png for one"):
        write(tmp_path / "2", {"images/a.jpg": JPEG, "masks/object/a_mask.png": b""}).rows()


def test_a_few_masks_of_no_image_are_said(tmp_path, caplog):
    mask = encode_labels(np.ones((2, 2), int))
    files = {"images/a.jpg": JPEG, "masks/object/a.png": mask, "masks/object/b.png": mask}
    assert len(samples(write(tmp_path, files))["a.jpg"].planes) == 1
    assert "1 masks belong to no image, the first is masks/object/b.png" in caplog.text


def test_columns_of_no_category_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"has the columns \['tags'\], must be image, split or a category"):
        write(tmp_path, {"images.csv": "image,tags\na.jpg,x\n"}).rows()


@pytest.mark.parametrize(
    ("files", "kind", "message"),
    [
        ({"images/a.jpg": JPEG[:-100]}, "broken", "cut short or broken"),
        ({"images/a.webp": b""}, "row", "images/a.webp is none of .jpg, .jpeg, .png; convert or remove it"),
        ({"images.csv": "image\na.jpg\n"}, "missing", "has no file images/a.jpg"),
        ({"images.csv": "image\n../a.jpg\n"}, "row", "is no path below images/"),
        ({"images.csv": "image,split\na.jpg\n"}, "row", "line 2, image 'a.jpg': has 1 cells, the header has 2"),
        (
            {"images/a.jpg": JPEG, "images.csv": "image,scene\na.jpg,cat\n"},
            "label",
            "images.csv line 2 has 'cat' in column scene, which concepts.csv does not list",
        ),
        ({"images/a.jpg": JPEG, "images.csv": "image,scene\na.jpg,77\n"}, "label", "has '77' in column scene"),
        (
            {"images/a.jpg": JPEG, "masks/object/a.png": encode_labels(np.full((2, 2), 302))},
            "label",
            "mask masks/object/a.png holds label 302, which concepts.csv does not list",
        ),
        (
            {
                "images/a.jpg": JPEG,
                "masks/object/a.png": encode_labels(np.ones((2, 2), int)),
                "masks/part/a.png": encode_labels(np.full((3, 2), 301)),
            },
            "size",
            r"masks/part/a.png is 3 x 2 \(height x width\), must be 2 x 2",
        ),
        ({"images/a.jpg": JPEG, "masks/object/a.jpg": JPEG}, "broken", "masks/object/a.jpg is no PNG"),
    ],
)
def test_an_unusable_image_is_rejected_with_a_reason(tmp_path, files, kind, message):
    source = write(tmp_path, files)
    (row,) = source.rows()
    with pytest.raises(BadImageError, match=message) as caught:
        source.sample(row)
    assert caught.value.kind == kind


@pytest.mark.parametrize("listed", [False, True])
def test_images_that_would_share_their_masks_are_rejected(tmp_path, listed):
    files = {"images/a.jpg": JPEG, "images/a.png": encode_image(np.zeros((2, 2, 3), np.uint8), "PNG")}
    if listed:
        files["images.csv"] = "image\na.jpg\na.png\n"
    first, second = write(tmp_path, files).rows()
    assert first.problem is None
    assert "image 'a.png' and image 'a.jpg' differ by extension only" in str(second.problem)

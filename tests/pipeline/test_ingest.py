import csv
import hashlib
import io
import json
import random
import threading
from collections import Counter
from dataclasses import replace

import fsspec
import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from pydantic import ValidationError

from pipeline import ingest as ingest_module
from pipeline.errors import InputError, SettingsError
from pipeline.ingest import DataSettings, ingest, list_datasets, load_manifest, summary
from pipeline.shards import Encoded, Reject, cut, encode
from pipeline.sources import BadImageError, Row, Sample
from pipeline.sources.broden import Broden
from pipeline.store import Store
from schemas import CONCEPTS, LABEL_AREAS, REJECTS, SHARD, SHARD_LABEL_AREAS
from tests.shared import shared_data
from tests.tiny_broden import (
    CATEGORIES,
    LABELS,
    TinyImage,
    encode_image,
    tiny_images,
    write_broden,
    zip_folder,
)
from workers.batches import decode_image, unpack_concepts

SMALL = {"shard_size": 4, "batch_size": 2}


@pytest.fixture
def store(tmp_path):
    return Store(str(tmp_path / "store"))


@pytest.fixture
def decoded(monkeypatch):
    """Paths of the images that were read, in any order."""
    paths = []
    sample = Broden.sample
    lock = threading.Lock()

    def counted(source, row):
        with lock:
            paths.append(row.image)
        return sample(source, row)

    monkeypatch.setattr(Broden, "sample", counted)
    return paths


def settings(root, **changes):
    return DataSettings(root=str(root), **{**SMALL, **changes})


def rows(store, manifest):
    return [row for shard in manifest.shards for row in store.read_table(shard.path).to_pylist()]


def files(store):
    return {path: hashlib.sha256(store.read(path)).hexdigest() for path in store.list("datasets")}


def hash_sorted(images):
    return sorted(images, key=lambda image: hashlib.md5(image.path.encode()).hexdigest())


def test_a_shard_holds_what_the_source_says(tmp_path, store):
    images = tiny_images(10)
    manifest = ingest(settings(write_broden(tmp_path / "d", images)), store)
    found = rows(store, manifest)
    assert [row["image_id"] for row in found] == list(range(10))
    for row, image in zip(found, hash_sorted(images), strict=True):
        assert row["image"] == {"bytes": image.data, "path": image.path}
        assert row["split"] == image.split
        whole = sorted(number for numbers in image.whole.values() for number in numbers)
        assert row["image_concept_ids"] == whole
        planes = [plane for planes in image.planes.values() for plane in planes]
        present = sorted({int(number) for plane in planes for number in plane.flat} - {0})
        assert row["concept_ids"] == present
        masks = unpack_concepts(row["concept_masks"], len(present), row["label_height"], row["label_width"])
        for concept, mask in zip(present, masks, strict=True):
            assert np.array_equal(mask, np.any([plane == concept for plane in planes], axis=0))


def test_the_manifest_says_what_is_where(tmp_path, store):
    manifest = ingest(settings(write_broden(tmp_path / "my data", tiny_images(10))), store)
    assert manifest.name == "my-data"
    assert manifest.source == "broden"
    assert manifest.categories == CATEGORIES
    assert manifest.splits == ("train", "val")
    assert [shard.rows for shard in manifest.shards] == [4, 4, 2]
    assert [shard.first_image for shard in manifest.shards] == [0, 4, 8]
    for shard in manifest.shards:
        data = store.read(shard.path)
        assert shard.sha256 == hashlib.sha256(data).hexdigest()
        assert shard.bytes == len(data)
        file = pq.ParquetFile(io.BytesIO(data))
        assert [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)] == [2] * (shard.rows // 2)
        assert file.schema_arrow.equals(SHARD.schema)
    for name, table in [
        ("concepts", CONCEPTS),
        ("label_areas", LABEL_AREAS),
        ("shard_label_areas", SHARD_LABEL_AREAS),
        ("rejects", REJECTS),
    ]:
        assert store.read_table(manifest.files[name]).schema.equals(table.schema)
    assert store.list("staging") == []


def test_a_concept_of_the_whole_image_is_in_no_mask_and_covers_the_label_map(tmp_path, store):
    plane = np.array([[700, 1], [1, 0]])
    data = tiny_images(1)[0].data
    image = TinyImage("a.jpg", "train", data, {"color": [plane, plane]}, {"scene": [700, 700]}, (2, 2))
    manifest = ingest(settings(write_broden(tmp_path / "d", [image])), store)
    (row,) = rows(store, manifest)
    assert row["concept_ids"] == [1]
    assert row["image_concept_ids"] == [700]
    areas = store.read_table(manifest.files["label_areas"]).to_pylist()
    assert [(row["concept_id"], row["label_pixels"], row["images"]) for row in areas] == [(1, 2, 1), (700, 4, 1)]


def test_concepts_that_no_image_holds_are_listed_with_no_pixels(tmp_path, store):
    images = [replace(image, whole={}) for image in tiny_images(4)]
    manifest = ingest(settings(write_broden(tmp_path / "d", images)), store)
    concepts = {row["concept_id"]: row for row in store.read_table(manifest.files["concepts"]).to_pylist()}
    assert sorted(concepts) == sorted(LABELS)
    assert (concepts[700]["pixels"], concepts[700]["images"]) == (0, 0)
    assert concepts[1]["pixels"] > 0
    assert concepts[300]["category"] == "material"
    assert concepts[300]["categories"] == ["part", "material"]
    areas = store.read_table(manifest.files["label_areas"])
    assert 700 not in areas["concept_id"].to_pylist()
    found = summary(manifest, store)
    assert found.concepts == {"color": 2, "object": 2, "part": 1, "material": 1, "scene": 0, "texture": 0}
    assert found.absent == 2


def test_shard_label_areas_add_up_to_label_areas_and_concepts(tmp_path, store):
    manifest = ingest(settings(write_broden(tmp_path / "d", tiny_images(11))), store)
    by_split, by_concept = Counter(), Counter()
    for row in store.read_table(manifest.files["shard_label_areas"]).to_pylist():
        by_split[row["concept_id"], row["split"]] += row["label_pixels"]
        by_concept[row["concept_id"]] += row["images"]
    areas = store.read_table(manifest.files["label_areas"]).to_pylist()
    assert {(row["concept_id"], row["split"]): row["label_pixels"] for row in areas} == by_split
    concepts = store.read_table(manifest.files["concepts"]).to_pylist()
    assert {row["concept_id"]: row["images"] for row in concepts if row["images"]} == by_concept


def test_the_order_of_rows_does_not_matter(tmp_path, store):
    images = tiny_images(9)
    first = ingest(settings(write_broden(tmp_path / "a" / "d", images)), store)
    before = files(store)
    random.Random(0).shuffle(images)
    assert ingest(settings(write_broden(tmp_path / "b" / "d", images)), store) == first
    after = files(store)
    assert {path: after[path] for path in before} == before


def test_a_folder_a_zip_and_other_file_systems_give_the_same_data_set(tmp_path, store):
    folder = write_broden(tmp_path / "d", tiny_images(9))
    path = zip_folder(folder, tmp_path / "d.zip", top="broden/")
    memory = fsspec.filesystem("memory")
    memory.put(str(folder), "/ingest/d", recursive=True)
    memory.put(str(path), "/ingest/d.zip")
    roots = [folder, path, "memory://ingest/d", "memory://ingest/d.zip"]
    try:
        found = [ingest(settings(root), store) for root in roots]
        assert found == [found[0]] * 4
    finally:
        memory.rm("/ingest", recursive=True)


def test_two_ingests_write_the_same_bytes(tmp_path):
    folder = write_broden(tmp_path / "d", tiny_images(9))
    written = []
    for name in ("one", "two"):
        ingest(settings(folder, threads=1 if name == "one" else 4), Store(str(tmp_path / name)))
        written.append(files(Store(str(tmp_path / name))))
    assert written[0] == written[1]


def test_ingesting_again_reads_no_image(tmp_path, store, decoded):
    folder = write_broden(tmp_path / "d", tiny_images(9))
    first = ingest(settings(folder), store)
    before = files(store)
    decoded.clear()
    assert ingest(settings(folder, name="d", threads=1, max_bad_images=3), store) == first
    assert decoded == []
    assert files(store) == before


def test_a_changed_image_is_noticed(tmp_path, store):
    images = tiny_images(6)
    folder = write_broden(tmp_path / "d", images)
    first = ingest(settings(folder), store)
    (folder / "images" / images[0].path).write_bytes(encode_image(np.zeros((12, 10, 3), np.uint8)))
    second = ingest(settings(folder), store)
    assert second.images_id != first.images_id
    assert load_manifest(store, "d") == second
    assert load_manifest(store, first.dataset_id) == first


def test_new_labels_keep_the_images_id(tmp_path, store):
    images = tiny_images(6)
    first = ingest(settings(write_broden(tmp_path / "1" / "d", images)), store)
    images[0] = replace(images[0], planes={}, label_size=(3, 3))
    relabeled = ingest(settings(write_broden(tmp_path / "2" / "d", images)), store)
    renamed = {**LABELS, 1: ("crimson-c", "color(9)")}
    other_names = ingest(settings(write_broden(tmp_path / "3" / "d", images, labels=renamed)), store)
    assert relabeled.images_id == other_names.images_id == first.images_id
    assert len({first.dataset_id, relabeled.dataset_id, other_names.dataset_id}) == 3


def test_splits_batches_and_shards_change_the_images_id(tmp_path, store):
    images = tiny_images(9)
    folder = write_broden(tmp_path / "d", images)
    ids = {ingest(settings(folder), store).images_id}
    ids.add(ingest(settings(folder, batch_size=4), store).images_id)
    ids.add(ingest(settings(folder, shard_size=6), store).images_id)
    images[0] = replace(images[0], split="test")
    ids.add(ingest(settings(write_broden(tmp_path / "d", images)), store).images_id)
    assert len(ids) == 4


class Killed(BaseException):
    pass


def kill_after(shards):
    def progress(done, total):
        if done >= 4 * shards:
            raise Killed

    return progress


def test_a_killed_ingest_goes_on_where_it_stood(tmp_path, store, decoded):
    images = tiny_images(18)
    folder = write_broden(tmp_path / "d", images)
    with pytest.raises(Killed):
        ingest(settings(folder, threads=1), store, on_progress=kill_after(2))
    assert list_datasets(store) == []
    assert len(store.list("datasets/shards")) == 2
    decoded.clear()
    resumed = ingest(settings(folder, threads=1), store)
    assert sorted(decoded) == sorted(image.path for image in hash_sorted(images)[8:])
    whole = Store(str(tmp_path / "whole"))
    assert ingest(settings(folder), whole) == resumed
    assert files(whole) == files(store)


def test_a_killed_ingest_notices_that_a_finished_shard_is_gone(tmp_path, store, decoded):
    folder = write_broden(tmp_path / "d", tiny_images(12))
    with pytest.raises(Killed):
        ingest(settings(folder), store, on_progress=kill_after(2))
    first = json.loads(store.read(store.list("staging")[0]))["entry"]["path"]
    store.remove(first)
    decoded.clear()
    manifest = ingest(settings(folder), store)
    assert len(decoded) == 12
    assert manifest.shards[0].path == first
    assert store.exists(first)


def test_a_killed_ingest_with_a_limit_goes_on(tmp_path, store):
    images = tiny_images(12)
    folder = write_broden(tmp_path / "d", images)
    with pytest.raises(Killed):
        ingest(settings(folder, limit=7), store, on_progress=kill_after(1))
    manifest = ingest(settings(folder, limit=7), store)
    assert [row["image"]["path"] for row in rows(store, manifest)] == [i.path for i in hash_sorted(images)[:7]]


def test_bad_images_are_recorded_and_leave_no_gap(tmp_path, store):
    images = tiny_images(10)
    order = hash_sorted(images)
    bad = {order[2].path: None, order[3].path: b"GIF89a", order[9].path: b""}
    broken = [replace(image, data=bad.get(image.path, image.data)) for image in images]
    manifest = ingest(settings(write_broden(tmp_path / "bad", broken), name="x"), store)
    assert (manifest.num_images, manifest.num_rejects) == (7, 3)
    rejects = store.read_table(manifest.files["rejects"]).to_pylist()
    assert [row["row"] for row in rejects] == sorted(row["row"] for row in rejects)
    assert {row["image"]: row["error"] for row in rejects} == {
        order[2].path: "missing",
        order[3].path: "broken",
        order[9].path: "broken",
    }
    found = summary(manifest, store)
    assert found.rejects == {"broken": 2, "missing": 1}
    good = [image for image in images if image.path not in bad]
    clean = ingest(settings(write_broden(tmp_path / "good", good), name="x"), Store(str(tmp_path / "clean")))
    assert clean.dataset_id == manifest.dataset_id
    assert clean.shards == manifest.shards


def test_too_many_bad_images_fail_and_are_all_listed(tmp_path, store, decoded):
    images = [replace(image, data=None) if index < 3 else image for index, image in enumerate(tiny_images(10))]
    folder = write_broden(tmp_path / "d", images)
    with pytest.raises(
        InputError, match=r"(?s)3 images of .* max_bad_images is 2.*raise data.max_bad_images"
    ) as caught:
        ingest(settings(folder, max_bad_images=2), store)
    assert caught.value.exit_code == 2
    assert str(caught.value).count("has no file images/source") == 3
    (path,) = [path for path in store.list("staging") if path.endswith("rejects.parquet")]
    assert store.location(path) in str(caught.value)
    assert store.read_table(path).num_rows == 3
    assert list_datasets(store) == []
    decoded.clear()
    assert ingest(settings(folder, max_bad_images=3), store).num_images == 7
    assert len(decoded) < 10
    with pytest.raises(InputError, match=r"3 images of .* max_bad_images is 2"):
        ingest(settings(folder, max_bad_images=2), store)


def test_a_source_without_a_usable_image_fails(tmp_path, store):
    with pytest.raises(InputError, match="lists no image"):
        ingest(settings(write_broden(tmp_path / "none", [])), store)
    folder = write_broden(tmp_path / "bad", [replace(tiny_images(1)[0], data=b"")])
    with pytest.raises(InputError, match=r"1 images of .* cannot be used"):
        ingest(settings(folder), store)


def test_a_source_that_cannot_be_read_fails_and_rejects_nothing(tmp_path, store, monkeypatch):
    folder = write_broden(tmp_path / "d", tiny_images(4))

    def flaky(filesystem, path, *arguments, **options):
        raise TimeoutError("the network is down")

    from fsspec.implementations.local import LocalFileSystem

    cat = LocalFileSystem.cat_file
    monkeypatch.setattr(LocalFileSystem, "cat_file", lambda *a, **k: (flaky if a[1].endswith(".jpg") else cat)(*a, **k))
    with pytest.raises(InputError, match=r"cannot read images/.*jpg of .*: the network is down; ingest goes on"):
        ingest(settings(folder), store)


def test_the_limit_takes_the_first_images_in_hash_order(tmp_path, store):
    images = tiny_images(12)
    seen = []
    manifest = ingest(
        settings(write_broden(tmp_path / "d", images), limit=5), store, on_progress=lambda *at: seen.append(at)
    )
    assert [row["image"]["path"] for row in rows(store, manifest)] == [i.path for i in hash_sorted(images)[:5]]
    assert seen[-1] == (5, 5)


def outcomes(pattern):
    sample = Sample(Row("x", 0, "train"), b"", 1, 1, (), ())
    for position, good in enumerate(pattern):
        yield position, encode(sample) if good else Reject(sample.row, BadImageError("row", "bad"))


@given(st.lists(st.booleans(), max_size=40), st.integers(2, 5))
def test_no_shard_holds_a_single_image_and_bounds_depend_on_good_images_alone(pattern, size):
    groups = list(cut(outcomes(pattern), size))
    sizes = [len(group.images) for group in groups]
    good = sum(pattern)
    assert sum(sizes) == good
    assert sum(len(group.rejects) for group in groups) == len(pattern) - good
    assert all(number == size for number in sizes[:-1])
    assert 2 <= sizes[-1] <= size + 1 or good == sizes[-1] < 2
    assert sizes == [len(group.images) for group in cut(outcomes([True] * good), size)]
    assert groups[-1].end == len(pattern)


@given(st.lists(st.booleans(), max_size=40), st.integers(2, 5), st.data())
def test_cutting_goes_on_from_the_end_of_any_shard(pattern, size, data):
    groups = list(cut(outcomes(pattern), size))
    done = data.draw(st.integers(0, len(groups) - 1))
    start = groups[done - 1].end if done else 0
    rest = cut(((p, o) for p, o in outcomes(pattern) if p >= start), size)
    assert [(len(g.images), len(g.rejects), g.end) for g in rest] == [
        (len(g.images), len(g.rejects), g.end) for g in groups[done:]
    ]


@given(st.integers(1, 4), st.integers(1, 4), st.data())
def test_encoding_keeps_every_label(height, width, data):
    labels = st.lists(st.sampled_from([0, 1, 255, 256, 1197]), min_size=height * width, max_size=height * width)
    flat = data.draw(st.lists(labels, max_size=6))
    whole = data.draw(st.lists(st.sampled_from([1, 256, 700]), max_size=3))
    planes = tuple(np.array(plane, np.int32).reshape(height, width) for plane in flat)
    encoded = encode(Sample(Row("x", 0, "train"), b"", height, width, planes, tuple(whole)))
    assert isinstance(encoded, Encoded)
    masks = unpack_concepts(encoded.concept_masks, len(encoded.concept_ids), height, width)
    for y in range(height):
        for x in range(width):
            at = {int(plane[y, x]) for plane in planes} - {0} - set(whole)
            assert {c for c, mask in zip(encoded.concept_ids, masks, strict=True) if mask[y, x]} == at
    assert list(encoded.concept_ids) == sorted(set(encoded.concept_ids))
    assert encoded.concept_pixels == tuple(mask.sum() for mask in masks)
    assert list(encoded.image_concept_ids) == sorted(set(whole))


def test_data_sets_are_found_by_id_and_name(tmp_path, store):
    one = ingest(settings(write_broden(tmp_path / "one", tiny_images(4))), store)
    two = ingest(settings(write_broden(tmp_path / "two.v1", tiny_images(5))), store)
    assert load_manifest(store, "one") == load_manifest(store, one.dataset_id) == one
    assert load_manifest(store, "two.v1") == two
    assert list_datasets(store) == [one, two]
    for name in ("three", "../one", "", "by-name"):
        with pytest.raises(InputError, match=rf"no data set '{name}' in .*one \({one.dataset_id}\), two.v1"):
            load_manifest(store, name)


def test_the_same_data_may_have_several_names(tmp_path, store):
    folder = write_broden(tmp_path / "one", tiny_images(4))
    one = ingest(settings(folder), store)
    assert ingest(settings(folder, name="other"), store) == one
    assert load_manifest(store, "other") == load_manifest(store, "one") == one


def test_a_manifest_of_another_version_is_named(tmp_path, store):
    manifest = ingest(settings(write_broden(tmp_path / "d", tiny_images(4))), store)
    path = f"datasets/{manifest.dataset_id}/manifest.json"
    store.write_json(path, {**store.read_json(path), "surprise": 1})
    with pytest.raises(InputError, match=r"manifest.json is no manifest this version reads"):
        load_manifest(store, "d")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"shard_size": 65}, r"shard_size is 65, must be a multiple of batch_size \(32\)"),
        ({"source": "mini"}, "for data source mini: leave it out"),
        ({"name": "../x"}, "name"),
        ({"surprise": 1}, "surprise"),
        ({"shard_size": 1, "batch_size": 1}, "shard_size"),
    ],
)
def test_bad_settings_are_refused(changes, message):
    with pytest.raises(ValidationError, match=message):
        DataSettings(**{"root": "x", **changes})


def test_a_source_without_a_root_is_refused(store):
    with pytest.raises(SettingsError, match=r"data\.root is not set: give the folder, zip or URL of the broden"):
        ingest(DataSettings(), store)


def test_images_decode_from_a_shard(tmp_path, store):
    images = tiny_images(2)
    manifest = ingest(settings(write_broden(tmp_path / "d", images)), store)
    for row, image in zip(rows(store, manifest), hash_sorted(images), strict=True):
        expected = np.asarray(Image.open(io.BytesIO(image.data)))
        assert np.array_equal(decode_image(row["image"]["bytes"], 12, 10), expected)


def test_the_mini_source_is_generated_once(store, monkeypatch):
    from pipeline.sources import mini

    data = DataSettings(source="mini", num_images=6, size=32, **SMALL)
    manifest = ingest(data, store)
    assert (manifest.num_images, manifest.num_rejects, manifest.name) == (6, 0, "mini")
    monkeypatch.setattr(mini, "write_mini", None)
    assert ingest(data, store) == manifest


def test_a_source_of_own_images_is_ingested(tmp_path, store):
    for image in tiny_images(5):
        path = tmp_path / "own" / "images" / image.path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(image.data)
    (tmp_path / "own" / "concepts.csv").write_text("number,name,category\n1,cat,object\n")
    manifest = ingest(settings(tmp_path / "own", source="folder"), store)
    assert (manifest.num_images, manifest.source, manifest.categories) == (5, "folder", ("object",))
    assert all(row["concept_ids"] == row["image_concept_ids"] == [] for row in rows(store, manifest))


def recount(folder):
    """Label pixels and images by concept and split, pixel by pixel from the source's files."""
    pixels, images = Counter(), Counter()
    with open(folder / "index.csv", newline="") as file:
        for row in csv.DictReader(file):
            height, width = int(row["sh"]), int(row["sw"])
            places = {}
            for category in CATEGORIES:
                for entry in filter(None, row[category].split(";")):
                    if entry.isdigit():
                        places[int(entry)] = None
                        continue
                    plane = Image.open(folder / "images" / entry).convert("RGB").tobytes()
                    for place in range(height * width):
                        number = plane[3 * place] + 256 * plane[3 * place + 1]
                        if number and places.get(number, ()) is not None:
                            places.setdefault(number, set()).add(place)
            for number, found in places.items():
                pixels[number, row["split"]] += height * width if found is None else len(found)
                images[number, row["split"]] += 1
    return pixels, images


@pytest.mark.real
def test_label_areas_of_real_data_equal_a_slow_recount(store):
    folder = shared_data("broden_mini")
    manifest = ingest(DataSettings(root=str(folder)), store)
    assert manifest.num_rejects == 0
    pixels, images = recount(folder)
    areas = store.read_table(manifest.files["label_areas"]).to_pylist()
    assert {(row["concept_id"], row["split"]): row["label_pixels"] for row in areas} == pixels
    assert {(row["concept_id"], row["split"]): row["images"] for row in areas} == images
    assert max(number for number, _ in pixels) > 255


@pytest.mark.real
def test_real_data_stays_in_the_order_it_was_published_in(store):
    folder = shared_data("broden_mini")
    manifest = ingest(DataSettings(root=str(folder)), store)
    with open(folder / "index.csv", newline="") as file:
        published = [row["image"] for row in csv.DictReader(file)]
    assert [row["image"]["path"] for row in rows(store, manifest)] == published


def test_threads_read_only_a_few_images_ahead(tmp_path, decoded):
    folder = write_broden(tmp_path / "d", tiny_images(30))
    source = Broden(ingest_module.open_files(str(folder), "index.csv"))
    listed = source.rows()
    stream = ingest_module._outcomes(source, listed, 0, None, 2)
    next(stream)
    stream.close()
    assert len(decoded) <= 8

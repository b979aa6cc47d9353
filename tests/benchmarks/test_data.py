"""The data sets of the benchmarks: the same images, ten times the concepts."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from benchmarks.bench import Bench
from benchmarks.data import TIMES, copy_images, multiply_concepts, split_by_image, split_by_stripe, write_specks
from pipeline.datasets import load_manifest, summary
from pipeline.sources import Source
from pipeline.sources.broden import Broden
from pipeline.sources.files import open_files
from pipeline.store import Store
from tests.small import write_source

IMAGES = 9


def samples(source: Source) -> dict[str, list[np.ndarray]]:
    """Label planes, and labels of the whole image, by image."""
    found = {}
    for row in source.rows():
        sample = source.sample(row)
        found[row.image] = [*sample.planes, np.array(sample.image_concepts)]
    return found


def read(folder: Path) -> dict[str, list[np.ndarray]]:
    with open_files(str(folder), "index.csv") as files:
        return samples(Broden(files))


@pytest.fixture
def source(tmp_path) -> Path:
    return write_source(tmp_path / "source")


@pytest.mark.parametrize("kind", ["image", "stripe"])
def test_ten_concepts_cover_what_one_did(tmp_path, source, kind):
    part = split_by_image(Counter()) if kind == "image" else split_by_stripe
    plain = read(copy_images(source, tmp_path / "plain", IMAGES))
    split = read(multiply_concepts(source, tmp_path / "split", IMAGES, part))
    assert len(plain) == IMAGES
    for image, planes in plain.items():
        for before, after in zip(planes, split[image], strict=True):
            assert np.array_equal(before, after // TIMES)
            assert not after[before == 0].any()


def test_by_image_an_image_has_as_many_concepts_and_the_data_set_more(tmp_path, source):
    plain = read(copy_images(source, tmp_path / "plain", IMAGES))
    split = read(multiply_concepts(source, tmp_path / "split", IMAGES, split_by_image(Counter())))
    images: Counter[int] = Counter()
    for image in plain:
        before, after = (set(np.concatenate([p.ravel() for p in one[image]])) - {0} for one in (plain, split))
        assert len(before) == len(after)
        images.update(int(number) for number in before)
    everywhere = {int(n) for planes in split.values() for plane in planes for n in np.unique(plane)} - {0}
    assert len(everywhere) == sum(min(count, TIMES) for count in images.values())


def test_by_stripe_a_concept_is_cut_by_rows():
    labels = np.full((20, 3), 7)
    parts = split_by_stripe("image", 7, labels)
    assert parts[:, 0].tolist() == [row // 2 for row in range(20)]
    assert (parts == parts[:, :1]).all()


def test_the_three_are_the_same_images_to_the_pipeline(tmp_path, source):
    bench, store = Bench(tmp_path, images=IMAGES), tmp_path / "store"
    roots = {
        "plain": copy_images(source, tmp_path / "plain", IMAGES),
        "image": multiply_concepts(source, tmp_path / "image", IMAGES, split_by_image(Counter())),
        "stripe": multiply_concepts(source, tmp_path / "stripe", IMAGES, split_by_stripe),
    }
    for name, root in roots.items():
        bench.ingest(store, root, name, IMAGES)
    manifests = {name: load_manifest(Store(str(store)), name) for name in roots}
    assert len({manifest.images_id for manifest in manifests.values()}) == 1
    assert len({manifest.dataset_id for manifest in manifests.values()}) == 3
    present = {name: sum(summary(one, Store(str(store))).concepts.values()) for name, one in manifests.items()}
    assert present["plain"] < present["image"]
    assert present["plain"] < present["stripe"]


def test_any_number_of_images_comes_from_a_few(tmp_path):
    bench = Bench(tmp_path)
    store = bench.ingested(23, write_specks(tmp_path / "specks", 23, distinct=4))
    manifest = load_manifest(Store(str(store)), "bench")
    assert (manifest.num_images, manifest.num_rejects) == (23, 0)


def test_too_few_images_are_refused(tmp_path):
    with pytest.raises(ValueError, match="has 5 good images, 6 are wanted: lower --images"):
        Bench(tmp_path).ingested(6, write_specks(tmp_path / "specks", 5))

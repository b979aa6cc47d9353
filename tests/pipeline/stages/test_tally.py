import shutil
from collections import Counter
from dataclasses import replace

import numpy as np
import pyarrow.compute as pc
import pytest
import torch

from pipeline.errors import NoWorkersError
from pipeline.executor import make_executor
from pipeline.settings import Cluster
from pipeline.stages import tally
from pipeline.stages.labels import ConceptIndex
from pipeline.stages.tally import read_thresholds
from tests import dissect, oracle, small
from tests.tiny_broden import TinyImage, encode_image, tiny_images, write_broden
from workers.methods.dissection import Counts

MASKS = [("upsample_first", "resize"), ("threshold_first", "resize"), ("upsample_first", "receptive_field")]


def counts_of(table, permutation=-1) -> dict[str, Counter]:
    """Rows of a partial or published tally in the oracle's form."""
    counts = {name: Counter() for name in oracle.COUNTS}
    for row in table.to_pylist():
        if row.get("permutation", permutation) != permutation:
            continue
        unit, split = row["unit"], row["split"]
        label = row.get("concept_id") or row.get("category")
        for name in oracle.COUNTS:
            if value := row.get(name):
                counts[name][(unit, split) if name == "mask_pixels" else (unit, label, split)] = value
    return counts


def expected_of(recorded, stage, layer, images=None, pairing=None):
    """The oracle's counts, for some of the images."""
    activation = recorded.activations[layer]
    thresholds = [oracle.threshold(activation[:, unit].ravel(), "0.1")[0] for unit in range(activation.shape[1])]
    images = range(len(activation)) if images is None else images
    geometry = recorded.geometry(layer) if stage.upsampling == "receptive_field" and layer != "classifier.2" else None
    return oracle.tally(
        activation[list(images)], thresholds, [recorded.annotated[image] for image in images], recorded.category,
        stage.mask_order, "receptive_field" if geometry else "resize", geometry, pairing,
    )  # fmt: skip


@pytest.mark.parametrize(("order", "upsampling"), MASKS)
def test_a_worker_counts_its_shard(store, chosen, recorded, order, upsampling):
    layers = small.LAYERS if upsampling == "resize" else small.LAYERS[:2]
    stage, job = small.job_of(
        "tally", store, *chosen, f"mask_order={order}", f"upsampling={upsampling}", f"layers=[{','.join(layers)}]"
    )
    work = stage.build(job)
    for shard in job.shards[1:]:
        tables = work(shard)
        images = range(shard.first_image, shard.first_image + shard.rows)
        for layer in layers:
            expected = expected_of(recorded, stage, layer, images)
            assert counts_of(tables[layer]) == expected
            assert sum(expected["intersection"].values()) > 0


def test_portions_of_maps_do_not_change_the_counts(store, chosen, monkeypatch):
    """Neither portions within an image, nor an image after the other."""
    stage, job = small.job_of("tally", store, *chosen, "layers=[features.6]", "null_permutations=2")
    work, layer = stage.build(job), job.layers["features.6"]
    loaded = work.read(job.shards[0])
    expected = work.compute(loaded)["features.6"]
    assert len(expected) > 0

    def again(*portions):
        count = tally.LayerTally(stage, job, layer, loaded.labels, loaded.pairings, read_thresholds(job, layer), None)
        for portion in portions:
            count.add(portion)
        return count.table()

    maps = loaded.source.kept["features.6"]
    maps = maps[maps.max > read_thresholds(job, layer)[maps.unit]]
    images = [maps[maps.image_id == image] for image in maps.image_id.unique()]
    assert len(images) > 1
    assert again(*images).equals(expected)
    for pixels in (1, 200, 1000):
        monkeypatch.setattr(tally, "LABEL_PIXELS", pixels)
        assert again(maps).equals(expected)


def test_totals_beyond_what_a_float_counts(store, chosen):
    stage, job = small.job_of("tally", store, *chosen, "layers=[features.6]")
    part = stage.build(job)(job.shards[0])["features.6"]
    large = part.set_column(
        part.schema.get_field_index("intersection"),
        part.schema.field("intersection"),
        pc.add(part["intersection"], 2**53),
    )
    totals = tally.Totals(job, job.layers["features.6"], 1)
    for _ in range(3):
        totals.add(large)
    found = {kind: counts_of(table, 0)["intersection"] for kind, table in totals.tables().items()}
    for kind, permutation in (("tally", -1), ("null_tally", 0)):
        once = counts_of(large, permutation)["intersection"]
        assert found[kind] == {key: 3 * value for key, value in once.items()}
        assert min(once.values()) >= 2**53


def test_a_grid_of_one_cell_is_its_whole_image_under_either_upsampling(store, chosen):
    layers = "layers=[classifier.2]"
    resized, aligned = (
        small.job_of("tally", store, *chosen, layers, f"upsampling={upsampling}")
        for upsampling in ("resize", "receptive_field")
    )
    shard = resized[1].shards[0]
    tables = [stage.build(job)(shard)["classifier.2"] for stage, job in (resized, aligned)]
    assert tables[0].equals(tables[1])


@pytest.mark.parametrize("layer", small.LAYERS)
def test_published_tally_adds_up_the_shards(store, chosen, recorded, layer):
    stage, job = small.job_of("tally", store, *chosen)
    expected = expected_of(recorded, stage, layer)
    tally, areas = (published(store, name, layer) for name in ("tally", "areas"))
    found, found_areas = counts_of(tally), counts_of(areas)
    for name in oracle.COUNTS:
        assert (found if "concept" in name or name == "intersection" else found_areas)[name] == expected[name], name
    assert len(areas) == job.layers[layer].layer.num_units * 6 * 2  # of all categories and splits, zeros as well


@pytest.mark.parametrize("permutations", [1, 2])
def test_null_is_the_oracles_tally_of_the_stages_own_pairings(tmp_path, store, chosen, recorded, permutations):
    if permutations != 1:
        store = shutil.copytree(store, tmp_path / "store")
        dissect.run_only(store, *chosen, "stages=[tally]", f"null_permutations={permutations}")
    stage, job = small.job_of("tally", store, *chosen, f"null_permutations={permutations}")
    pairings = pairings_of(stage, job)
    assert set(pairings) == set(range(permutations))
    for permutation, pairing in pairings.items():
        assert sorted(pairing) == list(range(13))
        assert all(image != partner for image, partner in enumerate(pairing))
        expected = expected_of(recorded, stage, "features.6", pairing=pairing)
        wanted = {"null_permutations": permutations}
        tally, areas = (published(store, name, "features.6", **wanted) for name in ("null_tally", "null_areas"))
        assert counts_of(tally, permutation)["intersection"] == expected["intersection"]
        for name in ("mask_pixels", "mask_pixels_annotated", "mask_pixels_under_mask"):
            assert counts_of(areas, permutation)[name] == expected[name], name
    if permutations == 2:
        assert pairings[0] != pairings[1]


def pairings_of(stage, job) -> dict[int, list[int]]:
    """Whose labels each image's masks meet, in the order of the images."""
    found: dict[int, dict[int, int]] = {}
    work = stage.build(job)
    for shard in job.shards:
        for permutation, pairs in work.read(shard).pairings.items():
            found.setdefault(permutation, {}).update(pairs)
    return {permutation: [pairs[image] for image in sorted(pairs)] for permutation, pairs in found.items()}


def published(store, name, layer, **wanted):
    (result,) = [
        result
        for result in dissect.results(store, "tally")
        if result.layer == layer and {**{"null_permutations": 1}, **wanted}.items() <= result.settings.items()
    ]
    return small.open_store(store).read_table(result.tables[name].path)


def test_aligning_a_layer_without_a_receptive_field_is_a_named_error(store, chosen):
    stage, job = small.job_of("tally", store, *chosen, "upsampling=receptive_field", "layers=[features.6]")
    layer = job.layers["features.6"]
    job = replace(job, layers={"features.6": replace(layer, layer=replace(layer.layer, field=None))})
    message = "SettingsError: layer features.6 has no receptive field .* use upsampling=resize"
    with make_executor(Cluster(executor="inline")) as executor, pytest.raises(NoWorkersError, match=message) as raised:
        executor.run(lambda: stage.build(job), job.shards, title="tally")
    assert raised.value.exit_code == 2


def dissect_images(folder, images):
    source = write_broden(folder / "source", images)
    chosen = small.overrides(source, layers=("features.6",))
    dissect.ingest_and_run(folder / "store", *chosen)
    recorded = dissect.record_everything(source, folder / "store", *chosen)
    return folder / "store", chosen, recorded


def picture(seed=0):
    return encode_image(np.random.default_rng(seed).integers(0, 256, (12, 10, 3), dtype=np.uint8))


def labelled(index, planes=None, whole=None, size=(4, 4)):
    return TinyImage(f"image_{index}.jpg", "train", picture(index), planes or {}, whole or {}, size)


ODD = {
    "labelled twice": [
        labelled(i, {"part": [np.full((4, 4), 301), np.full((4, 4), 301)], "object": [np.full((4, 4), 301)]})
        for i in range(4)
    ],
    "whole images only": [labelled(i, whole={"scene": [700], "texture": [1197]} if i else {}) for i in range(4)],
    "some images without labels": [labelled(0), labelled(1, {"color": [np.full((4, 4), 1)]}), labelled(2)],
    "both whole and by pixel": [
        labelled(i, {"object": [np.eye(4, dtype=int) * 255]}, {"scene": [700], "texture": [1197]}) for i in range(3)
    ],
}


def test_counts_are_as_wide_as_the_concepts_of_the_shard(tmp_path, monkeypatch):
    """A data set of ten times as many concepts must not cost more where a shard holds no more of them."""
    images = [labelled(i, {"object": [np.full((4, 4), 301 if i else 255)]}, {"scene": [700]}) for i in range(8)]
    store, chosen, _ = dissect_images(tmp_path, images)
    stage, job = small.job_of("tally", store, *chosen)
    widths, zeros = [], Counts.zeros

    def spy(splits, units, concepts, categories, device):
        widths.append(concepts)
        return zeros(splits, units, concepts, categories, device)

    monkeypatch.setattr(Counts, "zeros", spy)
    work = stage.build(job)
    for shard in job.shards:
        work(shard)
    assert sorted(widths) == [2, 2, 3, 3]  # own labels and the null; concept 255 is in one shard only
    assert len(ConceptIndex.of(job).concept_ids) == 3


@pytest.mark.parametrize("largest", [7, 2**40])
def test_concepts_are_found_whatever_their_numbers(largest):
    index = ConceptIndex(np.array([0, 5, largest]), ["a", "b", "c"], (), torch.zeros(3, 0, dtype=torch.bool))
    assert index.places([largest, 0, 5, 5]).tolist() == [2, 0, 1, 1]
    assert index.places([]).tolist() == []
    assert ConceptIndex(np.array([], np.int64), [], (), torch.zeros(0, 0, dtype=torch.bool)).places([]).tolist() == []


@pytest.mark.parametrize("kind", list(ODD))
def test_odd_labels(tmp_path, kind):
    store, chosen, recorded = dissect_images(tmp_path, ODD[kind])
    stage, _ = small.job_of("tally", store, *chosen)
    expected = expected_of(recorded, stage, "features.6")
    tally, areas = (published(store, name, "features.6") for name in ("tally", "areas"))
    assert counts_of(tally)["intersection"] == expected["intersection"]
    assert sum(expected["intersection"].values()) > 0
    for name in ("mask_pixels", "mask_pixels_annotated", "mask_pixels_under_mask"):
        assert counts_of(areas)[name] == expected[name], name
    areas = oracle.label_areas(recorded.annotated)
    table = dissect.read_table(store, "detectors")
    assert set(table["concept_id"]) <= {concept for concept, _ in areas}
    ious = oracle.ious(expected, areas, recorded.category, 64, splits=("train",))
    best = oracle.detectors(ious, recorded.category)
    found = {(row.unit, row.category): (row.concept_id, row.iou) for row in table.itertuples()}
    assert found == {key: (row.concept, row.iou) for key, row in best.items()}


def test_a_single_image_has_no_null_and_no_interval(tmp_path):
    store, _, _ = dissect_images(tmp_path, tiny_images(2)[1:])
    detectors = dissect.read_table(store, "detectors")
    assert len(detectors)
    assert detectors[["p_value", "iou_low", "iou_high"]].isna().all(axis=None)
    assert len(dissect.read_table(store, "null_areas")) == 0
    assert len(dissect.read_table(store, "areas")) > 0


def test_a_layer_of_dead_units(tmp_path, source):
    """Not one map exceeds its threshold, in no shard."""
    weights = small.write_weights(tmp_path / "dead.safetensors", {"features.3.weight": (..., 0.0)})
    settings = small.overrides(source, f"model.weights={weights}", layers=("features.4",))
    dissect.ingest_and_run(tmp_path / "store", *settings)
    assert dissect.read_table(tmp_path / "store", "thresholds")["is_dead"].all()
    assert dissect.read_table(tmp_path / "store", "areas")["mask_pixels"].sum() == 0
    for name in ("tally", "exemplars"):
        assert len(dissect.read_table(tmp_path / "store", name)) == 0
    detectors = dissect.read_table(tmp_path / "store", "detectors")
    assert not detectors["is_detector"].any()
    assert (detectors["p_value"] == 1).all()
    assert (dissect.read_table(tmp_path / "store", "layer_summary")["num_detectors"] == 0).all()

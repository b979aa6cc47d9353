import shutil

import pytest

from pipeline.errors import SettingsError, ShardsFailed
from pipeline.stages.detectors import Detectors
from tests import dissect, oracle, small
from tests.pipeline.stages.test_tally import expected_of, pairings_of
from tests.tiny_broden import TinyImage, write_broden

SHARDS = ((0, 4), (4, 8), (8, 13))


def detectors(store, layer, **wanted):
    (result,) = [
        result
        for result in dissect.results(store, "detectors")
        if result.layer == layer and {"union": "annotated", "splits": None, **wanted}.items() <= result.settings.items()
    ]
    return small.open_store(store).read_table(result.tables["detectors"].path).to_pandas()


def area(counts, unit, concept, category, union, splits):
    return oracle.mask_area(counts, unit, concept, category, union, splits)


@pytest.mark.parametrize("splits", [("train", "val"), ("val",)])
@pytest.mark.parametrize("union", ["annotated", "all", "under_mask", "concept"])
@pytest.mark.parametrize("layer", ["features.6", "classifier.2"])
def test_rows_intervals_and_p_values_are_the_oracles(detected, chosen, recorded, layer, union, splits):
    if splits == ("val",) and union != "annotated":
        return
    stage, job = small.job_of("tally", detected, *chosen)
    own = expected_of(recorded, stage, layer)
    parts = [expected_of(recorded, stage, layer, range(*shard)) for shard in SHARDS]
    null = expected_of(recorded, stage, layer, pairing=pairings_of(stage, job)[0])
    areas = oracle.label_areas(recorded.annotated)
    part_areas = [oracle.label_areas(recorded.annotated[slice(*shard)]) for shard in SHARDS]
    units = recorded.activations[layer].shape[1]
    ious = oracle.ious(own, areas, recorded.category, units, union, splits)
    null_best = oracle.best_ious(oracle.ious(null, areas, recorded.category, units, union, splits))
    expected = oracle.detectors(ious, recorded.category, "0.04")
    table = detectors(detected, layer, union=union, splits=None if len(splits) == 2 else list(splits))
    assert len(table) == len(expected)
    for row in table.itertuples():
        best = expected[row.unit, row.category]
        found = (row.concept_id, row.intersection, row.union, row.iou, row.is_detector, row.is_best_overall)
        assert found == best[2:]
        low, high = oracle.jackknife(
            [sum(part["intersection"][row.unit, row.concept_id, split] for split in splits) for part in parts],
            [area(part, row.unit, row.concept_id, row.category, union, splits) for part in parts],
            [sum(one.get((row.concept_id, split), (0, 0))[0] for split in splits) for one in part_areas],
        )
        assert (row.iou_low, row.iou_high) == pytest.approx((low, high), rel=1e-9, abs=1e-12)
        assert row.p_value == pytest.approx(oracle.p_values([row.iou], null_best)[0], rel=1e-12)
    assert table["is_detector"].any()
    assert table["p_value"].nunique() > 3


def test_without_permutations_there_is_no_p_value(tmp_path, store, chosen):
    store = shutil.copytree(store, tmp_path / "store")
    dissect.run_only(store, *chosen, "stages=[detectors]", "null_permutations=0")
    table = dissect.read_table(store, "detectors")
    assert table["p_value"].isna().sum() == len(table) / 2
    assert table["iou_low"].notna().all()


def test_more_permutations_pool_more_null_ious(tmp_path, store, chosen, recorded):
    store = shutil.copytree(store, tmp_path / "store")
    settings = [*chosen, "layers=[features.6]", "stages=[detectors]", "null_permutations=3"]
    dissect.run_only(store, *settings)
    stage, job = small.job_of("tally", store, *settings)
    areas, null_best = oracle.label_areas(recorded.annotated), []
    for pairing in pairings_of(stage, job).values():
        counts = expected_of(recorded, stage, "features.6", pairing=pairing)
        null_best += oracle.best_ious(oracle.ious(counts, areas, recorded.category, 64))
    (tally,) = [r for r in dissect.results(store, "tally") if r.settings["null_permutations"] == 3]
    (result,) = [r for r in dissect.results(store, "detectors") if r.inputs["tally"] == tally.result_id]
    table = small.open_store(store).read_table(result.tables["detectors"].path).to_pandas()
    assert len(null_best) == 3 * 64
    assert table["p_value"].tolist() == pytest.approx(oracle.p_values(table["iou"], null_best), rel=1e-12)


def test_one_shard_leaves_the_interval_null(tmp_path, source):
    settings = small.overrides(source, "data.shard_size=64", layers=("features.6",))
    dissect.ingest_and_run(tmp_path, *settings, "stages=[detectors]")
    table = dissect.read_table(tmp_path, "detectors")
    assert table[["iou_low", "iou_high"]].isna().all(axis=None)
    assert table["p_value"].notna().all()


def test_a_split_that_is_not_there_is_refused(tmp_path, store, chosen):
    store = shutil.copytree(store, tmp_path / "store")
    with pytest.raises(SettingsError, match=r"splits \['test'\] are not in the data set, which has \['train', 'val'\]"):
        dissect.run_only(store, *chosen, "stages=[detectors]", "splits=[test,val]")
    with pytest.raises(SettingsError, match="splits"):
        dissect.settings(store, *chosen, "splits=[]")


def test_a_data_set_without_labels_is_a_named_error(tmp_path):
    images = small.images(4)
    bare = [TinyImage(image.path, image.split, image.data, label_size=image.label_size) for image in images]
    settings = small.overrides(write_broden(tmp_path / "source", bare), layers=("features.6",))
    dissect.ingest_and_run(tmp_path / "store", *settings, "stages=[thresholds,tally,exemplars]")
    assert len(dissect.read_table(tmp_path / "store", "exemplars")) > 0
    assert dissect.read_table(tmp_path / "store", "areas")["mask_pixels"].sum() > 0
    with pytest.raises(ShardsFailed, match="has no labels"):
        dissect.run_only(tmp_path / "store", *settings, "stages=[detectors]")


def test_settings_are_checked():
    with pytest.raises(ValueError, match="min_iou"):
        Detectors(min_iou=1.5)

"""What a second run does not compute again, asserted by counting forward passes."""

import shutil
from pathlib import Path

import pytest

from pipeline.errors import ShardsFailed
from pipeline.gc import collect
from pipeline.stage import Stage
from pipeline.stages import STAGES
from pipeline.stages import forward as forward_module
from pipeline.stages.tails import SUPPLEMENT
from pipeline.store import Store
from tests import dissect, small

BATCHES = 7  # 13 images in shards of 4, 4 and 5, batches of 2
LAYERS = ("features.4", "features.6")
TABLES = ("thresholds", "tally", "areas", "null_tally", "null_areas", "detectors", "layer_summary", "exemplars")


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    return small.write_source(tmp_path_factory.mktemp("reuse") / "source")


@pytest.fixture(scope="module")
def chosen(source) -> list[str]:
    return small.overrides(source, layers=LAYERS)


@pytest.fixture(scope="module")
def done(tmp_path_factory, chosen) -> Path:
    store = tmp_path_factory.mktemp("reuse-store")
    dissect.ingest_and_run(store, *chosen)
    return store


@pytest.fixture
def store(done, tmp_path) -> Path:
    return shutil.copytree(done, tmp_path / "store")


@pytest.fixture
def batches(monkeypatch) -> list[list[str]]:
    """The layers asked of every forward pass."""
    calls = []
    forward = forward_module.forward

    def counted(module, batch, layers, on_activation):
        calls.append(list(layers))
        forward(module, batch, layers, on_activation)

    monkeypatch.setattr(forward_module, "forward", counted)
    return calls


def test_layers_share_each_forward_pass(tmp_path, chosen, batches):
    dissect.ingest_and_run(tmp_path, *chosen)
    assert batches == [list(LAYERS)] * BATCHES  # the pilot sees all of so few images, and leaves them to the record


def test_a_second_run_computes_nothing(store, chosen, batches):
    before = {
        path: path.stat().st_mtime_ns for path in (store / "tables").rglob("*.parquet") if "runs" not in str(path)
    }
    outcome = dissect.run_only(store, *chosen)
    assert (outcome.computed, batches) == ([], [])
    assert len(outcome.found) == 7 * 2
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_one_more_layer_runs_only_that_layer(store, chosen, batches):
    outcome = dissect.run_only(store, *chosen, "layers=[features.4,features.6,features.10]")
    assert batches == [["features.10"]] * BATCHES
    assert len(outcome.computed) == 7
    assert {result.layer for result in dissect.results(store, "record")} == {*LAYERS, "features.10"}


@pytest.mark.parametrize(
    ("setting", "computed"),
    [
        ("union=all", ["detectors", "layer_summary"]),
        ("min_iou=0.1", ["detectors", "layer_summary"]),
        ("mask_order=threshold_first", ["tally", "detectors", "layer_summary", "exemplars"]),
        ("count=3", ["exemplars"]),
        ("quantile=0.05", ["thresholds", "tally", "detectors", "layer_summary", "exemplars"]),
    ],
)
def test_a_changed_setting_needs_no_forward_pass(store, chosen, batches, setting, computed):
    outcome = dissect.run_only(store, *chosen, setting)
    stages = [name for name in STAGES if name in computed]
    stage_of = {r.result_id: r.stage for name in stages for r in dissect.results(store, name)}
    assert [stage_of[identity] for identity in outcome.computed] == [name for name in stages for _ in LAYERS]
    assert batches == []


def test_without_tail_maps_what_looks_at_masks_needs_one_forward_pass(tmp_path, done, chosen, batches):
    dissect.ingest_and_run(tmp_path, *chosen, "passes=two", "stages=[thresholds]")
    del batches[:]
    dissect.run_only(tmp_path, *chosen, "stages=[tally]")
    assert batches == [list(LAYERS)] * BATCHES
    dissect.run_only(tmp_path, *chosen, "quantile=0.05", "stages=[thresholds]")
    assert batches == [list(LAYERS)] * BATCHES
    assert not list((tmp_path / "staging").rglob("*.activation.arrow")), "the record has no use for them any more"


def test_what_the_pilot_left_is_no_more_than_a_cache(tmp_path, done, chosen, batches):
    """Gone or cut short, it is made again."""
    dissect.ingest_and_run(tmp_path, *chosen, "stages=[pilot]")
    first, second, *_ = sorted((tmp_path / "staging").rglob("*.activation.arrow"))
    first.unlink()
    second.write_bytes(second.read_bytes()[:100])
    dissect.run_only(tmp_path, *chosen)
    assert BATCHES < len(batches) < 2 * BATCHES
    small.same_tables(done, tmp_path, *TABLES)


def test_new_labels_need_no_forward_pass(store, tmp_path, chosen, batches):
    labelled = small.overrides(
        small.write_source(tmp_path / "relabelled", labels=7), "data.name=relabelled", layers=LAYERS
    )
    outcome = dissect.ingest_and_run(store, *labelled)
    assert batches == []
    studies = dissect.read_table(store, "studies")
    assert studies["images_id"].nunique() == 1
    assert studies["dataset_id"].nunique() == 2
    fresh = tmp_path / "fresh"
    dissect.ingest_and_run(fresh, *labelled)
    tables = {}
    for place in (store, fresh):
        (record,) = [
            r for r in dissect.results(place, "tally") if (r.study_id, r.layer) == (outcome.study_id, LAYERS[0])
        ]
        tables[place] = small.open_store(place).read_table(record.tables["tally"].path)
    assert tables[store].equals(tables[fresh])


def test_other_images_are_another_forward_pass(store, tmp_path, batches):
    dissect.ingest_and_run(
        store, *small.overrides(small.write_source(tmp_path / "fewer", number=6), "data.name=fewer", layers=LAYERS)
    )
    assert batches == [list(LAYERS)] * 3


def test_after_staging_is_gone_a_new_setting_computes_what_it_needs_again(store, tmp_path, done, chosen, batches):
    collect(Store(str(store)), staging=True)
    assert not list((store / "staging").rglob("*.arrow"))
    assert dissect.run_only(store, *chosen).computed == []
    assert batches == []
    dissect.run_only(store, *chosen, "min_iou=0.1", "count=3")
    assert batches == [list(LAYERS)] * BATCHES
    intact = shutil.copytree(done, tmp_path / "intact")
    dissect.run_only(intact, *chosen, "min_iou=0.1", "count=3")
    small.same_tables(
        store, intact, *(name for name in TABLES if name not in ("detectors", "layer_summary", "exemplars"))
    )
    for name in ("detectors", "layer_summary", "exemplars"):
        left, right = (sorted_rows(place, name) for place in (store, intact))
        assert left == right


def sorted_rows(store, name):
    return sorted(map(str, dissect.read_table(store, name).itertuples(index=False)))


def test_after_staging_is_gone_a_summary_needs_only_the_tables(store, chosen, batches):
    collect(Store(str(store)), staging=True)
    for result in dissect.results(store, "layer_summary"):
        (store / result.path).unlink()
    outcome = dissect.run_only(store, *chosen)
    assert batches == []
    assert len(outcome.computed) == 2


HIGH = ("tail_quantile=0.0001", "min_images=1", "fraction=0.001")


def test_units_whose_bound_was_too_high_are_recorded_again_once(tmp_path, done, chosen, batches):
    dissect.ingest_and_run(tmp_path, *chosen, *HIGH)
    assert batches == [list(LAYERS)] * (2 + (BATCHES - 2) + BATCHES)  # the pilot's shard of four, record, second record
    del batches[:]
    assert dissect.run_only(tmp_path, *chosen, *HIGH).computed == []
    dissect.run_only(tmp_path, *chosen, *HIGH, "min_iou=0.1", "count=3", "mask_order=threshold_first")
    assert batches == []
    for result in dissect.results(tmp_path, "thresholds"):
        assert SUPPLEMENT in result.inputs


def test_supplements_survive_gc_of_results_and_are_made_again_after_gc_of_staging(tmp_path, done, chosen, batches):
    dissect.ingest_and_run(tmp_path / "store", *chosen, *HIGH)
    store = Store(str(tmp_path / "store"))
    assert collect(store, keep_newest=1, grace_hours=0).results == []
    collect(store, staging=True)
    del batches[:]
    dissect.run_only(tmp_path / "store", *chosen, *HIGH, "count=3", "stages=[exemplars]")
    assert len(batches) > BATCHES
    fresh = tmp_path / "fresh"
    dissect.ingest_and_run(fresh, *chosen, "count=3", "stages=[exemplars]")
    (few,), (expected,) = (
        [r for r in dissect.results(place, "exemplars") if r.settings["count"] == 3 and r.layer == "features.6"]
        for place in (tmp_path / "store", fresh)
    )
    names = ["unit", "rank", "image_id", "activation", "y", "x", "mask_pixels", "picture"]
    read = [
        small.open_store(place).read_table(result.tables["exemplars"].path, names)
        for place, result in ((tmp_path / "store", few), (fresh, expected))
    ]
    assert read[0].equals(read[1])


@pytest.mark.parametrize("at", ["pilot", "record", "tally", "exemplars"])
def test_a_failed_run_goes_on_where_it_stood(tmp_path, done, chosen, batches, monkeypatch, at):
    """Its second shard fails once: the others are done, and are not done again."""
    kind = STAGES[at]
    build = kind.build

    def failing(stage: Stage, job):
        worker = build(stage, job)

        def compute(loaded):
            if loaded.shard.index == 1:
                raise RuntimeError("killed")
            return worker.compute(loaded)

        return type(worker)(worker.read, compute, worker.write)

    monkeypatch.setattr(kind, "build", failing)
    with pytest.raises(ShardsFailed, match="1 of 3 shards failed"):
        dissect.ingest_and_run(tmp_path, *chosen)
    assert dissect.results(tmp_path, at) == []
    del batches[:]
    monkeypatch.setattr(kind, "build", build)
    dissect.run_only(tmp_path, *chosen)
    assert len(batches) == {"pilot": 2}.get(at, 0)  # what the pilot left serves the record
    small.same_tables(done, tmp_path, *TABLES)

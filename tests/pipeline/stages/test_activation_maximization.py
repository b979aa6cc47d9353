import io
import re
import shutil

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from pipeline.errors import SettingsError, ShardsFailed
from pipeline.results import staging_path
from pipeline.stages.activation_maximization import ActivationMaximization
from pipeline.stages.unit_pictures import UnitPictures, generator_of
from tests import dissect, small
from tests.command import raydissect
from workers.methods.activation_maximization import PRESETS, GradientError
from workers.models import ModelError

STAGE = "stages=[activation_maximization]"
QUICK = ("preset=plain", "steps=4")


@pytest.fixture(scope="module")
def maximized(tmp_path_factory, store, chosen):
    """All units of three layers, a few steps each."""
    store = shutil.copytree(store, tmp_path_factory.mktemp("maximized") / "store")
    dissect.run_only(store, *chosen, STAGE, *QUICK)
    return store


@pytest.fixture
def copy(tmp_path, store):
    return shutil.copytree(store, tmp_path / "store")


def table_of(store, layer=None, **settings):
    """Rows of the results that have these settings."""
    found = [
        small.open_store(store).read_table(result.tables["activation_maximization"].path).to_pylist()
        for result in dissect.results(store, "activation_maximization")
        if layer in (None, result.layer) and all(result.settings[name] == value for name, value in settings.items())
    ]
    return [row for rows in found for row in rows]


def decode(picture):
    return Image.open(io.BytesIO(picture["bytes"]))


def test_every_unit_of_every_layer_has_its_row(maximized, recorded):
    rows = dissect.read_table(maximized, "activation_maximization")
    for layer in small.LAYERS:
        own = rows[rows["layer"] == layer]
        assert own["unit"].tolist() == list(range(recorded.activations[layer].shape[1]))
        assert set(own["variant"]) == {"plain"}
        assert set(own["target"]) == {"neuron"}
    assert rows.groupby("layer")["pre_relu"].unique().str[0].to_dict() == {
        "features.4": True, "features.6": False, "classifier.2": True
    }  # fmt: skip


def test_rows_are_what_the_method_makes_of_the_batch(maximized, chosen):
    stage, job = small.job_of("activation_maximization", maximized, *chosen, *QUICK)
    worker = stage.build(job)
    for shard in stage.shards(job)[::3]:
        (layer,) = shard.layers
        stored = {(row["unit"], row["seed"]): row for row in table_of(maximized, layer)}
        made = stage.partial.cast(pa.Table.from_pylist(worker(shard), stage.partial.schema)).to_pylist()
        assert len(made) == shard.rows
        for row in made:
            assert row == {name: stored[row["unit"], row["seed"]][name] for name in row}


def test_objectives_are_those_of_the_pictures_that_are_climbed(maximized, chosen):
    """The method, called by hand on the first batch of a layer."""
    stage, job = small.job_of("activation_maximization", maximized, *chosen, *QUICK)
    pictures = UnitPictures(stage, job, job.layers["features.6"], job.load_model())
    rows = {row["unit"]: row for row in table_of(maximized, "features.6")}
    for unit in (0, 7):
        generator = generator_of(0, unit, 0)
        size = [layout.side for layout in pictures.axes]
        noise = torch.randn(3, *size, generator=generator)
        start = noise * 10 / 255 * np.mean(1 / np.array(job.study.preprocessing["std"]))
        value = pictures.network(start[None])[0, unit]
        middle = value[value.shape[0] // 2, value.shape[1] // 2].item()
        assert rows[unit]["trace"][0] == pytest.approx(middle, rel=1e-3, abs=1e-4)
        assert len(rows[unit]["trace"]) == 5
        assert rows[unit]["objective"] == max(rows[unit]["trace"])
        assert rows[unit]["last_objective"] == rows[unit]["trace"][-1]


def test_real_images_are_the_units_own_best(maximized, recorded):
    rows = dissect.read_table(maximized, "activation_maximization").set_index(["layer", "unit"])
    exemplars = dissect.read_table(maximized, "exemplars")
    best = exemplars[exemplars["rank"] == 0].set_index(["layer", "unit"])["activation"]
    for layer in small.LAYERS:
        for unit in range(recorded.activations[layer].shape[1]):
            row = rows.loc[layer, unit]
            largest = recorded.activations[layer][:, unit].max()
            assert best.get((layer, unit), largest) == largest  # a unit that is dead or saturates has no exemplar
            assert row["best_real"] == pytest.approx(largest, rel=1e-4, abs=1e-5)
            if row["outcome"] == "drawn" and row["best_real"] > 0:
                assert row["ratio"] == pytest.approx(row["objective"] / row["best_real"], rel=1e-5)


def test_pictures_decode_as_images_of_hugging_face(maximized):
    (result,) = [one for one in dissect.results(maximized, "activation_maximization") if one.layer == "features.4"]
    file = maximized / result.tables["activation_maximization"].path
    features = datasets.Features.from_arrow_schema(pq.read_schema(file))
    wanted = {**features, "picture": datasets.Image(), "last_picture": datasets.Image()}
    table = pq.read_table(file, partitioning=None)
    loaded = datasets.Dataset(table).cast(datasets.Features(wanted))
    first = next(row for row in loaded if row["outcome"] == "drawn")
    assert isinstance(first["picture"], Image.Image)
    assert first["picture"].mode == "RGB"
    assert first["picture"].size == first["last_picture"].size


def test_layers_of_few_cells_are_drawn_where_their_unit_looks(maximized, recorded):
    for layer in ("features.4", "features.6"):
        field = recorded.subject.layers[layer].field
        row = next(row for row in table_of(maximized, layer) if row["outcome"] == "drawn")
        assert decode(row["picture"]).size == (field.field_x, field.field_y)


def test_a_second_run_finds_it_done_and_another_preset_is_another_result(copy, chosen):
    again = [*chosen, STAGE, *QUICK, "layers=features.4", "units=[0,3]"]
    assert len(dissect.run_only(copy, *again).computed) == 1
    assert dissect.run_only(copy, *again).computed == []
    assert len(dissect.run_only(copy, *again, "decay=0.01").computed) == 1
    assert len(dissect.run_only(copy, *[word.replace("plain", "yosinski3") for word in again]).computed) == 1
    assert [row["unit"] for row in table_of(copy, preset="yosinski3")] == [0, 3]


def test_the_preset_spelled_out_is_the_preset(chosen):
    plain = PRESETS["plain"]
    short = ActivationMaximization(preset="plain")
    long = ActivationMaximization(
        preset="plain", steps=plain.steps, step=plain.step, clip=plain.clip, step_rule=plain.step_rule
    )
    assert short.settings_of("x") == long.settings_of("x")
    assert ActivationMaximization(units=(3, 1, 3)).settings_of("x") == ActivationMaximization(units=(1, 3)).settings_of(
        "x"
    )


def test_the_detectors_of_the_study(copy, chosen):
    dissect.run_only(copy, *chosen, STAGE, *QUICK, "units=detectors", "layers=features.6", "min_iou=0.2")
    table = dissect.read_table(copy, "detectors")
    table = table[(table["layer"] == "features.6") & table["is_best_overall"] & (table["iou"] > 0.2)]
    wanted = sorted(set(table["unit"]))
    assert 0 < len(wanted) < 64
    assert [row["unit"] for row in table_of(copy, units="detectors")] == wanted


def test_no_detectors_make_an_empty_table(copy, chosen):
    dissect.run_only(copy, *chosen, STAGE, *QUICK, "units=detectors", "layers=features.6", "min_iou=0.99")
    assert table_of(copy, units="detectors") == []
    assert len(dissect.results(copy, "activation_maximization")) == 1


def test_without_real_images_nothing_is_dissected(tmp_path, chosen):
    words = [*chosen, STAGE, *QUICK, "real_images=false", "layers=features.4", "units=[1]"]
    outcome = dissect.ingest_and_run(tmp_path, *words)
    assert len(outcome.computed) == 1
    (row,) = table_of(tmp_path)
    assert row["best_real"] is row["ratio"] is None
    assert row["outcome"] == "drawn"


@pytest.mark.parametrize("start", ["mean", "clusters"])
def test_starts_from_exemplars(copy, chosen, start):
    more = ["seeds=2", "batch=5", "units=[0,1,2]", "layers=features.6", f"start={start}", "real_images=false"]
    dissect.run_only(copy, *chosen, STAGE, *QUICK, *more)
    rows = table_of(copy, start=start)
    assert [(row["unit"], row["seed"]) for row in rows] == [(unit, seed) for unit in range(3) for seed in range(2)]
    assert all(0 < row["diversity"] < 1.0001 for row in rows)
    pairs = [(rows[place]["picture"]["bytes"], rows[place + 1]["picture"]["bytes"]) for place in (0, 2, 4)]
    assert all(one != other for one, other in pairs)


def test_starting_from_one_exemplar_is_starting_from_what_its_cell_saw(copy, chosen, recorded):
    dissect.run_only(copy, *chosen, "stages=[exemplars]", "count=1", "layers=features.6")
    dissect.run_only(copy, *chosen, STAGE, *QUICK, "count=1", "start=mean", "layers=features.6")
    exemplars = dissect.read_table(copy, "exemplars")
    real = exemplars[(exemplars["layer"] == "features.6") & (exemplars["rank"] == 0)].set_index("unit")
    height, width = recorded.activations["features.6"].shape[2:]
    one_cluster = ["start=clusters", "seeds=2", "batch=64"]
    dissect.run_only(copy, *chosen, STAGE, *QUICK, "count=1", "layers=features.6", *one_cluster)
    clusters = {(row["unit"], row["seed"]): row for row in table_of(copy, start="clusters")}
    inner = real[(real["y"].between(3, height - 4)) & (real["x"].between(3, width - 4))]
    rows = {row["unit"]: row for row in table_of(copy, start="mean")}
    assert len(inner) > 3
    for unit, row in inner.iterrows():
        assert rows[unit]["trace"][0] == pytest.approx(row["activation"], rel=1e-3, abs=1e-4)
        assert clusters[unit, 0]["trace"][0] == pytest.approx(rows[unit]["trace"][0], rel=1e-4, abs=1e-5)
        assert clusters[unit, 1]["trace"][0] != clusters[unit, 0]["trace"][0]  # the cluster again, with noise


def test_animations(copy, chosen):
    dissect.run_only(copy, *chosen, STAGE, "preset=plain", "steps=20", "frames=5", "layers=features.4", "units=[0]")
    (row,) = table_of(copy, frames=5)
    animation = decode(row["animation"])
    assert animation.format == "WEBP"
    assert 2 <= animation.n_frames <= 5  # frames that are alike are one that is shown longer
    assert animation.size == decode(row["picture"]).size


def test_the_first_layers_filters_lie_beside(copy, chosen):
    words = [*chosen, "layers=features.1", "batch=16"]
    dissect.run_only(copy, *words, STAGE, "preset=plain")
    _, job = small.job_of("activation_maximization", copy, *words, "preset=plain")
    weight = job.load_model().module.features[0].weight
    rows = table_of(copy, "features.1")
    assert len(rows) == len(weight)
    for row in rows:
        picture = np.asarray(decode(row["filter"])).astype(float)
        assert decode(row["filter"]).format == "PNG"
        assert picture.shape == (*weight.shape[2:], 3)
        own = weight[row["unit"]].movedim(0, -1).numpy()
        np.testing.assert_allclose(picture, own / abs(own).max() * 127.5 + 127.5, atol=0.51)
    assert np.median([row["filter_cosine"] for row in rows]) > 0.99
    assert all(row["filter"] is None for row in table_of(copy, "features.4"))


def test_logits(copy, chosen):
    dissect.run_only(copy, *chosen, STAGE, "preset=yosinski3", "steps=40", "layers=logits", "target=logit")
    rows = table_of(copy, "classifier.3")
    assert {row["target"] for row in rows} == {"logit"}
    assert all(row["argmax_step"] is not None for row in rows)
    assert decode(rows[0]["picture"]).size == (112, 112)


def test_a_unit_that_nothing_opens_is_reported_not_drawn(tmp_path, source):
    weights = small.write_weights(
        tmp_path / "dead.safetensors", {"features.3.weight": (5, 0.0), "features.3.bias": (5, -1.0)}
    )
    words = small.overrides(source, layers=("features.4",))
    words = [f"model.weights={weights}" if word.startswith("model.weights") else word for word in words]
    dissect.ingest_and_run(tmp_path / "store", *words, STAGE, *QUICK, "units=[4,5,6]")
    rows = {row["unit"]: row for row in table_of(tmp_path / "store")}
    assert rows[5]["outcome"] == "dead"
    assert rows[5]["picture"] is rows[5]["objective"] is rows[5]["trace"] is None
    assert rows[4]["outcome"] == rows[6]["outcome"] == "drawn"


def test_what_is_done_of_a_failed_run_is_not_done_again(copy, chosen, monkeypatch):
    words = [*chosen, STAGE, *QUICK, "layers=features.6", "batch=16"]
    whole, done = UnitPictures.compute, []

    def fails_once(self, batch):
        done.append(batch.pairs[0][0])
        if batch.pairs[0][0] == 32 and done.count(32) == 1:
            raise GradientError("unit 32: its gradient is NaN")
        return whole(self, batch)

    monkeypatch.setattr(UnitPictures, "compute", fails_once)
    with pytest.raises(ShardsFailed, match="unit 32"):
        dissect.run_only(copy, *words)
    assert table_of(copy) == []
    dissect.run_only(copy, *words)
    assert done == [0, 16, 32, 48, 32]
    assert [row["unit"] for row in table_of(copy)] == list(range(64))


def test_an_altered_batch_is_made_again(copy, chosen, monkeypatch):
    words = [*chosen, STAGE, *QUICK, "layers=features.6", "batch=16"]
    whole = ActivationMaximization.reduce

    def spoil(self, job, layer):
        path = copy / staging_path(layer.result_id, "000001.arrow")
        path.write_bytes(path.read_bytes()[:-40] + b"x" * 40)
        monkeypatch.setattr(ActivationMaximization, "reduce", whole)
        return whole(self, job, layer)

    monkeypatch.setattr(ActivationMaximization, "reduce", spoil)
    dissect.run_only(copy, *words)
    assert [row["unit"] for row in table_of(copy)] == list(range(64))


@pytest.mark.cluster
def test_tables_are_the_same_on_any_number_of_workers(tmp_path, store, maximized, chosen):
    copy = shutil.copytree(store, tmp_path / "store")
    dissect.run_only(copy, *chosen, STAGE, *QUICK, "cluster=ray", "cluster.workers=2")
    small.same_tables(maximized, copy, "activation_maximization")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["units=[0,48]", "layers=features.4"], "units has 48, layer features.4 has units 0 to 47"),
        (["units=[-1]", "layers=features.4"], "units has -1"),
        (["units=some"], "must be all, detectors, or a list of numbers"),
        (["preset=yosinki3"], "must be among .*; did you mean 'yosinski3'"),
        (["preset=fourier", "step_rule=normalized"], "space=fourier takes step_rule=adam"),
        (["seeds=33"], "seeds=33 is more than batch=32"),
        (["diversity=1"], "diversity needs seeds=2"),
        (["target=logit", "layers=features.6"], "target is logit, but layer features.6 has maps of .* layers=logits"),
        (
            ["size=5", "layers=features.6"],
            "size is 5, too small for the network as far as features.6: it takes 13 at least",
        ),
        (["size=100", "layers=classifier.2"], "size is 100, .* it takes 109 at least"),
        (["decay=1"], "decay is '1'"),
    ],
)
def test_bad_settings_are_refused_before_anything_runs(copy, chosen, words, told):
    with pytest.raises(SettingsError, match=f"(?s){told}"):
        dissect.run_only(copy, *chosen, STAGE, "preset=plain", *words)
    assert dissect.results(copy, "activation_maximization") == []


def test_layers_without_one_tensor_of_maps_are_refused(copy, chosen):
    with pytest.raises(ModelError, match=r"no module|matches no"):
        dissect.run_only(copy, *chosen, STAGE, "layers=features.99")


def test_nan_weights_name_layer_unit_and_step(tmp_path, source):
    weights = small.write_weights(tmp_path / "nan.safetensors", {"features.3.weight": ((2, 0, 0, 0), float("nan"))})
    words = small.overrides(source, layers=("features.4",))
    words = [f"model.weights={weights}" if word.startswith("model.weights") else word for word in words]
    with pytest.raises(ShardsFailed, match=r"layer features\.4, unit 0: .* at step 0"):
        dissect.ingest_and_run(tmp_path / "store", *words, STAGE, *QUICK, "real_images=false")


def test_a_run_ends_with_what_came_of_its_pictures(copy, chosen):
    words = [f"store={copy}", "cluster=inline", *chosen, *QUICK, "layers=features.4"]
    for _ in range(2):  # made, then found done
        ended = raydissect("run", *words, STAGE)
        assert ended.code == 0, ended.err
        drawn = [row["outcome"] for row in table_of(copy)].count("drawn")
        assert re.search(rf"^features.4 +plain +{drawn} +{48 - drawn} +0 +\d+\.\d\d$", ended.out, re.MULTILINE), (
            ended.out
        )
    assert "best real image" not in raydissect("run", *words).out

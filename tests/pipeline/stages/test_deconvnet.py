"""The stage against the method called by hand on one image at a time; resume, workers, bad settings."""

import io
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.errors import SettingsError
from pipeline.results import staging_path
from pipeline.stages.deconvnet import Deconvnet
from pipeline.stages.patterns import box_of
from pipeline.stages.real_images import decode, read_images
from tests import dissect, small
from tests.command import raydissect
from workers.methods.deconvnet import Round, project
from workers.nn.relus import LayerFunction

STAGE = "stages=[deconvnet]"


@pytest.fixture(scope="module")
def projected(tmp_path_factory, store, chosen):
    """All exemplars of all units of three layers."""
    store = shutil.copytree(store, tmp_path_factory.mktemp("projected") / "store")
    dissect.run_only(store, *chosen, STAGE)
    return store


@pytest.fixture
def copy(tmp_path, store):
    return shutil.copytree(store, tmp_path / "store")


def rows_of(store, **settings):
    """Rows of the results that have these settings."""
    return [
        {**row, "layer": result.layer}
        for result in dissect.results(store, "deconvnet")
        if all(result.settings[name] == value for name, value in settings.items())
        for row in small.open_store(store).read_table(result.tables["deconvnet"].path).to_pylist()
    ]


def by_hand(job, row, rule="deconvnet", keep="cell"):
    """Pattern and activation of one row, its image alone in the batch, in float64."""
    model = job.load_model()
    data = read_images(job, {row["image_id"]})[row["image_id"]]
    image = model.preprocessing.normalize(decode(job, data)[None]).double()
    double = torch.func.functional_call  # the weights in float64, without changing the shared module
    state = {name: value.double() for name, value in model.module.state_dict().items()}
    function = LayerFunction(model.module, row["layer"])

    class Double(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.module = model.module

        def forward(self, x):
            return function(x)

    network = Double()
    one = Round(*(torch.tensor([row[name]]) for name in ("unit", "y", "x")))
    call = {f"module.{name}": value for name, value in state.items()}
    (made,) = project(lambda x: double(network, call, (x,)), image, [one], rule, keep)
    return made.pattern[0], made.activation.item()


def test_rows_are_the_exemplars(projected):
    rows = dissect.read_table(projected, "deconvnet").set_index(["layer", "unit", "rank"]).sort_index()
    exemplars = dissect.read_table(projected, "exemplars").set_index(["layer", "unit", "rank"]).sort_index()
    assert rows.index.equals(exemplars.index)
    assert len(rows) > 100
    for name in ("image_id", "image", "y", "x"):
        assert rows[name].equals(exemplars[name])
    np.testing.assert_allclose(rows["activation"], exemplars["activation"], rtol=1e-4, atol=1e-5)
    assert (rows["outside"] == 0).all()


@pytest.mark.parametrize(("rule", "keep"), [("deconvnet", "cell"), ("guided", "cell"), ("gradient", "cell"), ("deconvnet", "map")])  # fmt: skip
def test_patterns_are_those_of_an_image_by_itself(projected, chosen, rule, keep):
    settings = (f"rule={rule}", f"keep={keep}", "units=[0,3,5]")
    dissect.run_only(projected, *chosen, STAGE, *settings)
    _, job = small.job_of("deconvnet", projected, *chosen, *settings)
    rows = rows_of(projected, rule=rule, keep=keep, units=[0, 3, 5])
    assert {row["layer"] for row in rows} == set(small.LAYERS)
    for row in rows[::4]:
        pattern, activation = by_hand(job, row, rule, keep)
        box = slice(row["top"], row["bottom"]), slice(row["left"], row["right"])
        assert row["variant"] == rule
        assert row["keep"] == keep
        assert row["activation"] == pytest.approx(activation, rel=1e-4, abs=1e-5)
        assert row["norm"] == pytest.approx(pattern[:, *box].norm().item(), rel=1e-2)  # rounding moves switches of
        assert row["peak"] == pytest.approx(pattern.abs().max().item(), rel=1e-2)  # pools where images are flat
        assert pattern.count_nonzero() == pattern[:, *box].count_nonzero()


def test_pictures_show_the_box(projected, chosen):
    _, job = small.job_of("deconvnet", projected, *chosen)
    for row in rows_of(projected, units="all", rule="deconvnet", keep="cell")[::40]:
        size = (row["right"] - row["left"], row["bottom"] - row["top"])
        pattern, crop = (Image.open(io.BytesIO(row[name]["bytes"])) for name in ("pattern", "crop"))
        assert pattern.size == crop.size == size
        assert pattern.format == ("PNG" if max(size) <= 64 else "JPEG")
        field = job.layers[row["layer"]].layer.field
        box = box_of(field, row["y"], row["x"], 112, 112)
        assert (box.top, box.left, box.bottom, box.right) == tuple(row[name] for name in ("top", "left", "bottom", "right"))  # fmt: skip
        assert row["is_clipped"] == box.is_clipped
        image = decode(job, read_images(job, {row["image_id"]})[row["image_id"]])[:, *box.slices]
        if crop.format == "PNG":
            assert np.array_equal(np.array(crop), image.movedim(0, -1).numpy())


def test_a_fully_connected_unit_sees_the_whole_image(projected):
    rows = [row for row in rows_of(projected, units="all") if row["layer"] == "classifier.2"]
    assert {(row["top"], row["left"], row["bottom"], row["right"]) for row in rows} == {(0, 0, 112, 112)}
    assert not any(row["is_clipped"] for row in rows)


def test_an_image_smaller_than_the_field_is_shown_whole(copy, chosen):
    """features.11 sees 83 rows and columns of 112: at the borders not all of them are there."""
    layers = [word if not word.startswith("layers=") else "layers=[features.11]" for word in chosen]
    dissect.run_only(copy, *layers, STAGE, "units=[0,1,2,3]")
    rows = rows_of(copy)
    assert any(row["is_clipped"] for row in rows)
    assert all(0 <= row["top"] < row["bottom"] <= 112 and 0 <= row["left"] < row["right"] <= 112 for row in rows)


def test_each_image_goes_through_the_network_once(copy, chosen, monkeypatch):
    seen = []
    original = LayerFunction.__call__

    def count(self, images, redirected=False):
        seen.append(len(images))
        return original(self, images, redirected)

    monkeypatch.setattr(LayerFunction, "__call__", count)
    dissect.run_only(copy, *chosen, STAGE, "batch=4")
    rows = dissect.read_table(copy, "deconvnet")
    images = rows.groupby("layer")["image_id"].nunique()
    assert len(seen) == sum(-(-number // 4) for number in images)
    assert set(seen) == {4}
    assert len(rows) > 4 * sum(images)  # an image has many units


def test_batches_move_nothing_but_the_last_bits(projected, copy, chosen):
    dissect.run_only(copy, *chosen, STAGE, "batch=3")
    keys = ["layer", "unit", "rank"]
    one, other = (
        dissect.read_table(store, "deconvnet").query("variant == 'deconvnet' and keep == 'cell'").sort_values(keys)
        for store in (projected, copy)
    )
    one = one.drop_duplicates(keys)  # other tests project some units again
    np.testing.assert_array_equal(one[[*keys, "image_id", "top", "left"]], other[[*keys, "image_id", "top", "left"]])
    np.testing.assert_allclose(one["norm"], other["norm"], rtol=1e-2)  # as above


def test_fewer_exemplars_than_there_are(copy, chosen):
    dissect.run_only(copy, *chosen, STAGE, "stage.deconvnet.count=1")
    assert {row["rank"] for row in rows_of(copy)} == {0}


def test_detectors_alone(copy, chosen):
    dissect.run_only(copy, *chosen, STAGE, "units=detectors", "stage.deconvnet.count=1")
    detectors = dissect.read_table(copy, "detectors")
    wanted = detectors[detectors["is_detector"] & detectors["is_best_overall"]]
    found = {(row["layer"], row["unit"]) for row in rows_of(copy)}
    assert found == set(zip(wanted["layer"], wanted["unit"], strict=True))


def test_exemplars_are_made_on_the_way(tmp_path, chosen):
    outcome = dissect.ingest_and_run(tmp_path / "store", *chosen, STAGE, "units=[1]")
    assert list(outcome.seconds) == ["pilot", "record", "thresholds", "exemplars", "deconvnet"]
    assert {row["unit"] for row in rows_of(tmp_path / "store")} <= {1}


def test_a_result_is_found_and_a_lost_shard_alone_is_made_again(copy, chosen):
    words = (*chosen, STAGE, "batch=4", "units=[0,1,2]")
    stage, job = small.job_of("deconvnet", copy, *words)
    shards = stage.shards(job)
    assert len({shard.name for shard in shards}) == len(shards) > 6
    worker = stage.build(job)
    for shard in shards[1:]:
        worker.write(shard, worker(shard))
    told = []
    settings = dissect.settings(copy, *words)
    from pipeline.executor import make_executor
    from pipeline.run import run

    with make_executor(settings.cluster) as executor:
        run(settings, executor, lambda title, done, total: told.append((title, done, total)))
    assert ("deconvnet", 1, 1) in told
    first = rows_of(copy)
    assert dissect.run_only(copy, *words).computed == []
    there = small.open_store(copy).list(f"staging/{job.layers['features.4'].result_id}")
    assert staging_path(job.layers["features.4"].result_id, "000000.arrow") in there
    assert first == rows_of(copy)


@pytest.mark.cluster
def test_tables_are_the_same_on_ray(copy, projected, chosen):
    words = [word for word in chosen if word != "cluster=inline"]
    settings = ("cluster=ray", "cluster.workers=2", "rule=guided", "units=[0,1,2,3]")
    dissect.run_only(copy, *words, STAGE, *settings)
    dissect.run_only(projected, *chosen, STAGE, *settings[2:])
    wanted = rows_of(projected, rule="guided", units=[0, 1, 2, 3])
    assert rows_of(copy) == wanted
    assert wanted


def test_other_nonlinearities_are_named(tmp_path, source):
    words = small.overrides(source, "model=mobilenet_v3_small", STAGE, "tail_quantile=0.3", layers=("features.1",))
    with pytest.raises(SettingsError, match=r"as far as layer features\.1 mobilenet_v3_small calls hardsigmoid \(1\), hardswish \(1\): .* relu_rule=extend, or take rule=gradient"):  # fmt: skip
        dissect.ingest_and_run(tmp_path / "store", *words)
    assert dissect.results(tmp_path / "store", "record") == []  # before anything has run
    dissect.run_only(tmp_path / "store", *words, "relu_rule=extend", "units=[0,1]")
    dissect.run_only(tmp_path / "store", *words, "rule=gradient", "units=[0,1]")
    rows = rows_of(tmp_path / "store")
    assert {row["variant"] for row in rows} == {"deconvnet", "gradient"}
    assert all(row["outside"] == 0 for row in rows if row["variant"] == "deconvnet")  # gates are held


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["rule=deconv"], r"stage\.deconvnet\.rule is 'deconv', must be among \['deconvnet', 'guided', 'gradient'\]; did you mean 'deconvnet'"),
        (["units=[48]"], "units has 48, layer features.4 has units 0 to 47"),
        (["keep=cells"], "keep is 'cells', must be among .*did you mean 'cell'"),
        (["stage.deconvnet.count=0"], "count is '0'"),
        (["stage.deconvnet.bach=3"], "bach.*did you mean 'stage.deconvnet.batch'"),
    ],
)  # fmt: skip
def test_bad_settings(copy, chosen, words, message):
    with pytest.raises(SettingsError, match=message):
        dissect.run_only(copy, *chosen, STAGE, *words)


def test_the_command_names_the_layer_and_the_cure(copy, chosen):
    ended = raydissect("run", f"store={copy}", "cluster=inline", *chosen, STAGE, "units=[99]")
    assert ended.code == 2
    assert "units has 99, layer features.4 has units 0 to 47" in ended.err
    assert "Traceback" not in ended.err


def test_settings_that_are_the_same_are_the_same_result():
    stage = Deconvnet.model_validate({"units": [3, 1, 3]})
    assert stage.settings_of("x") == Deconvnet.model_validate({"units": [1, 3]}).settings_of("x")
    assert stage.reads() == ("exemplars",)
    assert Deconvnet.model_validate({"units": "detectors"}).reads() == ("exemplars", "detectors")

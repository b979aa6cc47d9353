"""Diagnosis against numpy on all cells; made-up dead, saturated and double units; what is read, and what is not."""

import shutil

import numpy as np
import pyarrow as pa
import pytest
import torch

from pipeline.errors import SettingsError
from pipeline.results import staging_path
from pipeline.stages import diagnosis as module
from pipeline.stages.diagnosis import Diagnosis, verdict
from schemas import DECONVNET
from tests import dissect, small
from workers.networks.mininet import MiniNet
from workers.nn.spectrum import noise_share

LAYER = "features.4"
"""Behind the second convolution: the deepest at which aliasing is looked for."""


@pytest.fixture(scope="module")
def diagnosed(tmp_path_factory, store, chosen):
    """The small dissection, diagnosed."""
    store = shutil.copytree(store, tmp_path_factory.mktemp("diagnosed") / "store")
    dissect.run_only(store, *chosen, "stages=[diagnosis]")
    return store


def of_layer(store, layer, name="diagnosis"):
    table = dissect.read_table(store, name)
    return table[table["layer"] == layer].reset_index(drop=True)


@pytest.mark.parametrize("layer", small.LAYERS)
def test_units_are_what_numpy_says_of_all_cells(diagnosed, recorded, layer):
    rows = of_layer(diagnosed, layer)
    cells = recorded.activations[layer].transpose(1, 0, 2, 3).reshape(len(rows), -1).astype(float)  # unit cell
    assert rows["unit"].tolist() == list(range(len(cells)))
    assert rows["num_cells"].tolist() == [cells.shape[1]] * len(cells)
    assert rows["num_positive"].tolist() == (cells > 0).sum(1).tolist()
    assert rows["max"].tolist() == cells.max(1).tolist()
    assert rows["is_dead"].tolist() == (cells.max(1) <= 0).tolist()
    varies = np.flatnonzero(cells.min(1) < cells.max(1))
    correlation = np.full((len(cells), len(cells)), -np.inf)
    correlation[np.ix_(varies, varies)] = np.corrcoef(cells[varies])
    np.fill_diagonal(correlation, -np.inf)
    assert rows["correlation"].isna().tolist() == [unit not in varies for unit in range(len(cells))]
    assert rows["most_alike"].isna().equals(rows["correlation"].isna())
    np.testing.assert_allclose(rows["correlation"][varies], correlation[varies].max(1), atol=1e-9)
    for unit in varies:
        found = correlation[unit, int(rows["most_alike"][unit])]
        assert found == pytest.approx(correlation[unit].max(), abs=1e-9)


def test_layers_count_their_units(diagnosed):
    table = dissect.read_table(diagnosed, "diagnosis")
    summary = dissect.read_table(diagnosed, "diagnosis_layers").set_index("layer")
    for layer, rows in table.groupby("layer"):
        assert summary["num_units"][layer] == len(rows)
        for column, flags in (("num_dead", rows["is_dead"]), ("num_saturated", rows["is_saturated"])):
            assert summary[column][layer] == flags.sum()
        assert summary["num_duplicates"][layer] == rows["duplicate_of"].notna().sum()
        assert summary["first_stride"][layer] == 2
    assert table["is_dead"].any()


def test_aliasing_is_the_median_over_the_patterns(diagnosed):
    rows, patterns = of_layer(diagnosed, LAYER), of_layer(diagnosed, LAYER, "deconvnet")
    summary = of_layer(diagnosed, LAYER, "diagnosis_layers").iloc[0]
    assert patterns["unit"].nunique() > 9
    for row in rows.itertuples():
        own = patterns[patterns["unit"] == row.unit]
        if own["nyquist_share"].notna().any():
            assert row.aliasing == pytest.approx(own["nyquist_share"].median())
            assert row.aliasing_images == pytest.approx(own["nyquist_share_image"].median())
            assert row.above_nyquist == pytest.approx(own["above_nyquist"].median())
            assert row.is_aliased == (
                row.aliasing - max(row.aliasing_images, noise_share(2)) > Diagnosis().aliasing_limit
            )
        else:
            assert np.isnan(row.aliasing)
            assert row.is_aliased is None
    assert summary["aliasing"] == pytest.approx(rows["aliasing"].median())
    assert summary["aliasing_images"] == pytest.approx(rows["aliasing_images"].median())
    assert summary["above_nyquist"] == pytest.approx(rows["above_nyquist"].median())
    assert summary["num_aliased"] == rows["is_aliased"].fillna(False).sum()
    assert "58% of white noise; above it lie " in summary["verdict"]


@pytest.mark.parametrize(("layer", "depth"), [("features.6", 3), ("classifier.2", 6)])
def test_deeper_layers_have_no_aliasing(diagnosed, layer, depth):
    rows, summary = of_layer(diagnosed, layer), of_layer(diagnosed, layer, "diagnosis_layers").iloc[0]
    assert rows[["aliasing", "aliasing_images", "above_nyquist", "is_aliased"]].isna().all(axis=None)
    assert np.isnan(summary["aliasing"])
    assert summary["num_aliased"] == 0
    assert summary["verdict"].endswith(f"aliasing not looked at: convolutions behind the layer: {depth}")


@pytest.fixture(scope="module")
def ill(tmp_path_factory, source):
    """A network whose second convolution has a unit that is dead, one that is constant, and several that are one."""
    state = MiniNet(generator=torch.Generator().manual_seed(0)).state_dict()
    weight, bias = state["features.3.weight"][:6].clone(), torch.zeros(6)
    weight[0], bias[0] = 0, -1
    weight[1], bias[1] = 0, 2
    weight[3], weight[5] = weight[2], 2 * weight[2]
    folder = tmp_path_factory.mktemp("ill")
    some = slice(0, 6)
    changes = {"features.3.weight": (some, weight), "features.3.bias": (some, bias)}
    path = small.write_weights(folder / "ill.safetensors", changes)
    words = [*small.overrides(source, layers=(LAYER,)), f"model.weights={path}", "aliasing=false"]
    dissect.ingest_and_run(folder / "store", *words, "stages=[diagnosis]")
    return folder / "store", words


def test_made_up_illnesses_are_found(ill):
    rows = of_layer(ill[0], LAYER)
    assert rows["is_dead"][0]
    assert rows["num_positive"][0] == 0
    assert rows["is_saturated"][:2].tolist() == [False, True]
    assert rows["num_positive"][1] == rows["num_cells"][1]
    assert rows[["most_alike", "correlation", "duplicate_of"]][:2].isna().all(axis=None)
    assert np.isnan(rows["duplicate_of"][2])
    assert rows["duplicate_of"][[3, 5]].tolist() == [2, 2]
    assert rows["most_alike"][3] in (2, 5)
    assert rows["correlation"][[2, 3, 5]].tolist() == pytest.approx([1, 1, 1])
    summary = of_layer(ill[0], LAYER, "diagnosis_layers").iloc[0]
    assert summary["num_duplicates"] == 2
    assert summary["verdict"] == (
        f"{summary['num_dead']} of 48 units dead; {summary['num_saturated']} of 48 units saturated; "
        "2 of 48 units double; aliasing not looked at: aliasing=false"
    )


def test_filters_made_to_alias_are_found(tmp_path, source):
    """Of a stride of 2: gratings of 4 pixels along each axis, one of 14, a soft blob, and white noise."""
    place = torch.arange(7) - 3
    fast, slow = (torch.sin(2 * torch.pi * place / period).expand(7, 7) for period in (4, 14))
    blob = torch.exp(-(place[:, None] ** 2 + place**2) / 8)
    noise = MiniNet(generator=torch.Generator().manual_seed(0)).features[0].weight[4, 0].detach()
    filters = torch.stack([fast, fast.T, slow, blob, noise])[:, None].expand(5, 3, 7, 7)
    path = small.write_weights(tmp_path / "made.safetensors", {"features.0.weight": (slice(0, 5), filters)})
    words = [*small.overrides(source, layers=("features.1",)), f"model.weights={path}", "stages=[diagnosis]"]
    dissect.ingest_and_run(tmp_path / "store", *words)
    rows = of_layer(tmp_path / "store", "features.1")
    assert rows["is_aliased"][:4].tolist() == [True, True, False, False]
    assert rows["aliasing"][:2].min() > 0.75
    assert rows["aliasing"][2:4].max() < 0.4
    assert 0.45 < rows["aliasing"][4] < 0.75
    assert of_layer(tmp_path / "store", "features.1", "diagnosis_layers")["num_aliased"][0] == rows["is_aliased"].sum()


def test_without_aliasing_nothing_is_projected_and_nothing_dissected(ill):
    assert {
        result.stage for name in ("deconvnet", "exemplars", "tally") for result in dissect.results(ill[0], name)
    } == set()
    (result,) = dissect.results(ill[0], "diagnosis")
    assert set(result.inputs) == {"thresholds"}


def test_a_unit_is_saturated_where_its_largest_value_is_its_threshold(diagnosed):
    both = dissect.read_table(diagnosed, "diagnosis").merge(
        dissect.read_table(diagnosed, "thresholds"), on=["layer", "unit"], suffixes=("", "_of_thresholds")
    )
    assert both["is_saturated"].equals((both["num_above"] == 0) & (both["max"] > 0))


def test_another_limit_links_other_units(tmp_path, store, diagnosed, chosen):
    copy = shutil.copytree(store, tmp_path / "store")
    dissect.run_only(copy, *chosen, "stages=[diagnosis]", "aliasing=false", "correlation=0.5")
    rows, usual = of_layer(copy, LAYER), of_layer(diagnosed, LAYER)
    assert rows["correlation"].equals(usual["correlation"])
    linked = (rows["correlation"] > 0.5) & rows["duplicate_of"].notna()
    assert linked.sum() > usual["duplicate_of"].notna().sum()
    assert (rows["duplicate_of"][linked] < rows["unit"][linked]).all()


def test_an_image_that_does_not_vary_has_no_say(monkeypatch, diagnosed, chosen):
    stage, job = small.job_of("diagnosis", diagnosed, *chosen)
    patterns = of_layer(diagnosed, LAYER, "deconvnet").astype({"nyquist_share_image": float})
    first, second = patterns["unit"].unique()[:2]
    patterns.loc[patterns["unit"] == first, "nyquist_share_image"] = np.nan
    patterns.loc[(patterns["unit"] == second) & (patterns["rank"] > 0), "nyquist_share_image"] = np.nan
    read = module.read_result_table
    names = ["unit", "nyquist_share", "nyquist_share_image", "above_nyquist"]
    monkeypatch.setattr(
        module,
        "read_result_table",
        lambda store, result, table, columns: (
            pa.Table.from_pandas(patterns[names], preserve_index=False)
            if table is DECONVNET
            else read(store, result, table, columns)
        ),
    )
    rows = stage.reduce(job, job.layers[LAYER]).tables["diagnosis"].to_pandas()
    assert rows["aliasing"].astype("float32").equals(of_layer(diagnosed, LAYER)["aliasing"])
    assert np.isnan(rows["aliasing_images"][first])
    assert rows["is_aliased"][first] is None
    kept = patterns[(patterns["unit"] == second) & (patterns["rank"] == 0)]["nyquist_share_image"].item()
    assert rows["aliasing_images"][second] == pytest.approx(kept)


def test_shards_in_any_order_by_any_worker_add_up_to_the_same_table(diagnosed, chosen):
    stage, job = small.job_of("diagnosis", diagnosed, *chosen, "correlation=0.98")
    workers = [stage.build(job), stage.build(job)]
    for place, shard in enumerate(reversed(job.shards)):
        worker = workers[place % 2]
        worker.write(shard, worker(shard))
    for name, layer in job.layers.items():
        table = stage.reduce(job, layer).tables["diagnosis"].to_pandas()
        expected = of_layer(diagnosed, name)
        for column in ("num_positive", "correlation", "most_alike", "aliasing"):
            assert table[column].astype(float).equals(expected[column].astype(float)), column


def test_a_run_goes_on_with_the_shards_that_are_missing(tmp_path, diagnosed, chosen):
    store = shutil.copytree(diagnosed, tmp_path / "store")
    words = [*chosen, "correlation=0.98"]
    stage, job = small.job_of("diagnosis", store, *words)
    worker, done = stage.build(job), job.shards[1]
    worker.write(done, worker(done))
    paths = [store / staging_path(layer.result_id, stage.marker(done)) for layer in job.layers.values()]
    written = [path.stat().st_mtime_ns for path in paths]
    outcome = dissect.run_only(store, *words, "stages=[diagnosis]")
    assert [path.stat().st_mtime_ns for path in paths] == written
    assert len(outcome.computed) == len(small.LAYERS)
    table = dissect.read_table(store, "diagnosis")
    first, second = (
        rows.reset_index(drop=True) for _, rows in table.groupby(table.groupby(["layer", "unit"]).cumcount())
    )
    columns = ["layer", "unit", "max", "num_positive", "most_alike", "correlation", "aliasing", "is_aliased"]
    assert first[columns].equals(second[columns])
    assert dissect.run_only(store, *words, "stages=[diagnosis]").computed == []


def test_settings_out_of_range_are_refused():
    for words in (["correlation=1"], ["correlation=0"], ["aliasing_limit=-0.1"], ["aliasing=maybe"]):
        with pytest.raises(SettingsError, match=words[0].partition("=")[0]):
            dissect.settings("nowhere", *words).stages_by_name()


SOUND = {
    "num_units": 9, "num_dead": 0, "num_saturated": 0, "num_duplicates": 0, "first_stride": 4, "num_aliased": 0,
    "aliasing": None, "aliasing_images": None, "above_nyquist": None,
}  # fmt: skip


def test_verdicts():
    assert verdict(SOUND, 0, "the first stride is 1") == "nothing found; aliasing not looked at: the first stride is 1"
    seen = {"aliasing": 0.412, "aliasing_images": 0.2, "above_nyquist": 0.333}
    assert verdict({**SOUND, **seen}, 7, "") == (
        "nothing found; about the Nyquist frequency of stride 4 lie 41% of patterns, 20% of their images, "
        "32% of white noise; above it lie 33% of patterns"
    )
    assert verdict({**SOUND, **seen, "num_dead": 2, "num_aliased": 3}, 7, "").startswith(
        "2 of 9 units dead; 3 of 7 units aliased; about"
    )

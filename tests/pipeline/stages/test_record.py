import numpy as np
import pyarrow as pa
import pytest
import torch

from pipeline.stages import record
from pipeline.stages.record import estimate, read_choice
from pipeline.stages.tails import read_tail_maps, read_top_images, read_unit_statistics
from tests import dissect, oracle, small


@pytest.fixture(scope="module")
def job(store, chosen):
    return small.job_of("thresholds", store, *chosen)[1]


@pytest.mark.parametrize("layer", small.LAYERS)
def test_keeps_every_map_that_exceeds_its_bound_once(job, recorded, layer):
    activation = recorded.activations[layer]
    bound = read_unit_statistics(job, job.layers[layer])["bound"].to_numpy()
    expected = activation.max((2, 3)) > bound
    found = np.zeros_like(expected, dtype=int)
    for shard in job.shards:
        maps = read_tail_maps(job, job.layers[layer], shard, torch.tensor(bound))
        np.add.at(found, (maps.image_id.numpy(), maps.unit.numpy()), 1)
        for image, unit, cells in zip(maps.image_id, maps.unit, maps.map, strict=True):
            own = activation[image, unit]
            near = oracle.beside(own > bound[unit])
            np.testing.assert_array_equal(cells.view(own.shape).numpy(), np.where(near, own, -np.inf))
    np.testing.assert_array_equal(found, expected)
    assert 0 < expected.sum() < expected.size


@pytest.mark.parametrize("layer", small.LAYERS)
def test_statistics_are_those_of_all_cells(job, recorded, layer):
    table = read_unit_statistics(job, job.layers[layer]).to_pandas()
    for unit, row in enumerate(table.itertuples()):
        cells = recorded.activations[layer][:, unit]
        assert (row.num_above, row.num_at) == ((cells > row.bound).sum(), (cells == row.bound).sum())
        assert (row.max, row.min) == (cells.max(), cells.min())


@pytest.mark.parametrize("layer", small.LAYERS)
def test_top_images_are_in_descending_order_ties_to_the_lowest(job, recorded, layer):
    maxima = recorded.activations[layer].max((2, 3))
    bound = read_unit_statistics(job, job.layers[layer])["bound"].to_numpy()
    table = read_top_images(job, job.layers[layer]).to_pandas()
    for unit in range(maxima.shape[1]):
        above = np.flatnonzero(maxima[:, unit] > bound[unit])
        expected = sorted(above.tolist(), key=lambda image: (-maxima[image, unit], image))
        assert table[table["unit"] == unit]["image_id"].tolist() == expected


def test_a_layer_is_recorded_before_the_next_overwrites_it(tmp_path, source):
    """AlexNet's ReLUs work in place."""
    settings = ["model=alexnet", "model.seed=1", "data.limit=4"]
    both = small.overrides(source, *settings, layers=("features.0", "features.1"))
    dissect.ingest_and_run(tmp_path / "store", *both, "stages=[thresholds]")
    table = dissect.read_table(tmp_path / "store", "thresholds").set_index(["layer", "unit"])
    before, after = table.loc["features.0"], table.loc["features.1"]
    assert (before["min"] < 0).all()
    np.testing.assert_array_equal(after["min"], before["min"].clip(lower=0))
    np.testing.assert_array_equal(after["max"], before["max"].clip(lower=0))
    alone = small.overrides(source, *settings, layers=("features.0",))
    dissect.ingest_and_run(tmp_path / "alone", *alone, "stages=[thresholds]")
    found = dissect.read_table(tmp_path / "alone", "thresholds").set_index(["layer", "unit"]).loc["features.0"]
    assert found.equals(before)


def test_layers_row(store):
    table = dissect.read_table(store, "layers").set_index("layer")
    row = table.loc["features.6"]
    assert (row["num_units"], row["height"], row["width"], row["num_images"]) == (64, 13, 13, 13)
    assert (row["stride_y"], row["stride_x"]) == (8, 8)
    assert table.loc["classifier.2", ["stride_y", "field_y"]].isna().all()


def test_what_a_record_began_with_stays(tmp_path, source):
    """Its shards are all with maps, or all without."""
    chosen = small.overrides(source, layers=("features.4",))
    dissect.ingest_and_run(tmp_path, *chosen, "stages=[pilot]")
    for passes in ("two", "one"):
        stage, job = small.job_of("record", tmp_path, *chosen, f"passes={passes}")
        stage.prepare(job)
        choice = read_choice(job.store, job.layers["features.4"].result_id)
        assert (choice.passes, choice.reason) == ("two", "passes=two was asked for")


def test_weighs_what_the_pilot_saw(tmp_path, source, recorded):
    chosen = small.overrides(source, "tail_quantile=0.02", layers=("features.4",))
    dissect.ingest_and_run(tmp_path, *chosen, "stages=[pilot]")
    for limit, expected in (("1", "one"), ("0", "two")):
        stage, job = small.job_of("record", tmp_path, *chosen, f"staging_gib={limit}")
        (choice,) = stage.choices(job).values()
        assert choice.passes == expected
    stage, job = small.job_of("record", tmp_path, *chosen)
    activation = recorded.activations["features.4"]
    bound = stage.bounds(job, job.layers["features.4"]).numpy()
    active = activation.max((2, 3)) > bound  # image unit; the pilot sees all of so few images
    kept = sum(oracle.beside(activation[image, unit] > bound[unit]).sum() for image, unit in np.argwhere(active))
    size = active.sum() * activation[0, 0].size / 8 + 4 * kept
    assert size / 2 < estimate(job, job.layers["features.4"]).bytes < 2 * size


def test_top_images_do_not_depend_on_when_the_others_are_dropped(monkeypatch):
    generator = np.random.default_rng(0)
    parts = [
        pa.table(
            {
                "unit": generator.integers(0, 3, 50),
                "image_id": np.arange(50) + start,
                "max": generator.integers(0, 9, 50),
            }
        )
        for start in range(0, 500, 50)
    ]
    found = []
    for most in (1, 100, 10**6):
        monkeypatch.setattr(record, "MOST_TOP_ROWS", most)
        tops = record._TopImages(7)
        for part in parts:
            tops.add(part)
        found.append(tops.table())
    assert found[0].equals(found[1])
    assert found[0].equals(found[2])
    assert len(found[0]) == 3 * 7

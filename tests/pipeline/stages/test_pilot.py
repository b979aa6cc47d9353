import hashlib
import shutil

import numpy as np
import pytest

from pipeline.errors import ShardsFailed
from pipeline.results import staging_path
from pipeline.sealed import read_sealed, seal
from pipeline.stages.pilot import read_seconds
from tests import dissect, oracle, small


def bounds(store, layer):
    (result,) = [result for result in dissect.results(store, "pilot") if result.layer == layer]
    stage_store = small.open_store(store)
    table = read_sealed(stage_store, staging_path(result.result_id, "bounds.arrow"))[1]
    return table["bound"].to_numpy()


@pytest.mark.parametrize("layer", small.LAYERS)
def test_bounds_are_order_statistics_of_the_sampled_cells(store, recorded, layer):
    activation = recorded.activations[layer]
    if activation.shape[2] * activation.shape[3] > 256:
        step = round((activation.shape[2] * activation.shape[3] / 256) ** 0.5)
        activation = activation[:, :, step // 2 :: step, step // 2 :: step]
    expected = [oracle.threshold(activation[:, unit].ravel(), "0.2")[0] for unit in range(activation.shape[1])]
    np.testing.assert_array_equal(bounds(store, layer), expected)


def test_looks_at_a_fixed_share_of_the_images(store, chosen):
    few, job = small.job_of("pilot", store, *chosen, "fraction=0.02", "min_images=3")
    assert [shard.first_image for shard in few.shards(job)] == [0]
    more, job = small.job_of("pilot", store, *chosen, "fraction=0.5", "min_images=1")
    assert [shard.first_image for shard in more.shards(job)] == [0, 4]


@pytest.mark.parametrize(("weight", "value"), [("features.3.weight", "nan"), ("features.3.bias", "inf")])
def test_an_activation_that_is_not_finite_ends_the_run_with_layer_unit_and_image(tmp_path, source, weight, value):
    weights = small.write_weights(tmp_path / "broken.safetensors", {weight: (5, float(value))})
    settings = small.overrides(source, f"model.weights={weights}", layers=("features.3",))
    with pytest.raises(ShardsFailed, match=r"layer features.3, unit 5, image source[01]/image_\d+.jpg: .* NaN or inf"):
        dissect.ingest_and_run(tmp_path / "store", *settings)
    assert dissect.read_table(tmp_path / "store", "runs")["outcome"].tolist() == ["failed"]


def test_what_a_second_run_measures_changes_no_file_that_a_manifest_names(tmp_path, store, chosen):
    store = shutil.copytree(store, tmp_path / "store")
    stage, job = small.job_of("pilot", store, *chosen)
    (layer, *_) = job.layers.values()
    first = stage.reduce(job, layer).staging
    before = read_seconds(job.store, layer.result_id)
    for shard in stage.shards(job):
        path = staging_path(layer.result_id, f"{shard.name}.arrow")
        _, table = read_sealed(job.store, path)
        seal(table.replace_schema_metadata({**table.schema.metadata, b"seconds": b"1000.0"})).write(job.store, path)
    assert stage.reduce(job, layer).staging == first
    assert read_seconds(job.store, layer.result_id) == before
    assert [hashlib.sha256(job.store.read(file.path)).hexdigest() for file in first] == [file.sha256 for file in first]

import io
import shutil

import numpy as np
import pytest
from PIL import Image

from tests import dissect, oracle, small


def expected_rows(activation, count=9):
    """(rank, image, maximum, y, x) of each unit: the largest maxima above T, ties to the lowest image."""
    rows = {}
    for unit in range(activation.shape[1]):
        maps = activation[:, unit]
        threshold, _ = oracle.threshold(maps.ravel(), "0.1")
        images = [image for image in range(len(maps)) if maps[image].max() > threshold]
        images.sort(key=lambda image: (-maps[image].max(), image))
        rows[unit] = [
            (rank, image, maps[image].max(), *divmod(int(maps[image].argmax()), maps.shape[2]))
            for rank, image in enumerate(images[:count])
        ]
    return rows


@pytest.mark.parametrize("layer", small.LAYERS)
def test_rows_are_the_images_with_the_largest_maxima(store, recorded, layer):
    table = dissect.read_table(store, "exemplars")
    table = table[table["layer"] == layer]
    expected = expected_rows(recorded.activations[layer])
    found = {unit: [] for unit in expected}
    for row in table.itertuples():
        found[row.unit].append((row.rank, row.image_id, row.activation, row.y, row.x))
    assert found == expected


@pytest.mark.parametrize("layer", small.LAYERS)
def test_pictures_hold_the_masks_that_are_counted(store, recorded, layer):
    table = dissect.read_table(store, "exemplars")
    activation = recorded.activations[layer]
    for row in table[table["layer"] == layer].iloc[::40].itertuples():
        picture = Image.open(io.BytesIO(row.picture["bytes"]))
        assert picture.format == "JPEG"
        threshold, _ = oracle.threshold(activation[:, row.unit].ravel(), "0.1")
        mask = oracle.mask(activation[row.image_id, row.unit], float(threshold), picture.size[::-1])
        assert row.mask_pixels == np.count_nonzero(mask)


def test_a_dead_unit_has_none(store):
    thresholds = dissect.read_table(store, "thresholds").set_index(["layer", "unit"])
    exemplars = dissect.read_table(store, "exemplars").set_index(["layer", "unit"])
    areas = dissect.read_table(store, "areas").set_index(["layer", "unit"])
    dead = thresholds.index[thresholds["is_dead"]]
    assert len(dead)
    assert not set(dead) & set(exemplars.index)
    assert areas.loc[dead, "mask_pixels"].sum() == 0


def test_fewer_are_a_prefix(tmp_path, store, chosen, recorded):
    store = shutil.copytree(store, tmp_path / "store")
    dissect.run_only(store, *chosen, "stages=[exemplars]", "count=2", "layers=[features.6]")
    (result,) = [result for result in dissect.results(store, "exemplars") if result.settings["count"] == 2]
    table = small.open_store(store).read_table(result.tables["exemplars"].path)
    expected = expected_rows(recorded.activations["features.6"], count=2)
    pairs = list(zip(table["unit"].to_pylist(), table["image_id"].to_pylist(), strict=True))
    assert pairs == [(unit, row[1]) for unit, rows in expected.items() for row in rows]

"""Every number of a dissection, to the last count, against the float64 oracle: real photographs, two networks."""

from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from tests import dissect, oracle
from tests.shared import shared_data

pytestmark = pytest.mark.real

NETWORKS = {
    "squeezenet": ("features.7", "features.12"),
    "alexnet": ("features.11",),
}
"""Layers under test; the oracle is slow, so that of each only every n-th unit is tallied by it."""

MASKS = [
    ("upsample_first", "resize"),
    ("upsample_first", "receptive_field"),
    ("threshold_first", "resize"),
    ("threshold_first", "receptive_field"),
]
UNITS = 12


def overrides(network: str) -> list[str]:
    layers = f"layers=[{','.join(NETWORKS[network])}]"
    if network == "alexnet":
        return ["data=broden", "model=alexnet", "model.weights=random", "model.seed=3", layers]
    weights = shared_data("weights") / "squeezenet1_1_imagenet.safetensors"
    return ["data=broden", "model=squeezenet1_1", f"model.weights={weights}", layers]


@pytest.fixture(scope="module")
def source() -> Path:
    return shared_data("broden_mini")


@pytest.fixture(scope="module", params=list(NETWORKS))
def network(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def store(tmp_path_factory, source, network) -> Path:
    store = tmp_path_factory.mktemp(f"store-{network}")
    dissect.ingest_and_run(store, *overrides(network), f"data.root={source}", "stages=[detectors]")
    for order, upsampling in MASKS[1:]:
        dissect.run_only(
            store, *overrides(network), "stages=[tally]", f"mask_order={order}", f"upsampling={upsampling}"
        )
    return store


@pytest.fixture(scope="module")
def recorded(store, source, network) -> dissect.Recorded:
    return dissect.record_everything(source, store, *overrides(network))


def test_thresholds(store, recorded):
    table = dissect.read_table(store, "thresholds")
    for layer, activation in recorded.activations.items():
        rows = table[table["layer"] == layer].sort_values("unit")
        assert len(rows) == activation.shape[1]
        for unit, row in enumerate(rows.itertuples()):
            cells = activation[:, unit].ravel()
            expected, above = oracle.threshold(cells, "0.005")
            assert (row.threshold, row.num_above, row.num_cells) == (expected, above, cells.size)
            assert (row.max, row.min) == (cells.max(), cells.min())
            assert row.mean == pytest.approx(cells.mean(dtype=np.float64), rel=1e-12)
            assert row.is_dead == (cells.min() == cells.max())


@pytest.mark.parametrize(("order", "upsampling"), MASKS)
def test_tally(store, recorded, order, upsampling):
    for layer, activation in recorded.activations.items():
        units = np.linspace(0, activation.shape[1] - 1, UNITS).astype(int)
        thresholds = [oracle.threshold(activation[:, unit].ravel(), "0.005")[0] for unit in units]
        geometry = recorded.geometry(layer) if upsampling == "receptive_field" else None
        expected = oracle.tally(
            activation[:, units], thresholds, recorded.annotated, recorded.category, order, upsampling, geometry
        )
        assert sum(expected["mask_pixels"].values()) > 0
        for name, counts in read_counts(store, layer, order, upsampling, units.tolist()).items():
            assert counts == expected[name], name


def test_label_areas(store, recorded):
    table = dissect.read_table(store, "label_areas")
    found = {(row.concept_id, row.split): (row.label_pixels, row.images) for row in table.itertuples()}
    assert found == oracle.label_areas(recorded.annotated)


@pytest.mark.parametrize("union", ["annotated", "all", "under_mask", "concept"])
def test_detectors(store, recorded, network, union):
    dissect.run_only(store, *overrides(network), "stages=[layer_summary]", f"union={union}")
    areas = oracle.label_areas(recorded.annotated)
    for layer, activation in recorded.activations.items():
        counts = read_counts(store, layer, "upsample_first", "resize", list(range(activation.shape[1])))
        ious = oracle.ious(counts, areas, recorded.category, activation.shape[1], union)
        expected = oracle.detectors(ious, recorded.category, "0.04")
        rows = of_result(store, "detectors", "detectors", layer, {"union": union})
        found = {
            (row.unit, row.category): oracle.Detector(
                row.unit, row.category, row.concept_id, row.intersection, row.union, row.iou, row.is_detector,
                row.is_best_overall,
            )
            for row in rows.itertuples()
        }  # fmt: skip
        assert found == expected
        detectors = [
            r for r in dissect.results(store, "detectors") if r.layer == layer and r.settings["union"] == union
        ]
        summary = of_result(store, "layer_summary", "layer_summary", layer, {}, {"detectors": detectors[0].result_id})
        counted = {
            row.category: oracle.LayerSummary(
                row.num_detectors, row.num_unique_concepts, row.num_detectors_within, row.num_unique_concepts_within
            )
            for row in summary.itertuples()
        }
        assert counted == oracle.layer_summary(expected)


def of_result(store, table, stage, layer, wanted: dict, inputs: dict | None = None) -> pd.DataFrame:
    """Rows of the one result of a stage and layer with these settings and inputs."""
    (result,) = [
        result
        for result in dissect.results(store, stage)
        if result.layer == layer
        and wanted.items() <= result.settings.items()
        and (inputs or {}).items() <= result.inputs.items()
    ]
    return pd.read_parquet(store / result.tables[table].path)


def read_counts(store, layer, order, upsampling, units) -> dict[str, Counter]:
    """Published counts in the oracle's form."""
    wanted = {"mask_order": order, "upsampling": upsampling}
    tally = of_result(store, "tally", "tally", layer, wanted)
    areas = of_result(store, "areas", "tally", layer, wanted)
    counts = {name: Counter() for name in oracle.COUNTS}
    place = {unit: number for number, unit in enumerate(units)}
    for row in tally[tally["unit"].isin(units)].itertuples():
        for name in ("intersection", "mask_pixels_concept"):
            if value := getattr(row, name):
                counts[name][place[row.unit], row.concept_id, row.split] = value
    for row in areas[areas["unit"].isin(units)].itertuples():
        for name in ("mask_pixels_annotated", "mask_pixels_under_mask"):
            if value := getattr(row, name):
                counts[name][place[row.unit], row.category, row.split] = value
        if row.mask_pixels:
            counts["mask_pixels"][place[row.unit], row.split] = row.mask_pixels
    return counts

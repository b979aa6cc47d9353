import numpy as np
import pytest

from pipeline.sealed import read_sealed
from tests import dissect, oracle, small


@pytest.mark.parametrize("layer", small.LAYERS)
def test_thresholds_are_the_oracles(store, recorded, layer):
    table = dissect.read_table(store, "thresholds")
    rows = table[table["layer"] == layer].sort_values("unit")
    for unit, row in enumerate(rows.itertuples()):
        cells = recorded.activations[layer][:, unit].ravel()
        assert (row.threshold, row.num_above) == oracle.threshold(cells, "0.1")
        assert (row.unit, row.num_cells, row.max, row.min) == (unit, cells.size, cells.max(), cells.min())
        assert row.mean == pytest.approx(cells.mean(dtype=float), rel=1e-12, abs=1e-12)
        assert row.is_dead == (cells.min() == cells.max())
    assert rows["is_dead"].any() == (layer == "classifier.2")


TABLES = ("thresholds", "tally", "areas", "null_tally", "null_areas", "detectors", "layer_summary", "exemplars")


@pytest.mark.parametrize(
    "pilot",
    [
        ("tail_quantile=0.0001", "min_images=1", "fraction=0.001"),
        ("tail_quantile=0.05", "min_images=1", "cells_per_map=1"),
        ("tail_quantile=0.1",),
        ("tail_quantile=0.99",),
    ],
)
def test_tables_do_not_depend_on_the_bound(tmp_path, source, store, chosen, pilot):
    """Bounds too high for all units, for some, equal to the threshold, and far below."""
    dissect.ingest_and_run(tmp_path / "store", *chosen, *pilot)
    records = [result for result in dissect.results(tmp_path / "store", "record") if result.settings.get("units")]
    if pilot[0] in ("tail_quantile=0.0001", "tail_quantile=0.05"):
        assert records, "no bound was too high: the test tests nothing"
    elif pilot[0] == "tail_quantile=0.99":
        assert not records
    small.same_tables(store, tmp_path / "store", *TABLES)


@pytest.mark.parametrize("passes", ["one", "two"])
@pytest.mark.parametrize("value", ["-inf", "some", "as they are"])
def test_tables_depend_neither_on_the_passes_nor_on_forced_bounds(tmp_path, store, chosen, monkeypatch, value, passes):
    from pipeline.stages import pilot as module

    cast = module.BOUNDS.cast

    class Forced:
        @staticmethod
        def cast(table, **metadata):
            bound = table["bound"].to_numpy().copy()
            if value == "some":
                bound[::3] = 1e30
            elif value == "-inf":
                bound[:] = -np.inf
            return cast(table.set_column(1, "bound", [bound]), **metadata)

    monkeypatch.setattr(module, "BOUNDS", Forced)
    dissect.ingest_and_run(tmp_path / "store", *chosen, f"passes={passes}")
    store_there = small.open_store(tmp_path / "store")
    maps = [path for path in store_there.list("staging") if path.endswith(".maps.arrow")]
    assert {("kept" in read_sealed(store_there, path)[1].column_names) for path in maps} == {passes == "one"}
    records = [result for result in dissect.results(tmp_path / "store", "record") if result.settings.get("units")]
    assert len(records) == (3 if value == "some" else 0)
    for record in records:
        assert record.settings["units"] == list(range(0, record.settings["units"][-1] + 1, 3))
    small.same_tables(store, tmp_path / "store", *TABLES)

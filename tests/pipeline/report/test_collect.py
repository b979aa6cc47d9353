"""Which of a study's published results a report shows."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from pipeline.errors import AlteredError, InputError
from pipeline.report import write_report
from pipeline.report.collect import collect
from pipeline.results import Result, publish
from pipeline.store import Store, digest
from pipeline.study import Numerics, Study
from schemas import ACTIVATION_MAXIMIZATION, LAYERS, TABLES
from tests.pipeline.report.synthetic import make_layer
from tests.pipeline.report.synthetic_maximized import maximized_row, to_maximized_table

KEY = ("study_id", "result_id", "layer")
NUMERICS = Numerics(
    torch="2.12.0", machine="x86_64", device="cpu", cpu_capability="AVX2", threads=1, batch_size=8, tf32=False
)
STUDY = Study(
    model="mininet", weights="random", weights_sha256="0" * 64, preprocessing={}, dataset_id="d", images_id="i",
    dataset="mini", num_images=60, numerics=NUMERICS,
)  # fmt: skip


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = Store(str(tmp_path / "store"))
    STUDY.publish(store)
    return store


def publish_result(
    store: Store, stage: str, layer: str, tables: dict[str, pa.Table], inputs: dict[str, str], **settings: Any
) -> str:
    result = Result(
        result_id=digest([stage, layer, settings, inputs]), study_id=STUDY.study_id, stage=stage, version=1, layer=layer,
        settings=settings, inputs=inputs, tables={}, staging=[], seconds=1.0, finished=datetime.now(UTC),
    )  # fmt: skip
    assert publish(store, result, {name: table.drop_columns(list(KEY)) for name, table in tables.items()})
    return result.result_id


def dissect(store: Store, layer: str) -> None:
    data = make_layer(layer, 8)
    row = {**data.layer, **dict.fromkeys(KEY[:2], "")}
    layers = LAYERS.cast(pa.Table.from_pylist([row], schema=LAYERS.schema))
    record = publish_result(store, "record", layer, {"layers": layers}, {})
    thresholds = publish_result(
        store, "thresholds", layer, {"thresholds": data.thresholds}, {"record": record}, quantile=0.005
    )
    counted = {"mask_order": "upsample_first", "upsampling": "resize", "null_permutations": 0}
    inputs = {"thresholds": thresholds, "record": record}
    tally = publish_result(store, "tally", layer, {"tally": TABLES["tally"].schema.empty_table()}, inputs, **counted)
    publish_result(
        store, "detectors", layer, {"detectors": data.detectors}, {"tally": tally}, union="annotated", min_iou=0.04
    )


def maximize(store: Store, layer: str, preset: str, inputs: dict[str, str] | None = None, **settings: Any) -> str:
    rows = to_maximized_table(layer, [maximized_row(0, variant=preset)])
    tables = {ACTIVATION_MAXIMIZATION.name: rows}
    return publish_result(store, ACTIVATION_MAXIMIZATION.name, layer, tables, inputs or {}, preset=preset, **settings)


def test_newest_result_of_every_layer_and_preset(store: Store) -> None:
    dissect(store, "features.0")
    for steps in (20, 10):
        maximize(store, "features.10", "plain", steps=steps)
    newest = maximize(store, "features.9", "plain", steps=5)
    maximize(store, "features.9", "fourier")
    data = collect(store, STUDY)
    assert [layer.layer["layer"] for layer in data.layers] == ["features.0"]
    assert [(one.layer, one.variant, one.settings.get("steps")) for one in data.maximized] == [
        ("features.9", "fourier", None), ("features.9", "plain", 5), ("features.10", "plain", 10),
    ]  # fmt: skip
    table = data.maximized[1].read()
    assert table.schema.names == ACTIVATION_MAXIMIZATION.schema.names
    assert set(table["result_id"].to_pylist()) == {newest}


def test_settings_choose_among_results(store: Store) -> None:
    dissect(store, "features.0")
    for steps in (20, 10):
        maximize(store, "features.0", "plain", steps=steps)
        maximize(store, "features.0", "fourier", steps=steps)
    data = collect(store, STUDY, {"activation_maximization": {"steps": 20, "preset": "plain"}})
    assert [(one.variant, one.settings["steps"]) for one in data.maximized] == [("plain", 20)]
    assert len(data.layers) == 1


def test_settings_of_what_it_was_made_from_count_too(store: Store) -> None:
    old, new = (publish_result(store, "exemplars", "conv1", {}, {}, top=top) for top in (9, 4))
    maximize(store, "conv1", "plain", {"exemplars": old})
    maximize(store, "conv1", "plain", {"exemplars": new})
    (chosen,) = collect(store, STUDY, {"exemplars": {"top": 9}}).maximized
    assert chosen.read()["result_id"][0].as_py() == digest(
        ["activation_maximization", "conv1", {"preset": "plain"}, {"exemplars": old}]
    )


def test_study_without_detectors_has_its_pictures(store: Store) -> None:
    for layer in ("conv10", "conv9", "fc"):
        maximize(store, layer, "plain")
    data = collect(store, STUDY)
    assert data.layers == []
    assert [one.layer for one in data.maximized] == ["conv9", "conv10", "fc"]


def test_study_with_neither_is_an_error(store: Store) -> None:
    with pytest.raises(InputError, match=r"has no detectors and no activation maximization yet: run it with stages="):
        collect(store, STUDY)


def test_settings_that_nothing_has_are_an_error(store: Store) -> None:
    maximize(store, "conv1", "plain")
    with pytest.raises(InputError, match=r'has no activation maximization with settings .*"fourier"'):
        collect(store, STUDY, {"activation_maximization": {"preset": "fourier"}})
    dissect(store, "features.0")
    with pytest.raises(InputError, match=r'has no activation maximization with settings .*"fourier"'):
        collect(store, STUDY, {"activation_maximization": {"preset": "fourier"}})
    with pytest.raises(InputError, match=r'has no detectors with settings .*"all".*stages=\[dissect\]'):
        collect(store, STUDY, {"detectors": {"union": "all"}})


def test_nothing_is_read_before_its_turn(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    maximize(store, "conv1", "plain")
    read: list[str] = []
    whole = Store.read
    monkeypatch.setattr(Store, "read", lambda self, path: read.append(path) or whole(self, path))
    (one,) = collect(store, STUDY).maximized
    assert not [path for path in read if path.endswith(".parquet") and "activation_maximization" in path]
    one.read()
    assert [path for path in read if path.endswith(".parquet") and "activation_maximization" in path]


def test_collected_study_becomes_a_report(store: Store, tmp_path: Path) -> None:
    dissect(store, "features.0")
    maximize(store, "features.0", "plain")
    maximize(store, "features.1", "fourier")
    write_report(tmp_path / "report", collect(store, STUDY))
    assert {path.name for path in (tmp_path / "report/layers").glob("*.html")} == {
        "features.0.html", "features.0-maximized-plain.html", "features.1-maximized-fourier.html",
    }  # fmt: skip


def test_pictures_that_are_gone_are_an_error(store: Store, tmp_path: Path) -> None:
    maximize(store, "conv1", "plain")
    data = collect(store, STUDY)
    (path,) = store.list("tables/activation_maximization")
    store.remove(path)
    with pytest.raises(AlteredError, match="activation_maximization"):
        write_report(tmp_path / "report", data)

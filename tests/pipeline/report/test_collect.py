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
from schemas import (
    ACTIVATION_MAXIMIZATION,
    DECONVNET,
    DIAGNOSIS,
    DIAGNOSIS_LAYERS,
    EVOLUTION,
    EVOLUTION_LAYERS,
    LAYERS,
    TABLES,
)
from tests.pipeline.report.synthetic import make_layer
from tests.pipeline.report.synthetic_diagnosis import make_diagnosis, sound_rows
from tests.pipeline.report.synthetic_evolution import NUM_PLACES, checkpoint_rows, make_evolution, moment_rows
from tests.pipeline.report.synthetic_maximized import maximized_row, to_maximized_table
from tests.pipeline.report.synthetic_patterns import pattern_row, to_pattern_table

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


def test_study_with_nothing_to_show_is_an_error_that_names_the_stages(store: Store) -> None:
    publish_result(store, "pilot", "conv1", {}, {})
    with pytest.raises(
        InputError, match=r"has no detectors, no activation maximization, no patterns, .* yet: "
    ) as found:
        collect(store, STUDY)
    for stage in ("dissect", "activation_maximization", "deconvnet", "diagnosis", "evolution"):
        assert f"stages=[{stage}]" in str(found.value)


def test_settings_that_nothing_has_are_an_error(store: Store) -> None:
    maximize(store, "conv1", "plain")
    with pytest.raises(InputError, match=r'has no activation maximization with settings .*"fourier"'):
        collect(store, STUDY, {"activation_maximization": {"preset": "fourier"}})
    dissect(store, "features.0")
    with pytest.raises(InputError, match=r'has no activation maximization with settings .*"fourier"'):
        collect(store, STUDY, {"activation_maximization": {"preset": "fourier"}})
    with pytest.raises(InputError, match=r'has no detectors with settings .*"all".*stages=\[dissect\]'):
        collect(store, STUDY, {"detectors": {"union": "all"}})


def project(store: Store, layer: str, rule: str, **settings: Any) -> str:
    tables = {DECONVNET.name: to_pattern_table(layer, [pattern_row(0, rule=rule)])}
    return publish_result(store, DECONVNET.name, layer, tables, {}, rule=rule, **settings)


def diagnose(store: Store, layer: str, inputs: dict[str, str] | None = None, **settings: Any) -> str:
    data = make_diagnosis(layer, sound_rows(2))
    tables = {DIAGNOSIS.name: data.read(), DIAGNOSIS_LAYERS.name: data.read_layer()}
    return publish_result(store, DIAGNOSIS.name, layer, tables, inputs or {}, **settings)


def follow(store: Store, layer: str, **settings: Any) -> str:
    data = make_evolution(layer, moment_rows(1), checkpoint_rows(1))
    tables = {EVOLUTION.name: data.read(), EVOLUTION_LAYERS.name: data.read_checkpoints()}
    return publish_result(store, EVOLUTION.name, layer, tables, {}, **settings)


def test_newest_patterns_of_every_layer_and_rule_in_the_order_of_rules(store: Store) -> None:
    for rule in ("gradient", "guided", "deconvnet"):
        project(store, "conv10", rule, keep="cell")
    newest = project(store, "conv10", "guided", keep="map")
    project(store, "conv9", "another")
    data = collect(store, STUDY)
    assert data.layers == []
    assert [(one.layer, one.rule) for one in data.patterns] == [
        ("conv9", "another"), ("conv10", "deconvnet"), ("conv10", "guided"), ("conv10", "gradient"),
    ]  # fmt: skip
    assert data.patterns[2].settings == {"rule": "guided", "keep": "map"}
    assert set(data.patterns[2].read()["result_id"].to_pylist()) == {newest}


def test_newest_diagnosis_and_evolution_of_every_layer(store: Store) -> None:
    for limit in (0.9, 0.95):
        diagnose(store, "conv1", correlation=limit)
        follow(store, "conv1", settled=limit)
    follow(store, "conv2", settled=0.5)
    data = collect(store, STUDY)
    assert [(one.layer, one.settings) for one in data.diagnoses] == [("conv1", {"correlation": 0.95})]
    assert [(one.layer, one.settings["settled"]) for one in data.evolutions] == [("conv1", 0.95), ("conv2", 0.5)]
    assert data.diagnoses[0].read().num_rows == 2
    assert data.diagnoses[0].read_layer().num_rows == 1
    assert data.evolutions[0].read_checkpoints().num_rows == NUM_PLACES


@pytest.mark.parametrize("stage", ["deconvnet", "diagnosis", "evolution"])
def test_study_with_one_stage_only_has_a_report(store: Store, tmp_path: Path, stage: str) -> None:
    {"deconvnet": lambda: project(store, "conv1", "guided"), "diagnosis": lambda: diagnose(store, "conv1"),
     "evolution": lambda: follow(store, "conv1")}[stage]()  # fmt: skip
    index = write_report(tmp_path / "report", collect(store, STUDY)).read_text(encoding="utf-8")
    assert "Detectors by layer" not in index
    assert "conv1" in index


def test_settings_choose_among_patterns_and_evolutions(store: Store) -> None:
    for count in (9, 4):
        project(store, "conv1", "guided", count=count)
    follow(store, "conv1", settled=0.9)
    data = collect(store, STUDY, {"deconvnet": {"count": 9}})
    assert [one.settings["count"] for one in data.patterns] == [9]
    assert len(data.evolutions) == 1
    with pytest.raises(InputError, match=r'has no patterns with settings .*"count": 5.*stages=\[deconvnet\]'):
        collect(store, STUDY, {"deconvnet": {"count": 5}})
    with pytest.raises(InputError, match=r"has no evolution with settings .*stages=\[evolution\]"):
        collect(store, STUDY, {"evolution": {"settled": 0.5}})


def test_settings_of_a_stage_that_never_ran_ask_for_nothing(store: Store) -> None:
    project(store, "conv1", "guided", batch=8)
    shared = {"deconvnet": {"batch": 8}, "activation_maximization": {"batch": 8}, "evolution": {"batch": 8}}
    assert len(collect(store, STUDY, shared).patterns) == 1


def test_diagnosis_counts_by_what_it_was_made_from(store: Store) -> None:
    old, new = (project(store, "conv1", "deconvnet", count=count) for count in (9, 4))
    diagnose(store, "conv1", {"deconvnet": old}, correlation=0.9)
    diagnose(store, "conv1", {"deconvnet": new}, correlation=0.8)
    (chosen,) = collect(store, STUDY, {"deconvnet": {"count": 9}}).diagnoses
    assert chosen.settings == {"correlation": 0.9}


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

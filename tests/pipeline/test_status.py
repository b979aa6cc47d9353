import json
import shutil
from pathlib import Path

import pytest

from pipeline.status import layer_counts, read_status
from pipeline.store import Store
from tests.command import raydissect
from tests.dissect import only_study, read_table
from tests.pipeline.conftest import LAYER, Small


@pytest.fixture
def killed(small: Small, tmp_path: Path) -> Path:
    """The store as it stands when a run dies with 3 of 10 shards recorded and the fourth half written."""
    store = tmp_path / "store"
    shutil.copytree(small.store, store)
    for record in (
        "tables/runs",
        "events",
        "views.sql",
        *(f"tables/{name}" for name in ("layers", "thresholds", "tally")),
    ):
        path = store / record
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    for manifest in store.glob("results/*/*/*/*.json"):
        if manifest.parts[-3] != "pilot":
            manifest.unlink()
    (folder,) = {path.parent for path in store.glob("staging/*/*.maps.arrow")}
    for path in folder.iterdir():
        if path.name[:6] > "000003" or path.name == "000003.maps.arrow":
            path.unlink()
    for path in store.glob("staging/*"):
        if path != folder and not any(name.stem == path.name for name in store.glob("results/*/pilot/*/*.json")):
            shutil.rmtree(path)
    return store


def test_a_finished_store(small: Small):
    found = read_status(Store(str(small.store)))
    (study,) = found.studies
    assert study == {
        "study": only_study(small.store), "model": "mininet", "dataset": "tiny", "images": 40, "layers": 1, "results": 7,
    }  # fmt: skip
    (run,) = found.runs
    assert (run["outcome"], run["computed"], run["error"]) == ("done", 7, "")
    assert found.unfinished == []
    (passes,) = found.passes
    assert (passes["layer"], passes["passes"]) == (LAYER, "one")
    assert passes["staged"].endswith(" MB")
    assert passes["why"].startswith("tail maps take about ")
    assert "a second forward pass this far takes" in raydissect("status", f"store={small.store}").out


def test_a_run_that_died_shows_its_shards(killed: Path):
    found = read_status(Store(str(killed)))
    (run,) = found.runs
    assert run["outcome"] == "running, or killed"
    rows = {row["stage"]: (row["shards done"], row["shards"]) for row in found.unfinished}
    assert rows == {
        "record": (3, 10), "thresholds": (0, 0), "tally": (0, 10), "detectors": (0, 0), "layer_summary": (0, 0),
        "exemplars": (0, 10),
    }  # fmt: skip
    assert all(row["layer"] == LAYER and row["run"] == run["run"] for row in found.unfinished)


def test_work_that_several_runs_left_is_listed_once(killed: Path):
    (announced,) = killed.glob("runs/*.json")
    word = json.loads(announced.read_text())
    later = "2" + word["run_id"][1:].replace("T", "T9")
    (killed / "runs" / f"{later}.json").write_text(json.dumps({**word, "run_id": later}))
    found = read_status(Store(str(killed)))
    assert len(found.runs) == 2
    assert len(found.unfinished) == 6
    assert {row["run"] for row in found.unfinished} == {later}


def test_a_killed_run_goes_on_and_status_is_clean_again(small: Small, killed: Path):
    before = {path: path.stat().st_mtime_ns for path in killed.glob("staging/*/*.maps.arrow")}
    assert len(before) == 3
    ended = raydissect(*small.run(killed))
    assert ended.code == 0, ended.err
    assert {path: path.stat().st_mtime_ns for path in before} == before
    found = read_status(Store(str(killed)))
    assert found.unfinished == []
    assert [run["outcome"] for run in found.runs] == ["running, or killed", "done"]
    for name in ("tally", "detectors", "exemplars"):
        assert read_table(killed, name).equals(read_table(small.store, name)), name


def test_an_error_is_shown_by_its_first_line(small: Small, tmp_path):
    assert raydissect(*small.ingest(tmp_path)).code == 0
    next(tmp_path.glob("datasets/shards/*")).unlink()
    assert raydissect(*small.run(tmp_path)).code == 1
    (run,) = read_status(Store(str(tmp_path))).runs
    assert run["outcome"] == "failed"
    assert run["error"].startswith("ShardsFailed: pilot: 1 of 10 shards failed")
    assert "\n" not in run["error"]


def test_the_command_prints_it(small: Small, killed: Path):
    done = raydissect("status", f"store={small.store}")
    assert done.code == 0
    assert only_study(small.store) in done.out
    assert "unfinished" not in done.out
    died = raydissect("status", f"store={killed}").out
    assert "running, or killed" in died
    (line,) = [line for line in died.splitlines() if " record " in line]
    assert line.split()[1:] == ["record", LAYER, "3", "10"]


def test_a_store_with_only_a_data_set(small: Small, tmp_path):
    assert raydissect(*small.ingest(tmp_path)).code == 0
    ended = raydissect("status", f"store={tmp_path}")
    assert (ended.code, ended.out.split()) == (0, ["study", "model", "dataset", "images", "layers", "results"])


def test_counts_of_a_layer_are_those_of_its_tables(small: Small):
    (row,) = layer_counts(Store(str(small.store)), only_study(small.store))
    detectors = read_table(small.store, "detectors").query("is_best_overall and is_detector")
    assert (row["layer"], row["units"]) == (LAYER, 96)
    assert row["detectors"] == len(detectors)
    assert row["unique concepts"] == detectors["concept_id"].nunique()
    assert row["dead units"] == read_table(small.store, "thresholds")["is_dead"].sum()

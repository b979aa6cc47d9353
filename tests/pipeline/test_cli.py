"""The commands when all goes well: what they print, what they leave, exit code 0."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors.torch

from pipeline.compose import compose_settings
from tests.command import raydissect
from tests.dissect import only_study, read_table
from tests.pipeline.conftest import LAYER, Small
from workers.networks.mininet import MiniNet

ODD = "a b,c=d (é) [x] {y} $HOME 'q' #1"


def test_help_names_every_command():
    ended = raydissect("--help")
    assert ended.code == 0
    for command in ("ingest", "run", "report", "query", "status", "studies", "gc", "models", "layers"):
        assert re.search(rf"^  {command} ", ended.out, re.MULTILINE)
        assert raydissect(command, "--help").code == 0
    assert "stages=[dissect]" in raydissect("run", "-h").out


def test_help_does_not_wait_for_torch():
    code = "import sys; sys.argv[1:] = ['--help']; from pipeline.cli import main; main(); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL, cwd=Path(__file__).parents[2])


def test_settings_prints_all_of_them():
    ended = raydissect("run", "--settings", "model=alexnet", "quantile=0.01", "convention=survey")
    assert (ended.code, ended.err) == (0, "")
    printed = json.loads(ended.out)
    settings = compose_settings(["model=alexnet", "quantile=0.01", "convention=survey"])
    stages = {name: stage.model_dump(mode="json") for name, stage in settings.stages_by_name().items()}
    assert printed == {**settings.model_dump(mode="json"), "stage": stages}
    assert printed["stage"]["thresholds"]["quantile"] == 0.01
    assert printed["stage"]["detectors"]["union"] == "all"


def test_paths_of_any_characters_work(small: Small, tmp_path):
    folder = tmp_path / ODD
    folder.mkdir()
    source = small.source.rename(folder / "source")
    try:
        words = [word.replace(str(small.source), str(source)) for word in small.ingest(folder / "store")]
        assert raydissect(*words).code == 0
    finally:
        source.rename(small.source)
    weights = folder / "weights.safetensors"
    safetensors.torch.save_file(MiniNet(8).state_dict(), weights)
    ended = raydissect(*small.run(folder / "store"), f"model.weights={weights}", "layers=features.1[2]")
    assert ended.code == 0, ended.err
    assert read_table(folder / "store", "studies")["weights"].tolist() == ["weights.safetensors"]
    asked = raydissect("query", "select count(*) as n from thresholds", f"store={folder / 'store'}")
    assert asked.out.split() == ["n", "96"]
    written = raydissect("report", f"store={folder / 'store'}", "--folder", folder / "report")
    assert written.code == 0
    assert (folder / "report" / "index.html").exists()
    assert raydissect("gc", f"store={folder / 'store'}").code == 0


def test_ingest_says_what_it_found(small: Small, tmp_path):
    first = raydissect(*small.ingest(tmp_path))
    lines = first.out.splitlines()
    assert lines[0].startswith("data set tiny (")
    assert lines[1].startswith("  images: 40 in 10 shards, ")
    assert "  color concepts: 2" in lines
    assert lines[-1] == "  rejected images: none"
    assert len(first.err.splitlines()) == 10  # one a shard
    again = raydissect(*small.ingest(tmp_path))
    assert (again.code, again.out, again.err) == (0, first.out, "")


def test_ingest_names_the_images_it_rejected(small: Small, tmp_path):
    file = small.source / "images" / "source0" / "image_000.jpg"
    whole = file.read_bytes()
    try:
        file.write_bytes(b"no JPEG")
        ended = raydissect(*small.ingest(tmp_path))
    finally:
        file.write_bytes(whole)
    assert ended.code == 0
    assert "image_000.jpg" in ended.out
    assert "all of them: " in ended.out
    (warning,) = [line for line in ended.err.splitlines() if " WARNING " in line]
    assert "rejected: " in warning
    assert "image_000.jpg" in warning


def test_a_second_run_finds_everything_done(small: Small, tmp_path):
    store = shutil.copytree(small.store, tmp_path / "store")
    ended = raydissect(*small.run(store))
    assert ended.code == 0
    summary, header, row = ended.out.splitlines()
    assert summary == f"study {only_study(small.store)}: 1 layers, 0 results computed, 7 found done"
    assert re.split(" {2,}", header) == ["layer", "units", "detectors", "unique concepts", "dead units"]
    assert row.split()[:2] == [LAYER, "96"]


def test_without_a_terminal_there_is_one_log_line_a_shard(small: Small, tmp_path):
    assert raydissect(*small.ingest(tmp_path)).code == 0
    ended = raydissect(*small.run(tmp_path), "stages=[thresholds]")
    stamp = r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} INFO "
    assert all(re.match(stamp, line) for line in ended.err.splitlines())
    seconds = r"shard \d{6}: read [\d.]+ s, compute [\d.]+ s, write [\d.]+ s \(inline\)$"
    assert len(re.findall(rf"record: {seconds}", ended.err, re.MULTILINE)) == 10


def test_studies_lists_them(small: Small):
    header, row = raydissect("studies", f"store={small.store}").out.splitlines()
    assert header.split() == ["study", "model", "weights", "dataset", "images", "device", "threads", "torch"]
    assert row.split()[:5] == [only_study(small.store), "mininet", "random", "tiny", "40"]


def test_models_are_searched():
    names = raydissect("models", "vgg").out.split()
    assert names == ["vgg11", "vgg11_bn", "vgg13", "vgg13_bn", "vgg16", "vgg16_bn", "vgg19", "vgg19_bn"]
    every = raydissect("models").out.split()
    assert {"alexnet", "caffenet", "mininet", "zfnet", *names} < set(every)
    assert every == sorted(every)


def test_layers_of_alexnet():
    """Receptive fields and strides as published for its five convolutions."""
    ended = raydissect("layers", "model=alexnet", "model.weights=random", "layers=auto")
    rows = [re.split(" {2,}", line) for line in ended.out.splitlines()]
    assert rows == [
        ["layer", "units", "grid", "stride", "receptive field"],
        ["features.1", "64", "55 x 55", "4 x 4", "11 x 11"],
        ["features.4", "192", "27 x 27", "8 x 8", "51 x 51"],
        ["features.7", "384", "13 x 13", "16 x 16", "99 x 99"],
        ["features.9", "256", "13 x 13", "16 x 16", "131 x 131"],
        ["features.11", "256", "13 x 13", "16 x 16", "163 x 163"],
    ]


def test_layers_are_all_of_them_unless_named_and_take_classes_from_a_file(tmp_path):
    every = raydissect("layers", "model=mininet").out.splitlines()
    assert every[-1].split()[0] == "classifier"
    assert len(every) > 15
    weights = tmp_path / "five.safetensors"
    safetensors.torch.save_file(MiniNet(5).state_dict(), weights)
    (_, row) = raydissect("layers", "model=mininet", f"model.weights={weights}", "layers=classifier.3").out.splitlines()
    assert row.split()[:2] == ["classifier.3", "5"]


def test_report_of_a_study_by_the_beginning_of_its_id(small: Small, tmp_path):
    study = only_study(small.store)
    ended = raydissect("report", study[:6], f"store={small.store}", "-o", tmp_path / "pages")
    assert ended.code == 0, ended.err
    assert ended.out == f"report: {(tmp_path / 'pages' / 'index.html').resolve()}\n"
    assert study in (tmp_path / "pages" / "index.html").read_text()


def test_a_report_of_an_altered_table_names_what_makes_it_again(small: Small, tmp_path):
    store = shutil.copytree(small.store, tmp_path / "store")
    (table,) = (store / "tables" / "exemplars").rglob("*.parquet")
    whole = table.read_bytes()
    table.write_bytes(whole[:500])
    ended = raydissect("report", f"store={store}", "-o", tmp_path / "pages")
    assert ended.code == 1
    assert f"{table.name} is not what was written there: " in ended.err
    assert ended.err.rstrip().endswith("the run that made it, with --verify, makes it again")
    assert raydissect(*small.run(store), "--verify").code == 0
    assert raydissect("report", f"store={store}", "-o", tmp_path / "pages").code == 0
    assert table.read_bytes() == whole


def test_report_of_the_last_run(small: Small, tmp_path):
    store = shutil.copytree(small.store, tmp_path / "store")
    assert raydissect(*small.run(store), "model.seed=1", "stages=[layer_summary,exemplars]").code == 0
    (other,) = {row.split()[0] for row in raydissect("studies", f"store={store}").out.splitlines()[1:]} - {
        only_study(small.store)
    }
    ended = raydissect("report", f"store={store}", "-o", tmp_path / "pages")
    assert ended.code == 2
    assert "2 studies in" in ended.err
    ended = raydissect("report", "last", f"store={store}", "-o", tmp_path / "pages")
    assert ended.code == 0, ended.err
    assert other in (tmp_path / "pages" / "index.html").read_text()


def test_gc_dry_run_removes_nothing(small: Small):
    before = sorted(small.store.rglob("*"))
    ended = raydissect("gc", f"store={small.store}", "--dry-run", "--staging", "--older-than", "0")
    found = re.fullmatch(r"would remove (\d+) files, [\d.]+ MB, 7 results\n", ended.out)
    assert found
    assert int(found[1]) > 40
    assert sorted(small.store.rglob("*")) == before
    assert raydissect("gc", f"store={small.store}", "--dry-run").out == "would remove 0 files, 0.0 MB, 0 results\n"


@pytest.mark.parametrize("convention", ["netdissect_lite", "net2vec"])
def test_a_convention_shares_the_forward_pass_and_is_recorded(small: Small, tmp_path, convention):
    store = tmp_path / "store"
    assert raydissect(*small.ingest(store)).code == 0
    assert raydissect(*small.run(store)).code == 0
    ended = raydissect(*small.run(store), f"convention={convention}")
    assert ended.code == 0, ended.err
    assert "record: shard" not in ended.err
    wanted = compose_settings([f"convention={convention}"]).stages_by_name()
    results = read_table(store, "results")
    for stage in ("tally", "detectors", "exemplars"):
        settings = [json.loads(text) for text in results[results["stage"] == stage]["settings"]]
        assert wanted[stage].model_dump(mode="json") in settings

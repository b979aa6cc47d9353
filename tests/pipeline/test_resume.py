"""Going on with a run: on other workers it may be, with other work it may not."""

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.results import list_results
from pipeline.store import Store
from tests.command import Ended, raydissect
from tests.pipeline.conftest import LAYER, Small
from tests.small import write_weights
from tests.tiny_broden import tiny_images, write_broden


@pytest.fixture(scope="module")
def died(small: Small, tmp_path_factory) -> tuple[Path, Path]:
    """A store in which a run with weights from a file died before its tally, and the file."""
    folder = tmp_path_factory.mktemp("resume")
    weights, store = write_weights(folder / "net.safetensors", {}), folder / "store"
    assert raydissect(*small.ingest(store)).code == 0
    words = ["run", "data=tiny", "model=mininet", f"model.weights={weights}", f"layers={LAYER}", "quantile=0.02"]
    assert raydissect(*words, "cluster=inline", f"store={store}").code == 0
    for result in list_results(Store(str(store))):
        if result.stage in ("tally", "detectors", "layer_summary", "exemplars"):
            (store / result.path).unlink()
    shutil.rmtree(store / "tables" / "runs")
    return store, weights


@pytest.fixture
def killed(died: tuple[Path, Path], tmp_path: Path) -> Iterator[tuple[Path, Path]]:
    store, weights = died
    data = weights.read_bytes()
    yield shutil.copytree(store, tmp_path / "store"), weights
    weights.write_bytes(data)


def resume(store: Path, *words: str) -> Ended:
    return raydissect("run", "--resume", "last", f"store={store}", *words)


def published(store: Path) -> set[str]:
    return {result.result_id for result in list_results(Store(str(store)))}


@pytest.mark.parametrize("words", [(), ("cluster=inline", "cluster.workers=5"), ("cluster.window=1",)])
def test_a_killed_run_goes_on_with_its_own_settings(killed, words):
    store, _ = killed
    ended = resume(store, *words)
    assert ended.code == 0, ended.err
    assert "4 results computed, 3 found done" in ended.out
    (quantile,) = {r.settings["quantile"] for r in list_results(Store(str(store))) if r.stage == "thresholds"}
    assert quantile == 0.02


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["quantile=0.01"], "stage.thresholds.quantile: 0.02 -> 0.01"),
        (["layers=features.6"], rf"layers: \['{LAYER}'\] -> \['features.6'\]"),
        (["union=all"], "stage.detectors.union: None -> all"),
        (["cluster.threads=2"], "cluster.threads: 1 -> 2"),
        (["cluster.precision=bfloat16"], "cluster.precision: float32 -> bfloat16"),
        (["model=alexnet"], "model.name: mininet -> alexnet"),
        (["data=other"], "data.name: tiny -> other"),
    ],
)
def test_other_settings_are_refused_with_a_diff(killed, words, told):
    store, _ = killed
    before = published(store)
    ended = resume(store, *words)
    assert ended.code == 2
    assert "cannot go on. The command asks for other settings:" in ended.err
    assert any(re.fullmatch(rf"  {told}", line) for line in ended.err.splitlines()), ended.err
    assert published(store) == before


def test_a_setting_that_was_left_at_its_default_is_told_alone(killed):
    store, _ = killed
    told = resume(store, "min_iou=0.1").err
    assert "settings:\n  stage.detectors.min_iou: None -> 0.1\nWithout" in told


def test_other_weights_are_refused_with_a_diff(killed):
    store, weights = killed
    before = published(store)
    write_weights(weights, {"features.0.weight": ((0, 0, 0, 0), 0.5)})
    ended = resume(store)
    assert ended.code == 2
    assert re.search(r"What it looked at has changed:\n  weights_sha256: [0-9a-f]{64} -> [0-9a-f]{64}\n", ended.err)
    assert published(store) == before


def test_other_data_are_refused_with_a_diff(killed, tmp_path):
    store, _ = killed
    before = published(store)
    other = write_broden(tmp_path / "other", tiny_images(12))
    sizes = ["data.shard_size=4", "data.batch_size=4", "data.name=tiny"]
    assert raydissect("ingest", "data=broden", f"data.root={other}", *sizes, f"store={store}").code == 0
    ended = resume(store)
    assert ended.code == 2
    assert re.search(r"  dataset_id: \w+ -> \w+\n  images_id: \w+ -> \w+\n  num_images: 40 -> 12", ended.err)
    assert published(store) == before


def test_a_run_that_is_not_there(killed):
    store, _ = killed
    ended = raydissect("run", "--resume", "20200101T000000-abcdef", f"store={store}")
    assert ended.code == 2
    assert "no run '20200101T000000-abcdef'" in ended.err

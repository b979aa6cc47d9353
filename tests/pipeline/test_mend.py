"""A marker is there, and the data beside it is gone, cut short or altered: it is noticed, and made again."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.errors import RaydissectError, ShardsFailed, StoreError
from pipeline.mend import altered_paths, find_altered
from pipeline.results import Result, list_results
from pipeline.store import Store
from tests import dissect, small
from workers.process import Failure

LAYERS = ("features.6",)


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 64
    path.write_bytes(bytes(data))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-40])


HARM: dict[str, Callable[[Path], None]] = {"flipped": flip, "cut": cut, "gone": Path.unlink}


@pytest.fixture(scope="module")
def chosen(tmp_path_factory) -> list[str]:
    source = small.write_source(tmp_path_factory.mktemp("mend") / "source", number=12)
    return [*small.overrides(source, layers=LAYERS), "passes=one"]


@pytest.fixture(scope="module")
def done(tmp_path_factory, chosen) -> Path:
    store = tmp_path_factory.mktemp("mend-store")
    dissect.ingest_and_run(store, *chosen)
    return store


@pytest.fixture
def store(done, tmp_path) -> Path:
    return shutil.copytree(done, tmp_path / "store")


def files(store: Path | str) -> dict[str, str]:
    """Every file that a result names, and its hash in the manifest; none that tells of time."""
    named = [file for r in list_results(Store(str(store))) for file in (*r.tables.values(), *r.staging)]
    return {file.path: file.sha256 for file in named if not file.path.endswith(".json")}


def kill_after(store: Path, *stages: str) -> None:
    """What a run leaves that was killed before it ended the first of these stages, and began the others."""
    for result in list_results(Store(str(store))):
        if result.stage in stages:
            (store / result.path).unlink()
        if result.stage in stages[1:]:
            shutil.rmtree(store / "staging" / result.result_id, ignore_errors=True)


def the_result(store: Path, stage: str) -> Result:
    (result,) = dissect.results(store, stage)
    return result


@pytest.mark.parametrize("harm", ["flipped", "gone"])
@pytest.mark.parametrize(
    ("stage", "kind"),
    [("pilot", "000000.arrow"), ("record", "000001.cells.arrow"), ("record", "000001.units.arrow"),
     ("record", "000001.maps.arrow"), ("tally", "000001.arrow"), ("exemplars", "000001.arrow")],
)  # fmt: skip
def test_a_shard_of_unfinished_work(store, done, chosen, stage, kind, harm):
    result = the_result(store, stage)
    later = ("pilot", "record", "thresholds", "tally", "detectors", "layer_summary", "exemplars")
    kill_after(store, *later[later.index(stage) :])
    HARM[harm](store / "staging" / result.result_id / kind)
    dissect.run_only(store, *chosen)
    assert files(store) == files(done)
    assert find_altered(Store(str(store)), list_results(Store(str(store)))) == []


@pytest.mark.parametrize("harm", ["cut"])
@pytest.mark.parametrize(
    ("stage", "kind"),
    [("pilot", "bounds.arrow"), ("record", "units.arrow"), ("record", "top_images.arrow"),
     ("record", "000001.maps.arrow"), ("record", "000001.cells.arrow"), ("record", "passes.json"),
     ("tally", "000001.arrow")],
)  # fmt: skip
def test_staging_of_a_published_result_that_something_new_reads(store, chosen, tmp_path, stage, kind, harm):
    fresh = tmp_path / "fresh"
    more = (
        [*chosen, "quantile=0.2", "tail_quantile=0.3", "top_images=7"] if stage == "pilot" else [*chosen, "union=all"]
    )
    if kind in ("000001.maps.arrow", "000001.cells.arrow", "units.arrow", "passes.json", "top_images.arrow"):
        more = [*chosen, "quantile=0.05"]
    dissect.ingest_and_run(fresh, *more)
    HARM[harm](store / "staging" / the_result(store, stage).result_id / kind)
    dissect.run_only(store, *more)
    newest = {path: sha for path, sha in files(store).items() if path in files(fresh)}
    assert newest == files(fresh)


@pytest.mark.parametrize("table", ["thresholds", "tally", "areas", "detectors", "layer_summary", "exemplars", "layers"])
def test_a_table_that_is_gone_is_made_again(store, done, chosen, table):
    (path,) = store.glob(f"tables/{table}/*/*/*.parquet")
    path.unlink()
    outcome = dissect.run_only(store, *chosen)
    assert len(outcome.computed) == 1
    assert files(store) == files(done)


@pytest.mark.parametrize("harm", ["flipped", "cut"])
def test_a_table_that_is_altered_is_found_where_it_is_read(store, chosen, tmp_path, harm):
    fresh = tmp_path / "fresh"
    dissect.ingest_and_run(fresh, *chosen, "union=all")
    (path,) = store.glob("tables/tally/*/*/*.parquet")
    HARM[harm](path)
    dissect.run_only(store, *chosen, "union=all")
    assert files(fresh).items() <= files(store).items()


@pytest.mark.parametrize("harm", HARM)
def test_verify_finds_what_nothing_reads(store, done, chosen, harm):
    (path,) = store.glob("tables/exemplars/*/*/*.parquet")
    HARM[harm](path)
    if harm != "gone":
        assert dissect.run_only(store, *chosen).computed == []
    assert len(dissect.run_only(store, *chosen, verify=True).computed) == 1
    assert files(store) == files(done)
    assert dissect.run_only(store, *chosen, verify=True).computed == []


def test_what_cannot_be_mended_ends_in_its_error(store, chosen, monkeypatch):
    """A store that gives back other bytes than it took: not a loop, an error that names the file."""
    result = the_result(store, "tally")
    kill_after(store, "tally", "detectors", "layer_summary", "exemplars")
    read = Store.read

    def altered(self: Store, path: str) -> bytes:
        data = read(self, path)
        return data[:-1] + b"x" if path == f"staging/{result.result_id}/000001.arrow" else data

    monkeypatch.setattr(Store, "read", altered)
    with pytest.raises(ShardsFailed, match=r"000001\.arrow is not what was written there"):
        dissect.run_only(store, *chosen)
    monkeypatch.undo()
    dissect.run_only(store, *chosen)


def test_a_shard_of_the_data_set_is_nothing_a_run_can_make(store, done, chosen):
    before = {path for path in store.rglob("*.parquet") if "datasets" in path.parts}
    for path in (store / "datasets" / "shards").iterdir():
        flip(path)
    with pytest.raises(RaydissectError, match="datasets/shards"):
        dissect.run_only(store, *chosen, "quantile=0.2", "tail_quantile=0.3")
    assert {path for path in store.rglob("*.parquet") if "datasets" in path.parts} == before
    assert files(store) == files(done)


def test_an_error_about_other_things_too_is_not_mended():
    altered = Failure(None, "AlteredError", "", altered="staging/a/b.arrow")
    error = ShardsFailed("two")
    error.failures = (altered, Failure(None, "ValueError", "no"))
    assert altered_paths(error) == []
    error.failures = (altered, altered)
    assert altered_paths(error) == ["staging/a/b.arrow"]
    assert altered_paths(StoreError("no such bucket")) == []
    assert altered_paths(ValueError("other")) == []

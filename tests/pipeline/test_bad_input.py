"""Bad input and bad luck at the command line: an exit code, a message with a cure, and no traceback."""

import errno
import os
import re
import subprocess
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import safetensors.torch
import torch

import pipeline.store as store_module
from pipeline.results import list_results
from pipeline.stages.record import Record
from pipeline.store import Store
from pipeline.views import open_tables
from tests.command import Ended, interrupt, raydissect
from tests.dissect import DISSECTED, read_table
from tests.pipeline.conftest import LAYER, Small
from tests.tiny_broden import tiny_images, write_broden
from workers.networks.mininet import MiniNet


def assert_refused(ended: Ended, code: int, *told: str) -> None:
    assert ended.code == code, ended.err
    for part in told:
        assert part in ended.err
    assert "Traceback" not in ended.err
    assert ended.out == ""


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["rum"], ["No such command 'rum'"]),
        (["run", "--fast"], ["No such option", "--fast"]),
        (["query"], ["Missing argument"]),
        (["gc", "--keep-newest", "0"], ["--keep-newest", "greater than or equal to 1"]),
        (["run", "quantil=0.1"], ["unknown setting 'quantil'; did you mean 'quantile'"]),
        (["run", "stage.tally.nul_seed=1"], ["unknown setting 'stage.tally.nul_seed'; did you mean"]),
        (["run", "stage.taly.null_seed=1"], ["unknown stage 'taly'", "did you mean 'tally'"]),
        (["run", "stages=[disect]"], ["stages has 'disect'", "did you mean 'dissect'"]),
        (["run", "++model._target_=os.system"], ["unknown setting 'model._target_'"]),
        (["run", "convention=survey", "union=concept"], ["convention=survey sets union=all"]),
        (["run", "model=alexnett", "model.weights=random"], ["model is 'alexnett'", "near are alexnet"]),
        (["run", "model=os.system", "model.weights=random"], ["model is 'os.system', which is unknown"]),
        (["run", "model=alexnet", "model.weights=IMAGENET"], ["weights of alexnet is 'IMAGENET'", "IMAGENET1K_V1"]),
        (["run", "model=alexnet", "model.weights=trained"], ["model.weights=trained is for mininet, not alexnet"]),
        (["run", "layers=featurs.12"], ["layers is 'featurs.12', which matches no module; near are features.12"]),
        (["run", "layers=*.conv9"], ["layers is '*.conv9', which matches no module", "near are"]),
        (["run", "layers=dropout"], ["layers is 'dropout'"]),
        (["run", "data=tinny"], ["no data set 'tinny'", "run `raydissect ingest`; there is tiny ("]),
        (["run", "data=../../etc"], ["name"]),
        (["layers", "model=alexnett"], ["model is 'alexnett'", "near are alexnet"]),
        (["layers", "model=alexnet", "layers=featurs.*"], ["layers is 'featurs.*'", "near are"]),
        (["models", "alexnett"], ["no network's name holds 'alexnett'; did you mean 'alexnet'"]),
        (
            ["report", "zzz"],
            ["no study in", "begins with 'zzz': name one, or `last`", "There are:", "mininet random on tiny"],
        ),
        (["query", "select * frm tally"], ["the query failed: Parser Error", 'near "tally"']),
    ],
)
def test_bad_words_end_in_2_and_name_the_cure(small: Small, words, told):
    store = [] if words[0] in ("rum", "models") else [f"store={small.store}"]
    model = ["model=mininet", "model.weights=random", "cluster=inline", "data=tiny"] if words[0] == "run" else []
    command, *rest = words
    extra = [*model, *rest, *store] if words != ["query"] else []
    assert_refused(raydissect(command, *extra), 2, *told)


@pytest.mark.parametrize("command", ["status", "studies", "report", "gc", "query"])
def test_a_store_that_is_not_there_is_said(tmp_path, command):
    words = ["query", "select 1"] if command == "query" else [command]
    assert_refused(raydissect(*words, f"store={tmp_path}/typo"), 2, f"there is no store at {tmp_path}/typo")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("store", ["s4://bucket/x", "wat://x"])
def test_a_store_of_an_unknown_kind_is_said(store):
    assert_refused(raydissect("status", f"store={store}"), 2, f"cannot open {store}")


def test_a_source_that_is_not_named(tmp_path):
    assert_refused(raydissect("ingest", "data=broden", f"store={tmp_path}"), 2, "data.root is not set: give the folder")


def test_a_source_that_is_not_there(tmp_path):
    ended = raydissect("ingest", "data=broden", f"data.root={tmp_path}/nowhere", f"store={tmp_path}/store")
    assert_refused(ended, 2, f"{tmp_path}/nowhere does not exist: give the folder or zip that holds index.csv")


def test_a_source_that_is_another_folder(tmp_path):
    ended = raydissect("ingest", "data=broden", f"data.root={tmp_path}", f"store={tmp_path}/store")
    assert_refused(ended, 2, f"{tmp_path} has no", "give the folder or zip that holds it")


def test_a_source_that_is_no_zip(tmp_path):
    file = tmp_path / "broden.zip"
    file.write_bytes(b"PK\x03\x04 and no more")
    ended = raydissect("ingest", "data=broden", f"data.root={file}", f"store={tmp_path}/store")
    assert_refused(ended, 2, f"{file} is neither a folder nor a zip")


def test_a_zip_that_would_leave_its_folder(tmp_path):
    file = tmp_path / "broden.zip"
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("../../evil.csv", "x")
    ended = raydissect("ingest", "data=broden", f"data.root={file}", f"store={tmp_path}/store")
    assert_refused(ended, 2, f"{file} is refused", "'../../evil.csv' would leave the folder")


def test_too_many_bad_images_end_in_2(tmp_path):
    source = write_broden(tmp_path / "source", tiny_images(6))
    for file in sorted(source.glob("images/source*/*.jpg"))[:3]:
        file.write_bytes(b"no JPEG")
    words = ["data=broden", f"data.root={source}", f"store={tmp_path}/store", "data.max_bad_images=2"]
    assert_refused(raydissect("ingest", *words), 2, "3 ", "max_bad_images")


def weigh(small: Small, file: Path, *more: str) -> Ended:
    return raydissect(*small.run(small.store), f"model.weights={file}", *more)


class Evil:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch '{self.marker}'",)


def test_a_checkpoint_with_code_in_it_is_not_run(small: Small, tmp_path):
    file = tmp_path / "evil, I=am (one).pth"
    torch.save({"state_dict": Evil(tmp_path / "marker")}, file)
    assert_refused(weigh(small, file), 2, str(file), "nothing in it was executed", ".safetensors")
    assert not (tmp_path / "marker").exists()
    assert not [path for path in Store(str(small.store)).list("weights") if path.endswith(".pth")]


def test_weights_that_do_not_fit_are_listed(small: Small, tmp_path):
    file = tmp_path / "other.safetensors"
    state = MiniNet(8).state_dict()
    first, second, *_ = [name for name, value in state.items() if value.ndim == 4]
    state[first] = torch.zeros(1, 2, 3, 4)
    del state[second]
    state["extra.weight"] = torch.zeros(5)
    safetensors.torch.save_file(state, file)
    told = [
        f"weights {file} does not fit the network, 3 tensors differ",
        f"{first}: (1, 2, 3, 4) in the file, ",
        f"{second}: not in the file",
        "extra.weight: (5,) in the file, not in the network",
    ]
    assert_refused(weigh(small, file), 2, *told)


def test_weights_that_are_not_there_or_no_weights(small: Small, tmp_path):
    file = tmp_path / "none.pth"
    assert_refused(weigh(small, file), 2, f"model.weights: cannot read {file}: there is no such file")
    for name in ("text.pth", "text.safetensors"):
        (tmp_path / name).write_text("not weights")
        assert_refused(weigh(small, tmp_path / name), 2, f"weights {tmp_path / name} is")


def test_weights_with_another_sha256(small: Small, tmp_path):
    file = tmp_path / "good.safetensors"
    safetensors.torch.save_file(MiniNet(8).state_dict(), file)
    assert_refused(weigh(small, file, "model.sha256=" + 64 * "1"), 2, f"{file} has sha256", "model.sha256 is 1111")


def test_an_activation_that_is_no_number_names_layer_unit_and_image(small: Small, tmp_path):
    file = tmp_path / "nan.safetensors"
    state = MiniNet(8).state_dict()
    for name, value in state.items():
        if value.ndim == 4:
            state[name] = value.index_fill(0, torch.tensor([3]), torch.nan)
    safetensors.torch.save_file(state, file)
    ended = raydissect(*small.ingest(tmp_path / "store")[:-1], f"store={tmp_path / 'store'}")
    assert ended.code == 0
    ended = raydissect(*small.run(tmp_path / "store"), f"model.weights={file}", "layers=features.0")
    told = ["shards failed; the others are done and kept", "ActivationError: layer features.0, unit 3, image source"]
    assert_refused(ended, 1, *told)


def test_an_error_that_nobody_foresaw_in_a_worker(small: Small, tmp_path, monkeypatch):
    assert raydissect(*small.ingest(tmp_path)).code == 0

    def build(*_: object) -> None:
        raise ValueError("such luck")

    monkeypatch.setattr(Record, "build", build)
    assert_refused(raydissect(*small.run(tmp_path)), 1, "record: no worker could be built: ValueError: such luck")
    assert "in build" in raydissect(*small.run(tmp_path), "-v").err


def test_a_shard_of_the_data_set_that_is_gone(small: Small, tmp_path):
    assert raydissect(*small.ingest(tmp_path)).code == 0
    shard = sorted(tmp_path.glob("datasets/shards/*"))[0]
    shard.unlink()
    assert_refused(raydissect(*small.run(tmp_path)), 1, "1 of 10 shards failed", f"{shard}: there is no such file")


def test_a_store_below_a_file(small: Small, tmp_path):
    (tmp_path / "file").write_text("")
    store = tmp_path / "file" / "store"
    assert_refused(raydissect(*small.ingest(store)), 1, f"cannot write {store}/", "Not a directory")


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of its own."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", place], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"mounting a small disk is not permitted: {mounted.stderr.decode().strip()}")
    yield place
    subprocess.run(["umount", "-l", place], check=True)


def remount(disk: Path, option: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{option}", disk], check=True)


def used_bytes(disk: Path) -> int:
    found = os.statvfs(disk)
    return (found.f_blocks - found.f_bfree) * found.f_frsize


def files_of(folder: Path, pattern: str) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.glob(pattern)}


def assert_same_tables(store: Path, small: Small) -> None:
    names = set(DISSECTED) - {"runs", "results"}
    assert {name for name in names if len(read_table(store, name))} == names
    for name in names:
        assert read_table(store, name).equals(read_table(small.store, name)), name


def test_a_full_disk_during_ingest(small: Small, disk: Path):
    remount(disk, "size=64k")
    store = disk / "store"
    assert_refused(raydissect(*small.ingest(store)), 1, f"cannot write {store}/", "No space left on device")
    assert not list(store.glob("datasets/*/manifest.json"))
    assert not list(store.glob("datasets/by-*/*"))
    assert not list(store.rglob("*.partial"))
    done = files_of(store, "datasets/shards/*")
    assert done
    remount(disk, "size=1m")
    assert raydissect(*small.ingest(store)).code == 0
    assert {path: written for path, written in files_of(store, "datasets/shards/*").items() if path in done} == done
    for name in ("concepts", "label_areas"):
        assert read_table(store, name).equals(read_table(small.store, name))


def test_a_full_disk_during_a_run(small: Small, disk: Path):
    store = disk / "store"
    assert raydissect(*small.ingest(store)).code == 0
    remount(disk, "size=64m")
    assert raydissect(*small.run(store), "stages=[pilot]").code == 0
    remount(disk, f"size={used_bytes(disk) + 100_000}")
    ended = raydissect(*small.run(store))
    assert_refused(ended, 1, "shards failed; the others are done and kept", "No space left on device")
    assert not list_results_of(store, "thresholds")
    assert all(len(table) == 0 for table in published(store).values())
    assert not list(store.rglob("*.partial"))
    done = files_of(store, "staging/*/*.maps.arrow")
    assert 0 < len(done) < 10
    remount(disk, "size=64m")
    ended = raydissect(*small.run(store))
    assert ended.code == 0, ended.err
    assert {path: files_of(store, "staging/*/*.maps.arrow")[path] for path in done} == done
    assert_same_tables(store, small)


def test_a_disk_that_is_full_when_a_result_is_published(small: Small, tmp_path, monkeypatch):
    """One of a result's tables is written, another is not: readers see neither."""
    assert raydissect(*small.ingest(tmp_path)).code == 0
    write = store_module._write_local

    def fill(path: Path, data: bytes, overwrite: bool) -> None:
        if "tables/areas" in path.as_posix():
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(path, data, overwrite)

    monkeypatch.setattr(store_module, "_write_local", fill)
    ended = raydissect(*small.run(tmp_path))
    assert_refused(ended, 1, f"cannot write {tmp_path}/tables/areas/", "No space left on device")
    assert "trying again" not in ended.err
    assert list_results_of(tmp_path, "thresholds")
    assert not list_results_of(tmp_path, "tally")
    monkeypatch.undo()
    assert raydissect(*small.run(tmp_path)).code == 0
    assert_same_tables(tmp_path, small)


def list_results_of(store: Path, stage: str) -> list[str]:
    return [result.result_id for result in list_results(Store(str(store))) if result.stage == stage]


def published(store: Path) -> dict[str, list]:
    """Rows of every table that a result publishes."""
    own = {"runs", "studies", "results", "concepts", "label_areas"}
    tables = {name: table for name, table in open_tables(Store(str(store))).items() if name not in own}
    return {
        name: (table if hasattr(table, "num_rows") else table.to_table()).to_pylist() for name, table in tables.items()
    }


def test_a_disk_that_cannot_be_written(small: Small, disk: Path):
    store = disk / "store"
    assert raydissect(*small.ingest(store)).code == 0
    remount(disk, "ro")
    assert_refused(raydissect(*small.run(store)), 1, f"cannot write {store}/", "Read-only file system")
    other = raydissect(*small.ingest(disk / "other"))
    assert_refused(other, 1, f"cannot write {disk}/other/", "Read-only file system")
    assert raydissect("status", f"store={store}").code == 0


@pytest.mark.parametrize("executor", ["inline", pytest.param("ray", marks=pytest.mark.cluster)])
def test_ctrl_c_keeps_what_is_done_and_the_next_run_goes_on(tmp_path, executor):
    source = write_broden(tmp_path / "source", tiny_images(100))
    sizes = ["data.shard_size=2", "data.batch_size=2"]
    store = tmp_path / "store"
    ingest = ["ingest", "data=broden", f"data.root={source}", "data.name=tiny", *sizes]
    assert raydissect(*ingest, f"store={store}").code == 0
    model = ["model=mininet", "model.weights=random", f"layers=[features.0,{LAYER}]", "data=tiny"]
    words = ["run", *model, f"cluster={executor}", "cluster.workers=2", f"store={store}"]

    ended = interrupt(*words, when=lambda: len(files_of(store, "staging/*/*.maps.arrow")) >= 6)
    assert ended.code == 130, ended.err
    last = ended.err.strip().splitlines()[-1]
    assert last == "raydissect: interrupted: what is finished is kept, and the same command goes on from there"
    assert "Traceback" not in ended.err
    assert ended.out == ""
    done = files_of(store, "staging/*/*.maps.arrow")
    assert 6 <= len(done) < 100
    assert read_table(store, "runs")["outcome"].tolist() == ["interrupted"]
    status = raydissect("status", f"store={store}").out
    assert "interrupted" in status
    assert "unfinished work:" in status

    again = raydissect(*words)
    assert again.code == 0, again.err
    assert {path: files_of(store, "staging/*/*.maps.arrow")[path] for path in done} == done
    names = [path.name.split(".")[0] for path in done]
    whole = {name for name in names if names.count(name) == 2}  # of both layers
    computed = set(re.findall(r" record: shard (\d+): ", again.err))
    assert computed == {f"{index:06d}" for index in range(50)} - whole
    assert whole
    assert sorted(read_table(store, "runs")["outcome"]) == ["done", "interrupted"]
    assert raydissect(*ingest, f"store={tmp_path / 'other'}").code == 0
    undisturbed = [*words[:-1], f"store={tmp_path / 'other'}", "cluster=inline"]
    assert raydissect(*undisturbed).code == 0
    for name in set(DISSECTED) - {"runs", "results"}:
        assert read_table(store, name).equals(read_table(tmp_path / "other", name)), name


def test_an_object_store_that_cannot_be_reached_is_a_named_error(monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "none")
    monkeypatch.setenv("RAYDISSECT_RETRY_SECONDS", "0.5")
    assert_refused(raydissect("status", "store=s3://bucket/x"), 1, "cannot look for s3://bucket/x/", "127.0.0.1:9")

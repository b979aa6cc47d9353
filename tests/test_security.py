"""Attacks, end to end: nothing executes from data, nothing leaves its folder, nothing tells a secret.

Every attack would leave a mark: a file it touches, a dialog it opens, a text that may stand nowhere. What refuses who has
no token is in `tests/pipeline/test_jobs.py` and `tests/pipeline/test_executor.py`; docs/operations.md lists all.
"""

import csv
import io
import json
import os
import pickle
import re
import shutil
import stat
import subprocess
import sys
import threading
import tomllib
import unicodedata
import zipfile
from collections.abc import Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from packaging.requirements import Requirement
from packaging.version import Version
from PIL import Image
from s3fs import S3FileSystem

from pipeline.errors import BAD_INPUT, DONE, FAILED
from pipeline.executor import make_executor
from pipeline.query import query
from pipeline.redact import WITHHELD, shown, shown_settings
from pipeline.report.download import FORMULA_STARTS
from pipeline.sealed import read_sealed, seal
from pipeline.settings import Cluster
from pipeline.store import Store
from tests.command import Ended, raydissect
from tests.pipeline.test_jobs import _call
from tests.s3_servers import moto
from tests.small import write_weights
from tests.tiny_broden import encode_image, encode_labels, png_file, tiny_images, write_broden, zip_folder
from workers.worker import Shard, Worker

ROOT = Path(__file__).parents[1]
SECRET = "s3cr3t-that-may-stand-nowhere"
SCRIPT = "<img src=x onerror=alert(1)>"
END = "</script><script>alert(2)</script>"
ESCAPES = "\x1b]0;owned\x07\x9b31m"
FORMULAS = ("=cmd|' /C calc'!A0", "+1+1", "-2+3", "@SUM(A1)", "＝1+1")
UP = "../../../up"
NAMES = (SCRIPT, END, ESCAPES, *FORMULAS, UP)
PNG = encode_image(np.zeros((8, 8, 3), np.uint8), "PNG")
SIZES = ("data.shard_size=4", "data.batch_size=4")


class Attack:
    """Touches a file where it is unpickled."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple:
        return os.system, (f"touch '{self.canary}'",)


@pytest.fixture
def canary(tmp_path: Path) -> Iterator[Path]:
    """A file that must not appear."""
    path = tmp_path / "executed"
    yield path
    assert not path.exists()


def assert_named(ended: Ended, code: int, *told: str) -> None:
    assert ended.code == code, ended
    for part in told:
        assert part in ended.err
    assert "Traceback" not in ended.err


def run_words(store: Path | str, *more: str) -> list[str]:
    model = ["model=mininet", "model.weights=random", "layers=features.6", "cluster=inline"]
    return ["run", *model, "quantile=0.1", "tail_quantile=0.2", "min_iou=0", f"store={store}", *more]


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a source whose concepts, category, splits and images have hostile names, and a store made of it."""
    folder = tmp_path_factory.mktemp("hostile")
    generator = np.random.default_rng(0)
    images = [f"{name.replace('/', '|')}-{index}.jpg" for index, name in enumerate(NAMES)] + [f"{END}.jpg", "a.jpg"]
    for index, image in enumerate(images):
        mask = np.full((8, 8), 1 + index % len(NAMES))
        mask[:4] = 1 + (index + 1) % len(NAMES)
        for path, data in (
            (f"images/{image}", encode_image(generator.integers(0, 256, (8, 8, 3), np.uint8))),
            (f"masks/{SCRIPT}/{image.removesuffix('.jpg')}.png", encode_labels(mask)),
        ):
            (folder / "source" / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / "source" / path).write_bytes(data)
    rows = [(number, name, SCRIPT) for number, name in enumerate(NAMES, 1)]
    _write_csv(folder / "source" / "concepts.csv", ("number", "name", "category"), rows)
    splits = [(image, NAMES[index % 3]) for index, image in enumerate(images)]
    _write_csv(folder / "source" / "images.csv", ("image", "split"), splits)
    words = ["data=folder", f"data.root={folder}/source", "data.name=hostile", *SIZES, f"store={folder}/store"]
    for command in (["ingest", *words], run_words(folder / "store", "data=hostile")):
        ended = raydissect(*command)
        assert ended.code == DONE, ended.err
        assert _is_harmless(ended.out + ended.err)
    return folder


def _write_csv(path: Path, header: tuple[str, ...], rows: list[tuple]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([header, *rows])


def _is_harmless(text: str) -> bool:
    """No control character but the end of a line."""
    return not [one for one in text if unicodedata.category(one) == "Cc" and one != "\n"]


# Pickles and extension types


def _hostile_table(table: pa.Table, name: str, canary: Path) -> pa.Table:
    """The same rows; every column says that it is of an extension type, whose metadata is a pickle that executes."""
    payload = pickle.dumps(Attack(canary))
    extension = {b"ARROW:extension:name": name.encode(), b"ARROW:extension:metadata": payload}
    fields = [field.with_metadata({**(field.metadata or {}), **extension}) for field in table.schema]
    return table.cast(pa.schema(fields, metadata={**(table.schema.metadata or {}), b"pandas": payload}))


EXTENSIONS = (
    "arrow.py_extension_type",  # which pyarrow before 14.0.1 unpickled
    "ray.data.arrow_tensor_v2",  # which Ray Data before 2.55 unpickled
    "ray.data.arrow_pickled_object",
    "pandas.period",
)


@pytest.fixture
def ingested(tmp_path: Path) -> Path:
    """A store with a data set, of which nothing is computed."""
    source, store = write_broden(tmp_path / "source", tiny_images(8)), tmp_path / "store"
    words = ["data=broden", f"data.root={source}", "data.name=tiny", *SIZES, f"store={store}"]
    assert raydissect("ingest", *words).code == DONE
    return store


@pytest.mark.parametrize("name", EXTENSIONS)
def test_extension_types_in_shards_staging_and_tables_execute_nothing(ingested: Path, canary: Path, name: str):
    for shard in ingested.glob("datasets/shards/*.parquet"):
        pq.write_table(_hostile_table(pq.read_table(shard), name, canary), shard, row_group_size=4)
    assert raydissect(*run_words(ingested, "data=tiny", "stages=[record]")).code == DONE
    store = Store(str(ingested))
    staged = [path for path in store.list("staging") if path.endswith(".arrow")]
    for path in staged:  # with a hash that fits, as who writes there can
        sealed = seal(_hostile_table(read_sealed(store, path)[1], name, canary))
        (ingested / path).write_bytes(sealed.data)
    assert staged
    ended = raydissect(*run_words(ingested, "data=tiny"))
    assert ended.code in (DONE, FAILED), ended
    assert "Traceback" not in ended.err
    if ended.code == FAILED:
        shutil.rmtree(ingested / "staging")
        assert raydissect(*run_words(ingested, "data=tiny")).code == DONE
    (file,) = ingested.glob("tables/thresholds/*/*/*.parquet")
    pq.write_table(_hostile_table(pq.read_table(file), name, canary), file)
    answer = raydissect("query", "select count(*) n from thresholds where unit >= 0", f"store={ingested}")
    assert answer.code == DONE
    assert answer.out.split()[0] == "n"


def test_no_module_of_ours_registers_extension_types(tmp_path: Path, canary: Path):
    """So that whatever a file says, its columns are read as what they are stored as."""
    for name in EXTENSIONS:
        table = _hostile_table(pa.table({"a": [b"x"]}), name, canary)
        pq.write_table(table, tmp_path / f"{name}.parquet")
    code = (
        "import sys, pkgutil, importlib, pathlib, pyarrow.parquet as pq, pipeline, workers, schemas\n"
        "for package in (schemas, workers, pipeline):\n"
        "    for found in pkgutil.walk_packages(package.__path__, package.__name__ + '.'):\n"
        "        found.name == 'pipeline.attended' or importlib.import_module(found.name)\n"
        "files = pathlib.Path(sys.argv[1]).glob('*.parquet')\n"
        "print({str(pq.read_table(file).schema.field('a').type) for file in files})\n"
        "print([name for name in sys.modules if name.startswith('ray.data')])\n"
    )
    ran = subprocess.run([sys.executable, "-c", code, tmp_path], cwd=ROOT, capture_output=True, text=True)
    assert (ran.returncode, ran.stdout.split("\n")[:2]) == (0, ["{'binary'}", "[]"]), ran.stderr


@pytest.mark.parametrize("kind", ["zip", "legacy", "plain"])
def test_a_checkpoint_that_would_execute_is_refused_by_run(ingested: Path, tmp_path: Path, canary: Path, kind: str):
    file = tmp_path / "evil.pth"
    if kind == "plain":
        file.write_bytes(pickle.dumps({"weight": Attack(canary)}, protocol=2))
    else:
        torch.save({"weight": Attack(canary)}, file, _use_new_zipfile_serialization=kind == "zip")
    ended = raydissect(*run_words(ingested, "data=tiny", f"model.weights={file}"))
    assert_named(ended, BAD_INPUT, "evil.pth")
    assert not list(ingested.glob("weights/*"))


def test_a_checkpoint_that_would_execute_fails_its_task_alone(
    ingested: Path, tmp_path: Path, canary: Path, web: "Web", monkeypatch: pytest.MonkeyPatch
):
    """And one that is behind a signature tells it to nobody: not the hook, the records, the terminal."""
    monkeypatch.chdir(tmp_path)
    torch.save({"weight": Attack(canary)}, tmp_path / "evil.pth")
    web.files["/signed.pth"] = (tmp_path / "evil.pth").read_bytes()
    told = "import pathlib, sys; pathlib.Path(f'told-{len(list(pathlib.Path().glob(\"told-*\")))}').write_bytes(sys.stdin.buffer.read())"
    job = {
        "models": "mininet", "data": "tiny", "layers": "features.6",
        "checkpoints": [str(tmp_path / "evil.pth"), *(f"{web.url}/{name}.pth?sig={SECRET}" for name in ("signed", "gone"))],
    }  # fmt: skip
    schedule = {
        "store": str(ingested), "jobs": [job], "settings": {"cluster": "inline"},
        "on_failure": {"command": [sys.executable, "-c", told]},
    }  # fmt: skip
    (tmp_path / "nightly.yaml").write_text(yaml.safe_dump(schedule))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    started: list[str] = []
    popen = subprocess.Popen
    monkeypatch.setattr(subprocess, "Popen", lambda words, **how: (started.extend(words), popen(words, **how))[1])
    ended = raydissect("reprocess", "nightly.yaml")
    assert started.count("pipeline.attended") == 2
    assert SECRET not in " ".join(map(str, started))
    assert_named(ended, FAILED, "evil.pth is refused", "signed.pth is refused", "nothing in it was executed")
    bodies = [path.read_text() for path in tmp_path.glob("told-*")]
    assert len(bodies) == 3
    assert SECRET not in "".join([ended.out, ended.err, *bodies])
    assert not _files_with(SECRET, ingested)


# Sources


@pytest.mark.parametrize("data", ["broden", "folder"])
@pytest.mark.parametrize(
    ("name", "mode", "told"),
    [
        ("../executed", 0, "would leave the folder"),
        ("images/../../executed", 0, "would leave the folder"),
        ("{canary}", 0, "would leave the folder"),
        ("images\\..\\..\\executed", 0, "would leave the folder"),
        ("images/link.jpg", stat.S_IFLNK | 0o777, "is a link"),
    ],
)
def test_a_zip_whose_entries_leave_it_is_refused(
    tmp_path: Path, canary: Path, data: str, name: str, mode: int, told: str
):
    (tmp_path / "source").mkdir()
    for marker in ("index.csv", "concepts.csv"):
        (tmp_path / "source" / marker).touch()
    path = zip_folder(tmp_path / "source", tmp_path / "source.zip")
    info = zipfile.ZipInfo(name.format(canary=canary))
    info.external_attr = mode << 16
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(info, "/etc/passwd")
    ended = raydissect("ingest", f"data={data}", f"data.root={path}", f"store={tmp_path}/store")
    assert_named(ended, BAD_INPUT, "source.zip is refused", told)
    assert not (tmp_path / "store").exists()


def _folder_source(folder: Path) -> Path:
    for path, data in {
        "concepts.csv": b"number,name,category\n1,cat,object\n",
        "images/a.png": PNG,
        "images/b.png": PNG,
        "masks/object/a.png": encode_labels(np.ones((8, 8), int)),
    }.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(data)
    return folder


@pytest.mark.parametrize("link", ["images/b.png", "images", "masks/object/a.png", "concepts.csv", "images/deep"])
def test_links_that_leave_a_folder_are_refused_unless_asked_for(tmp_path: Path, link: str):
    elsewhere, source = _folder_source(tmp_path / "elsewhere"), _folder_source(tmp_path / "source")
    place = source / link
    if place.exists():
        shutil.rmtree(place) if place.is_dir() else place.unlink()
    target = elsewhere / ("images" if link == "images/deep" else link)
    place.symlink_to(target)
    words = ["ingest", "data=folder", f"data.root={source}", *SIZES, f"store={tmp_path}/store"]
    assert_named(raydissect(*words), BAD_INPUT, f"its {link!r} is a link to outside of the folder")
    assert not (tmp_path / "store").exists()
    assert raydissect(*words, "data.follow_links=true").code == DONE


def test_links_inside_a_folder_are_followed_but_not_in_circles(tmp_path: Path):
    source = _folder_source(tmp_path / "source")
    (source / "images" / "c.png").symlink_to("a.png")
    words = ["ingest", "data=folder", f"data.root={source}", *SIZES, f"store={tmp_path}/store"]
    assert "images: 3 in" in raydissect(*words).out
    for name in ("one", "two"):
        (source / "images" / name).mkdir()
        for other in ("one", "two"):
            (source / "images" / name / f"to-{other}").symlink_to(f"../{other}")
    assert_named(raydissect(*words), BAD_INPUT, "is a link that leads back to it")


def _encoded(kind: str) -> bytes:
    if kind == "PSD":
        return b"8BPS\x00\x01" + bytes(6) + b"\x00\x03\x00\x00\x00\x08\x00\x00\x00\x08\x00\x08\x00\x03" + bytes(40)
    if kind == "EPS":
        return b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n(touch executed) system\n%%EOF\n"
    return encode_image(np.zeros((8, 8, 3), np.uint8), kind)


@pytest.mark.parametrize("kind", ["TIFF", "EPS", "WEBP", "PSD", "GIF", "BMP", "PPM", "ICO", "TGA"])
def test_only_jpeg_and_png_are_opened_whatever_the_name_says(
    tmp_path: Path, canary: Path, monkeypatch: pytest.MonkeyPatch, kind: str
):
    source = _folder_source(tmp_path / "source")
    (source / "images" / "b.png").write_bytes(_encoded(kind))
    (source / "images" / "c.png").write_bytes(PNG)
    (source / "masks" / "object" / "c.png").write_bytes(_encoded(kind))
    (source / "images" / "d.png").write_bytes(PNG)
    Image.init()
    asked: list[str] = []

    def refuse(name: str, *_: object) -> Any:
        asked.append(name)
        raise AssertionError(f"{name} was asked to open a file")

    allowed = {name: opener for name, opener in Image.OPEN.items() if name in ("JPEG", "PNG")}
    others = {name: (partial(refuse, name), partial(refuse, name)) for name in Image.OPEN if name not in allowed}
    monkeypatch.setattr(Image, "OPEN", others | allowed)
    monkeypatch.chdir(tmp_path)
    words = ["ingest", "data=folder", f"data.root={source}", *SIZES, f"store={tmp_path}/store"]
    ended = raydissect(*words)
    assert ended.code == DONE, ended.err
    assert "images: 2 in" in ended.out
    assert "rejected images: 2 broken" in ended.out
    assert "images/b.png is no JPEG or PNG" in ended.out
    assert "masks/object/c.png is no PNG" in ended.out
    assert asked == []


def test_a_bomb_is_refused_by_its_header(tmp_path: Path):
    source = _folder_source(tmp_path / "source")
    (source / "images" / "b.png").write_bytes(png_file(60_000, 60_000))
    (source / "masks" / "object" / "a.png").write_bytes(png_file(30_000, 30_000))
    words = ["ingest", "data=folder", f"data.root={source}", *SIZES, f"store={tmp_path}/store"]
    ended = raydissect(*words)
    assert_named(ended, BAD_INPUT, "images/b.png has more than", "masks/object/a.png has more than", "pixels")


# Names: to the page, the spreadsheet, the terminal and the file system


@pytest.mark.browser
def test_hostile_names_fire_nothing_on_the_pages_of_a_report(hostile: Path, tmp_path: Path):
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("no chromium on PATH")
    from playwright.sync_api import sync_playwright

    ended = raydissect("report", f"store={hostile}/store", "--folder", tmp_path / "pages", "--all-units")
    assert ended.code == DONE, ended.err
    pages = sorted((tmp_path / "pages").rglob("*.html"))
    assert len(pages) == 2
    fired: list[str] = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        for path in pages:
            page = browser.new_page()
            page.on("dialog", lambda dialog: (fired.append(dialog.message), dialog.dismiss()))
            for event in ("console", "pageerror", "requestfailed"):
                page.on(event, lambda what: fired.append(str(what)))
            page.goto(path.as_uri())
            policy = page.get_attribute("meta[http-equiv='Content-Security-Policy']", "content") or ""
            assert policy.startswith("default-src 'none'")
            assert "unsafe" not in policy
            assert page.locator("img[src='x'], script:not([src])").count() == 0
            page.wait_for_load_state("load")
            text = page.text_content("body") or ""
            assert SCRIPT in text
        assert END in text
        browser.close()
    assert fired == []


@pytest.mark.parametrize("table", ["detectors", "concepts", "tally", "exemplars"])
def test_no_cell_of_a_csv_starts_a_formula(hostile: Path, tmp_path: Path, table: str):
    sql = f"select *, '=1' as \"=head\" from {table}"
    assert raydissect("query", sql, f"store={hostile}/store", "--csv", tmp_path / "a.csv").code == DONE
    with (tmp_path / "a.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.reader(file))
    starts = [cell for row in rows for cell in row if cell.startswith(FORMULA_STARTS)]
    assert all(re.fullmatch(r"-[\d.e+-]+", cell) for cell in starts), starts  # negative numbers are no formulas
    assert rows[0][-1] == "'=head"
    if table == "concepts":
        names = {row[rows[0].index("name")] for row in rows[1:]}
        assert {f"'{formula}" for formula in FORMULAS} <= names


@pytest.mark.parametrize("command", ["detectors", "exemplars", "concepts", "status", "status --json", "studies"])
@pytest.mark.parametrize("terminal", [False, True])
def test_a_terminal_obeys_no_name(hostile: Path, monkeypatch: pytest.MonkeyPatch, command: str, terminal: bool):
    from rich.console import Console

    from pipeline import terminal as module

    output = io.StringIO()
    if terminal:
        console = Console(file=output, force_terminal=True, width=2000, color_system=None, markup=False, emoji=False)
        monkeypatch.setattr(module, "console", console)
    words = command.split() if command.startswith("stat") or command == "studies" else ["query", f"from {command}"]
    ended = raydissect(*words, f"store={hostile}/store")
    assert ended.code == DONE
    text = output.getvalue() + ended.out
    assert len(text) > 50
    assert _is_harmless(text + ended.err)
    if command in ("detectors", "exemplars", "concepts"):
        assert ESCAPES.encode("unicode_escape").decode() in text


def test_names_stay_inside_the_folders_of_the_store(hostile: Path, tmp_path: Path):
    assert {path.name for path in hostile.iterdir()} == {"source", "store"}
    assert not list(hostile.parent.glob("up*"))
    for words, told in {
        ("data.name=../up",): "data.name",
        ("data.name=a/b",): "data.name",
        ("data=../../up",): "data.name",
        ("data=..",): "data.name",
        ("model=../../up",): "model is '../../up', which is unknown",
        ("model=timm:../../up",): "timm",
        ("model=timm:../../up", "model.weights=pretrained"): "timm",
        ("layers=../../up",): "matches no module",
        ("model.weights=store:../../up.pth",): "up.pth",
    }.items():
        name = [] if words[0].startswith("data") else ["data=hostile"]
        ended = raydissect(*run_words(hostile / "store", *name, *words))
        assert_named(ended, BAD_INPUT, told)


@pytest.mark.parametrize(
    ("manifest", "words"),
    [
        ("results/*/detectors/*/*.json", ["query", "from detectors"]),
        ("results/*/detectors/*/*.json", ["report"]),
        ("datasets/[0-9a-f]*/manifest.json", ["query", "from concepts"]),
        ("datasets/[0-9a-f]*/manifest.json", [*run_words("")[:-1], "data=hostile", "layers=features.8"]),
        ("datasets/[0-9a-f]*/manifest.json", ["ingest", "data=folder", "data.root={source}", "data.name=a", *SIZES]),
    ],
)
def test_a_manifest_that_names_files_outside_of_its_store_is_refused(
    hostile: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, manifest: str, words: list[str]
):
    """As of a store that came from elsewhere; the files are there."""
    monkeypatch.chdir(tmp_path)
    store = shutil.copytree(hostile / "store", tmp_path / "a" / "b" / "store")
    for name in ("tables", "datasets"):
        shutil.copytree(store / name, tmp_path / "a" / name)
    (path,) = store.glob(manifest)
    path.write_text(re.sub(r'"((?:tables|datasets)/[^"]*\.parquet)"', r'"../../\1"', path.read_text()))
    ended = raydissect(*(word.format(source=hostile / "source") for word in words), f"store={store}")
    assert_named(ended, FAILED, "outside of the store")


# Settings


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CANARY", SECRET)


GROUPS = ("model", "data", "cluster", "stage.tally", "cluster.resources", "cluster.runtime_env")
KEYS = ("_target_", "_partial_", "_args_", "_recursive_", "_convert_")


@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("key", KEYS)
def test_no_setting_instantiates(canary: Path, group: str, key: str):
    """In what Ray is given as it is, the name is a word like any other."""
    for prefix in ("", "+", "++"):
        ended = raydissect("run", f"{prefix}{group}.{key}=os.system", "model=mininet", "data=mini", "--settings")
        if group == "cluster.runtime_env":
            assert json.loads(ended.out)["cluster"]["runtime_env"] == {key: "os.system"}
        elif group == "cluster.resources":
            assert_named(ended, BAD_INPUT, f"cluster.resources.{key} is 'os.system'")
        else:
            assert_named(ended, BAD_INPUT, f"unknown setting '{group}.{key}'")


INTERPOLATIONS = (
    "${oc.env:CANARY}",
    "${oc.decode:${oc.env:CANARY}}",
    "${eval:1+1}",
    "${hydra:runtime.cwd}",
    "${store}",
)


@pytest.mark.usefixtures("environment")
@pytest.mark.parametrize("value", INTERPOLATIONS)
@pytest.mark.parametrize(
    "setting",
    ["model", "data", "cluster", "model.weights", "data.root", "layers", "quantile", "store", "stages",
     "cluster.address", "cluster.resources.a", "cluster.runtime_env.a", "cluster.runtime_env.env_vars.A"],
)  # fmt: skip
def test_interpolations_are_text(setting: str, value: str):
    ended = raydissect("run", "model=mininet", "data=mini", f"{setting}={value}", "--settings")
    assert SECRET not in ended.out + ended.err
    assert ended.code in (DONE, BAD_INPUT)
    assert "Traceback" not in ended.err
    if ended.code == DONE:
        assert value in ended.out
        assert str(ROOT) not in ended.out


@pytest.mark.usefixtures("environment")
@pytest.mark.parametrize(
    "text",
    [
        "store: !!python/object/apply:os.system ['touch {canary}']\njobs: []",
        "store: !!python/object/new:os.system ['touch {canary}']\njobs: []",
        "store: !!python/name:os.system\njobs: []",
        "store: !!python/module:antigravity\njobs: []",
        "store: &a [*a]\njobs: []",
        "store: s\njobs: [{{models: mininet, data: mini, settings: {{_target_: os.system}}}}]",
        "store: s\njobs: [{{models: mininet, data: mini, settings: {{model: {{_target_: os.system}}}}}}]",
        "store: ${{oc.env:CANARY}}\njobs: []",
        "store: '{folder}/${{oc.env:CANARY}}'\njobs: [{{models: mininet, data: mini}}]",
        "store: '{folder}/s'\njobs: [{{models: '${{oc.env:CANARY}}', data: mini}}]",
        "store: '{folder}/s'\nsettings: {{cluster.resources: {{a: '${{oc.env:CANARY}}'}}}}\n"
        "jobs: [{{models: mininet, data: mini}}]",
    ],
)
def test_a_schedule_is_data(tmp_path: Path, canary: Path, text: str):
    path = tmp_path / "evil.yaml"
    path.write_text(text.format(canary=canary, folder=tmp_path))
    ended = raydissect("reprocess", path, "--dry-run")
    assert ended.code in (DONE, BAD_INPUT), ended
    assert "Traceback" not in ended.err
    assert SECRET not in ended.out + ended.err
    assert {one.name for one in tmp_path.iterdir()} == {"evil.yaml"}


# Queries


@pytest.mark.parametrize(
    "sql",
    [
        "copy (select 1) to '{canary}'",
        "copy detectors to '{canary}' (format parquet)",
        "export database '{canary}'",
        "attach '{canary}' as other",
        "select 1; copy (select 1) to '{canary}'",
        "create table a as select * from read_text('{secret}')",
        "select * from read_text('{secret}')",
        "select * from read_blob('{secret}')",
        "select * from read_csv('{secret}', all_varchar = true)",
        "select * from read_json('{secret}')",
        "select * from sniff_csv('{secret}')",
        "select * from '{secret}'",
        "select * from glob('{folder}/*')",
        "select getenv('CANARY')",
        "import database '{folder}'",
        "install httpfs",
        "install spatial from '{folder}'",
        "load '{secret}'",
        "create secret s (type s3, key_id 'a', secret 'b')",
        "create persistent secret s (type s3, key_id 'a', secret 'b')",
        "set enable_external_access = true",
        "set temp_directory = '{canary}'",
        "set log_query_path = '{canary}'",
        "pragma enable_profiling; pragma profiling_output = '{canary}'; select 1",
        "call enable_logging(storage = 'file', storage_path = '{canary}')",
    ],
)
@pytest.mark.usefixtures("environment")
def test_a_query_reads_and_writes_no_file_and_loads_nothing(hostile: Path, tmp_path: Path, canary: Path, sql: str):
    (tmp_path / "secret.csv").write_text(f"{SECRET}\n")
    sql = sql.format(canary=canary, secret=tmp_path / "secret.csv", folder=tmp_path)
    ended = raydissect("query", sql, f"store={hostile}/store")
    assert SECRET not in ended.out + ended.err
    assert_named(ended, BAD_INPUT, "the query ")
    assert {path.name for path in tmp_path.iterdir()} == {"secret.csv"}


# Secrets


class Web:
    """A web server that gives a file to who has the signature, and says 403 to all others."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        web = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                path, _, signature = self.path.partition("?")
                data = web.files.get(path, b"") if signature == f"sig={SECRET}" else b""
                part = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers["Range"] or "")
                self.send_response(403 if not data else 206 if part else 200)
                if part:
                    data = data[int(part[1]) : int(part[2]) + 1]
                self.send_header("Accept-Ranges", "bytes")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                if self.command == "GET":
                    self.wfile.write(data)

            do_HEAD = do_GET  # noqa: N815

            def log_message(self, *_: object) -> None: ...

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"


@pytest.fixture
def web() -> Iterator[Web]:
    web = Web()
    thread = threading.Thread(target=web.server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    yield web
    web.server.shutdown()
    thread.join()
    web.server.server_close()


def _files_with(secret: str, folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file() and secret.encode() in _contents(path)]


def _contents(path: Path) -> bytes:
    if path.suffix == ".parquet":  # whose pages are compressed
        table = pq.read_table(path)
        return f"{table.schema.metadata} {table.to_pylist()}".encode()
    return path.read_bytes()


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_a_signed_url_is_used_and_kept_nowhere(ingested: Path, tmp_path: Path, web: Web):
    web.files["/net.safetensors"] = write_weights(tmp_path / "net.safetensors", {}).read_bytes()
    signed = f"model.weights={web.url}/net.safetensors?sig={SECRET}"
    words = run_words(ingested, "data=tiny", signed, f"cluster.runtime_env={{env_vars:{{TOKEN:{SECRET}}}}}", "-v")
    ended = raydissect(*words)
    assert ended.code == DONE, ended.err
    told = [raydissect(*one, f"store={ingested}") for one in (["status"], ["status", "--json"], ["query", "from runs"])]
    assert f"{web.url}/net.safetensors" in told[-1].out
    assert SECRET not in "".join(one.out + one.err for one in (ended, *told))
    assert not _files_with(SECRET, ingested)

    resume = ["run", "--resume", "last", f"store={ingested}"]
    ended = raydissect(*resume)
    assert_named(ended, BAD_INPUT, "give model.weights, cluster.runtime_env.env_vars.TOKEN again")
    secrets = [signed, f"cluster.runtime_env.env_vars.TOKEN={SECRET}"]
    assert raydissect(*resume, *secrets).code == DONE
    assert_named(raydissect(*resume, *secrets, f"model.weights={web.url}/other.safetensors?sig=1"), BAD_INPUT, "/other")
    assert not _files_with(SECRET, ingested)


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_an_error_tells_no_signature_and_no_password(ingested: Path, tmp_path: Path, web: Web):
    address = web.url.removeprefix("http://")
    for url in (f"{web.url}/gone.pth?sig={SECRET}&x=1", f"http://me:{SECRET}@{address}/gone.pth"):
        ended = raydissect(*run_words(ingested, "data=tiny", f"model.weights={url}", "-v"))
        assert_named(ended, BAD_INPUT, "gone.pth")
        assert SECRET not in ended.err
    for url in (f"{web.url}/broden.zip?sig={SECRET}", f"ftp://me:{SECRET}@127.0.0.1:9/broden.zip"):
        ended = raydissect("ingest", "data=broden", f"data.root={url}", f"store={ingested}")
        assert_named(ended, BAD_INPUT, "broden.zip")
        assert SECRET not in ended.err
    ended = raydissect("status", f"store=ftp://me:{SECRET}@127.0.0.1/x")
    assert_named(ended, BAD_INPUT, "store: has a password in its URL")
    assert SECRET not in ended.err
    assert not _files_with(SECRET, ingested)


def test_a_signed_source_names_neither_data_set_nor_rejects(tmp_path: Path, web: Web):
    images = tiny_images(4)
    (source := write_broden(tmp_path / "source", images)).joinpath("images", images[0].path).unlink()
    web.files["/own.zip"] = zip_folder(source, tmp_path / "own.zip").read_bytes()
    store = tmp_path / "store"
    ended = raydissect(
        "ingest", "data=broden", f"data.root={web.url}/own.zip?sig={SECRET}", "data.name=null", *SIZES, f"store={store}"
    )
    assert ended.code == DONE, ended.err
    assert "data set own (" in ended.out
    assert "1 missing" in ended.out
    assert SECRET not in ended.out + ended.err
    assert not _files_with(SECRET, store)
    assert not [path for path in store.rglob("*") if SECRET in path.name]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("https://there/a.pth?X-Amz-Signature=1#f", "https://there/a.pth"),
        ("cannot read HTTPS://there/a.pth?sig=1: 403, url='http://u:p@h/x?y'", "cannot read HTTPS://there/a.pth 403, url='http://h/x'"),
        ("simplecache::https://there/a.pth?sig=1", "simplecache::https://there/a.pth"),
        ("s3://bucket/run-?/a.pth", "s3://bucket/run-?/a.pth"),
        ("sftp://me:word@host/a", "sftp://host/a"),
        ("what? who@there", "what? who@there"),
    ],
)  # fmt: skip
def test_what_is_shown_of_a_url(text: str, told: str):
    assert shown(text) == told


def test_what_is_kept_of_settings():
    given = {
        "model": {"weights": "https://h/a.pth?s=1"},
        "cluster": {"runtime_env": {"env_vars": {"A": "b"}, "pip": ["a"]}},
    }
    kept, withheld = shown_settings(given)
    assert kept["model"]["weights"] == "https://h/a.pth"
    assert kept["cluster"]["runtime_env"] == {"env_vars": {"A": WITHHELD}, "pip": ["a"]}
    assert withheld == ["model.weights", "cluster.runtime_env.env_vars.A"]


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore:ssl=None is deprecated:DeprecationWarning")
def test_a_store_s_key_is_told_to_nobody(monkeypatch: pytest.MonkeyPatch):
    with moto() as server:
        for name, value in {**server.environment, "AWS_SECRET_ACCESS_KEY": SECRET}.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr("pipeline.store._proved", set())
        S3FileSystem.clear_instance_cache()
        server.client().create_bucket(Bucket="security")
        store = "s3://security/a"
        mini = ["data=mini", "data.num_images=8", "data.size=64", *SIZES]
        words = [["ingest", *mini, f"store={store}"], run_words(store, *mini, "-v"), ["status", f"store={store}"]]
        ended = [raydissect(*one) for one in words]
        assert [one.code for one in ended] == [DONE] * 3, ended
        ended.append(raydissect("ingest", *mini, "store=s3://no-such-bucket/a"))
        assert ended[-1].code == FAILED
        assert SECRET not in "".join(one.out + one.err for one in ended)
        kept = Store(store)
        texts = [kept.read(path) for path in kept.list("") if not path.endswith((".parquet", ".arrow"))]
        assert len(texts) > 10
        assert not [text for text in texts if SECRET.encode() in text]
        assert SECRET not in json.dumps(query(kept, "from runs").to_pylist(), default=str)
        S3FileSystem.clear_instance_cache()


def _look() -> Worker:
    """A worker that tells which modules its process has that could read extension types."""

    def compute(shard: Shard) -> str:
        return " ".join(name for name in sys.modules if name.startswith("ray.data"))

    def write(shard: Shard, found: str) -> int:
        assert not found, found
        return 0

    return Worker(lambda shard: shard, compute, write)


@pytest.mark.cluster
def test_the_local_cluster_refuses_who_has_no_token_and_leaves_none_behind():
    import ray

    with make_executor(Cluster(workers=1)) as executor:
        executor.run(_look, [Shard("s0", 0, rows=1)], title="look")
        path = Path(os.environ["RAY_AUTH_TOKEN_PATH"])
        token = path.read_text()
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        (node,) = ray.nodes()
        services = {
            ray.get_runtime_context().gcs_address: "/ray.rpc.NodeInfoGcsService/GetAllNodeInfo",
            f"127.0.0.1:{node['NodeManagerPort']}": "/ray.rpc.NodeManagerService/GetNodeStats",
        }
        for target, method in services.items():
            assert target.startswith("127.0.0.1:")
            assert _call(target, method, None).name == "UNAUTHENTICATED", method
            assert _call(target, method, "wrong" * 8).name == "UNAUTHENTICATED", method
            assert _call(target, method, token).name != "UNAUTHENTICATED", method
    assert not path.parent.exists()
    assert os.environ.get("RAY_AUTH_TOKEN_PATH") != str(path)


def test_a_local_token_is_removed_also_after_an_error():
    from pipeline.ray_executor import _local_options

    tokens: list[Path] = []

    def fail() -> None:
        with _local_options(Cluster()) as options:
            tokens.append(token := Path(os.environ["RAY_AUTH_TOKEN_PATH"]))
            assert stat.S_IMODE(token.stat().st_mode) == 0o600
            assert stat.S_IMODE(token.parent.stat().st_mode) == 0o700
            assert len(token.read_text()) == 64
            assert (options["_node_ip_address"], options["include_dashboard"]) == ("127.0.0.1", False)
            raise RuntimeError("no luck")

    with pytest.raises(RuntimeError, match="no luck"):
        fail()
    assert not tokens[0].parent.exists()


# Versions

FLOORS = {"ray": "2.55", "torch": "2.10", "pillow": "12.2", "pyarrow": "14.0.1"}
"""Below these are known ways to execute from data, or to use a cluster without a token."""


def _requirements() -> dict[str, Requirement]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = [*project["dependencies"], *(one for extra in project["optional-dependencies"].values() for one in extra)]
    found = [Requirement(line) for line in lines]
    return {one.name.lower(): one for one in found if one.name != project["name"]}


def test_versions_keep_the_floors():
    """Of pyproject.toml, of the pins and of what is installed.

    `pip-audit` would look the pins up among known vulnerabilities, for which it needs PyPI's own JSON API or
    api.osv.dev. Behind an index without these it skips every package and ends with 0, so it is no check there.
    """
    wanted, pinned = _requirements(), _pins()
    for name, floor in FLOORS.items():
        (specifier,) = wanted[name].specifier
        assert specifier.operator == ">="
        assert Version(specifier.version) >= Version(floor), name
        assert Version(pinned[name]) >= Version(floor), name
        assert Version(version(name)) >= Version(floor), name


def test_pins_satisfy_every_range_and_come_from_the_index():
    pinned = _pins()
    for name, requirement in _requirements().items():
        assert requirement.url is None, name
        assert requirement.specifier.contains(pinned[name], prereleases=True), (name, pinned[name])


def _pins() -> dict[str, str]:
    lines = [line.partition("#")[0].strip() for line in (ROOT / "constraints.txt").read_text().splitlines()]
    matches = [re.fullmatch(r"([\w.-]+)==([\w.+!-]+)(\s*;.*)?", line) for line in lines if line]
    assert all(matches), lines
    return {match[1].lower(): match[2] for match in matches if match}

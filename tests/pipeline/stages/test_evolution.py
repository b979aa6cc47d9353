"""Units over a training: numbers against a naive recomputation, resumes, and what is held in memory."""

import io
import shutil
import weakref
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import save_file

from pipeline.errors import ShardsFailed
from pipeline.executor import make_executor
from pipeline.follow import follow
from pipeline.plan import make_plan
from pipeline.results import list_results, staging_path
from pipeline.run import run
from pipeline.stage import Job, LayerJob
from pipeline.stages import evolution
from pipeline.stages.evolution import Checkpoint, Evolution, Followed, _cosine, _FollowedLayer, spread_out
from pipeline.stages.patterns import LayerPatterns
from pipeline.subject import prepare
from tests import dissect, small
from tests.command import raydissect
from workers.batches import decode_image
from workers.methods.deconvnet import Round, project
from workers.models import ModelSpec, load
from workers.networks.mininet import MiniNet
from workers.nn.relus import LayerFunction

LAYERS = ("features.4", "classifier.2")
STAGE = "stages=[evolution]"
NAMES = ("epoch-1", "epoch-2", "epoch-10")
DEAD = 5
"""A unit of features.4 that is dead at the first checkpoint."""


UNITS = (0, 3, DEAD, 11, 16, 23, 33, 40)


def write_training(folder: Path) -> Path:
    """Three checkpoints on the way from one set of random weights to another."""
    folder.mkdir()
    first, last = (MiniNet(generator=torch.Generator().manual_seed(seed)).state_dict() for seed in (1, 0))
    for name, share in zip(NAMES, (0.0, 0.6, 1.0), strict=True):
        state = {key: torch.lerp(first[key], value, share) for key, value in last.items()}
        if name == NAMES[0]:
            state["features.3.weight"][DEAD], state["features.3.bias"][DEAD] = 0, -1
        save_file(state, folder / f"{name}.safetensors")
    return folder


def words_of(source: Path, weights: Path | str, *more: str, layers: tuple[str, ...] = LAYERS) -> list[str]:
    """Settings of a run over some weights."""
    return [
        f"model.weights={weights}" if word == "model.weights=random" else word
        for word in small.overrides(source, STAGE, *more, layers=layers)
    ]


@pytest.fixture(scope="module")
def training(tmp_path_factory) -> Path:
    return write_training(tmp_path_factory.mktemp("training") / "ck")


@pytest.fixture(scope="module")
def words(source, training) -> list[str]:
    few = [f"units=[{','.join(map(str, UNITS))}]", "batch=4"]
    return words_of(source, training / "epoch-10.safetensors", f"checkpoints=[{training}/epoch-*.safetensors]", *few)


@pytest.fixture(scope="module")
def evolved(tmp_path_factory, words) -> Path:
    store = tmp_path_factory.mktemp("evolved") / "store"
    dissect.ingest_and_run(store, *words)
    return store


@pytest.fixture
def copy(tmp_path, evolved) -> Path:
    """All checkpoints are dissected, and nothing else."""
    store = shutil.copytree(evolved, tmp_path / "store")
    for result in dissect.results(store, "evolution"):
        (store / result.path).unlink()
        shutil.rmtree(store / "staging" / result.result_id)
    return store


def rows_of(store: Path, stage: str, table: str, study_id: str | None = None) -> pd.DataFrame:
    """Rows of a stage's table, with all their columns."""
    opened = small.open_store(store)
    parts = [opened.read_table(one.tables[table].path) for one in list_results(opened, study_id) if one.stage == stage]
    return pa.concat_tables(parts).to_pandas() if parts else pd.DataFrame()


def evolution_of(store: Path, table: str = "evolution") -> pd.DataFrame:
    return rows_of(store, "evolution", table)


def job_of(store: Path, *words: str) -> tuple[Followed, Job]:
    """The stage with its checkpoints, and its job."""
    settings = dissect.settings(store, *words)
    subject, stages = prepare(settings), settings.stages_by_name()
    stage = follow(settings, subject, stages).stage
    stages["evolution"] = stage
    plan = make_plan(subject.store, subject.study, list(subject.layers), ["evolution"], stages)
    jobs = {
        name: LayerJob(
            layer,
            plan.ids["evolution", name],
            stage.settings_of(name),
            {read: plan.published[read, name] for read in stage.reads()},
        )
        for name, layer in subject.layers.items()
    }
    return stage, Job(subject.store, subject.study, subject.manifest, subject.model, "cpu", jobs)


class Naive:
    """The networks of a training, each image by itself, whole patterns: nothing is cut."""

    def __init__(self, store: Path, training: Path, words: list[str]) -> None:
        settings = dissect.settings(store, *words)
        subject = prepare(settings)
        paths = [str(training / f"{name}.safetensors") for name in NAMES]
        self.networks = [load(ModelSpec("mininet", path), lambda path: Path(path).read_bytes()) for path in paths]
        self.images: dict[int, np.ndarray] = {}
        for entry in subject.manifest.shards:
            for row in subject.store.read_table(entry.path, ["image_id", "image"]).to_pylist():
                self.images[row["image_id"]] = decode_image(row["image"]["bytes"], 112, 112)

    def pattern(self, place: int, layer: str, unit: int, image_id: int, y: int, x: int) -> tuple[np.ndarray, float]:
        network = self.networks[place]
        given = network.preprocessing.normalize(torch.from_numpy(self.images[image_id].transpose(2, 0, 1).copy())[None])
        one = Round(torch.tensor([unit]), torch.tensor([int(y)]), torch.tensor([int(x)]))
        (made,) = project(LayerFunction(network.module, layer), given, [one])
        return made.pattern[0].double().numpy().ravel(), made.activation.item()


@pytest.fixture(scope="module")
def naive(evolved, training, words) -> Naive:
    return Naive(evolved, training, words)


def test_cosines_are_those_of_whole_patterns_of_the_last_checkpoints_top_image(evolved, naive):
    rows = evolution_of(evolved)
    compared = 0
    for layer in LAYERS:
        own = rows[rows["layer"] == layer].set_index(["unit", "place"])
        for unit in UNITS:
            if (unit, 2) not in own.index:
                continue
            anchor = own.loc[unit, 2]
            cell = (layer, unit, int(anchor["image_id"]), int(anchor["y"]), int(anchor["x"]))
            made = [naive.pattern(place, *cell)[0] for place in range(3)]
            for place in range(3):
                if (unit, place) not in own.index:
                    continue
                row = own.loc[unit, place]
                assert row["anchor_image_id"] == anchor["image_id"]
                assert_cosine(row["cosine_last"], made[place], made[2])
                if place:
                    assert_cosine(row["cosine"], made[place], made[place - 1])
                else:
                    assert np.isnan(row["cosine"])
                compared += 1
    assert compared > 20


def assert_cosine(value: float, first: np.ndarray, second: np.ndarray) -> None:
    norms = np.sqrt((first**2).sum() * (second**2).sum())
    if norms:
        assert value == pytest.approx((first * second).sum() / norms, abs=1e-5)
    elif first.any() or second.any():
        assert value == 0
    else:
        assert np.isnan(value)


def test_rows_are_each_checkpoints_own_top_images_and_detectors(evolved):
    rows = evolution_of(evolved)
    assert rows["checkpoint"].unique().tolist() == list(NAMES)
    assert rows.groupby("checkpoint")["epoch"].unique().str[0].to_dict() == dict(zip(NAMES, (1, 2, 10), strict=True))
    assert rows["checkpoint_study_id"].nunique() == 3
    assert set(rows["study_id"]) == set(rows[rows["place"] == 2]["checkpoint_study_id"])
    for (study_id, layer), found in rows.groupby(["checkpoint_study_id", "layer"]):
        found = found.set_index("unit")
        exemplars = rows_of(evolved, "exemplars", "exemplars", study_id)
        top = exemplars[(exemplars["layer"] == layer) & (exemplars["rank"] == 0)].set_index("unit").loc[found.index]
        assert found.index.tolist() == sorted(set(UNITS) & set(exemplars[exemplars["layer"] == layer]["unit"]))
        for name in ("image_id", "y", "x"):
            assert (found[name] == top[name]).all()
        assert np.allclose(found["activation"], top["activation"], rtol=1e-4, atol=1e-5)
        detectors = rows_of(evolved, "detectors", "detectors", study_id)
        best = detectors[(detectors["layer"] == layer) & detectors["is_best_overall"] & (detectors["intersection"] > 0)]
        best = best.set_index("unit").reindex(found.index)
        assert found["concept"].equals(best["concept"].where(best["concept"].notna(), None))
        assert found["category"].equals(best["category"].where(best["category"].notna(), None))
        assert np.array_equal(found["iou"], best["iou"], equal_nan=True)
        assert (found["is_detector"] == best["is_detector"].eq(True)).all()
    assert rows["is_detector"].any()
    before = rows.set_index(["layer", "unit", "place"])["image_id"]
    for row in rows.itertuples():
        there = before.get((row.layer, row.unit, row.place - 1))
        assert row.same_image == (None if there is None else there == row.image_id)


def test_a_unit_that_was_dead_has_no_row_there_and_comes_about_later(evolved, naive):
    rows = evolution_of(evolved)
    unit = rows[(rows["layer"] == "features.4") & (rows["unit"] == DEAD)].set_index("place")
    assert unit.index.tolist() == [1, 2]
    assert unit.loc[1, "same_image"] is None
    anchor = unit.loc[2]
    pattern, activation = naive.pattern(1, "features.4", DEAD, int(anchor["image_id"]), anchor["y"], anchor["x"])
    assert pattern.any()
    assert activation > 0
    assert unit.loc[1, "cosine"] == 0  # of the anchor's pattern with that of the dead unit, which is 0
    assert unit.loc[1, "cosine_last"] > 0


def test_pictures_show_the_same_pixels(evolved, naive):
    rows = evolution_of(evolved)
    for row in rows[rows["layer"] == "features.4"].iloc[::5].itertuples():
        pattern, crop = (np.asarray(Image.open(io.BytesIO(one["bytes"]))) for one in (row.pattern, row.crop))
        own = naive.images[row.image_id][row.top : row.bottom, row.left : row.right]
        assert np.array_equal(crop, own)
        assert pattern.shape == own.shape
        whole, _ = naive.pattern(row.place, "features.4", row.unit, row.image_id, row.y, row.x)
        drawn = whole.reshape(3, 112, 112)[:, row.top : row.bottom, row.left : row.right]
        assert np.abs(drawn).sum() == pytest.approx(np.abs(whole).sum())
        assert np.corrcoef(pattern.transpose(2, 0, 1).ravel(), drawn.ravel())[0, 1] > 0.99


def test_summaries_are_medians_and_shares_of_the_rows(evolved):
    rows, layers = evolution_of(evolved), evolution_of(evolved, "evolution_layers")
    assert len(layers) == len(LAYERS) * 3
    for row in layers.itertuples():
        found = rows[(rows["layer"] == row.layer) & (rows["place"] == row.place)]
        assert (row.checkpoint, row.epoch) == (NAMES[row.place], (1, 2, 10)[row.place])
        assert row.num_units == len(UNITS)
        assert row.num_compared == sum(not np.isnan(value) for value in found["cosine_last"])
        for name, share in (("cosine_low", 25), ("cosine", 50), ("cosine_high", 75)):
            assert getattr(row, name) == pytest.approx(middle(found["cosine"], share), nan_ok=True)
        assert row.cosine_last == pytest.approx(middle(found["cosine_last"]), nan_ok=True)
        same = [value for value in found["same_image"] if value is not None]
        assert row.same_image == pytest.approx(sum(same) / len(same) if same else np.nan, nan_ok=True)
        detecting = found[found["is_detector"]]
        assert (row.num_detectors, row.num_unique_concepts) == (len(detecting), len(set(detecting["concept"])))
    last = layers[layers["place"] == 2]
    assert np.allclose(last["cosine_last"], 1)
    assert last["is_settled"].all()


def middle(values: pd.Series, share: float = 50) -> float:
    known = [value for value in values if not np.isnan(value)]
    return float(np.percentile(known, share)) if known else np.nan


def followed(number: int, **settings) -> Followed:
    point = {"kept": None, "sha256": "", "study_id": "", "exemplars": {}, "detectors": {}, "weights": ""}
    return Followed(points=[Checkpoint(name=f"{place}", epoch=place, **point) for place in range(number)], **settings)


@given(st.lists(st.sampled_from([None, 0.1, 0.7, 0.8, 0.9, 1.0]), min_size=2, max_size=6))
def test_a_layer_has_settled_from_where_on_it_stays_like_its_end(cosines):
    rows = [
        {"unit": unit, "place": place, "same_image": None, "cosine": None, "cosine_last": value, "concept": None}
        | {"is_detector": False}
        for place, value in enumerate(cosines)
        for unit in range(3)
    ]
    kinds = {"same_image": pa.bool_(), "cosine": pa.float32(), "cosine_last": pa.float32(), "concept": pa.string()}
    kinds = {"unit": pa.int32(), "place": pa.int32(), **kinds, "is_detector": pa.bool_()}
    table = pa.Table.from_pylist(rows, pa.schema(kinds))
    made = followed(len(cosines), settled=0.75)._summarize(table, 3).to_pylist()
    expected = [all(one is not None and one >= 0.75 for one in cosines[place:]) for place in range(len(cosines))]
    assert [row["is_settled"] for row in made] == expected
    assert [row["num_compared"] for row in made] == [0 if value is None else 3 for value in cosines]


def test_cosines_of_patterns_that_are_0_or_faint():
    zero, faint = torch.zeros(3, 2, 2), torch.zeros(3, 2, 2)
    faint[0, 0, 0], faint[1, 1, 1] = 3e-30, 4e-30
    assert _cosine(zero, zero) is None
    assert _cosine(zero, faint) == _cosine(faint, zero) == 0
    assert _cosine(faint, faint) == pytest.approx(1)
    assert _cosine(faint, -faint) == pytest.approx(-1)
    assert _cosine(faint, faint.flip(0, 1, 2)) == 0


@given(st.integers(1, 400), st.integers(2, 400))
def test_checkpoints_are_picked_from_the_first_to_the_last_ever_farther_apart(number, most):
    places = spread_out(number, most)
    assert len(places) == min(number, most)
    assert places == sorted(set(places))
    assert (places[0], places[-1]) == (0, number - 1)


def test_spread_as_in_the_paper():
    assert spread_out(64, 7) == [0, 1, 3, 7, 15, 31, 63]


def test_the_same_checkpoint_twice_changes_nothing(copy, source, training):
    first, last = (training / f"{name}.safetensors" for name in (NAMES[1], NAMES[2]))
    words = words_of(source, last, f"checkpoints=[{first},{first},{last}]", "units=[0,3,5]", layers=LAYERS[:1])
    dissect.run_only(copy, *words)
    rows = evolution_of(copy)
    assert set(rows["unit"]) == {0, 3, 5}
    one, again = (rows[rows["place"] == place].reset_index(drop=True) for place in (0, 1))
    assert np.allclose(again["cosine"], 1)
    assert again["same_image"].all()
    differing = ["place", "cosine", "same_image"]
    assert one.drop(columns=differing).equals(again.drop(columns=differing))


def test_detectors_are_those_of_the_last_checkpoint(copy, words):
    dissect.run_only(copy, *words, "units=detectors", "layers=features.4")
    rows = evolution_of(copy)
    detectors = rows_of(copy, "detectors", "detectors", rows["study_id"][0])
    chosen = detectors[(detectors["layer"] == "features.4") & detectors["is_detector"] & detectors["is_best_overall"]]
    assert set(rows[rows["place"] == 2]["unit"]) == set(chosen["unit"])
    assert set(evolution_of(copy, "evolution_layers")["num_units"]) == {len(chosen)}


def test_a_second_run_finds_it_done_even_if_the_checkpoints_results_are_gone(evolved, words, tmp_path):
    store = shutil.copytree(evolved, tmp_path / "store")
    runs = len(small.open_store(store).list("runs"))
    own = set(evolution_of(store)["study_id"])
    for result in list_results(small.open_store(store)):
        if result.study_id not in own:
            (store / result.path).unlink()
    again = dissect.run_only(store, *words)
    assert again.computed == []
    assert {one.result_id for one in dissect.results(store, "evolution")} <= set(again.found)
    assert len(small.open_store(store).list("runs")) == runs + 1
    assert {one.study_id for one in list_results(small.open_store(store))} == own


def test_a_new_checkpoint_has_itself_dissected_and_the_evolution_made_anew(evolved, words, training, tmp_path):
    store = shutil.copytree(evolved, tmp_path / "store")
    before = {one.result_id for one in list_results(small.open_store(store))}
    studies = {one.study_id for one in list_results(small.open_store(store))}
    net = MiniNet(generator=torch.Generator().manual_seed(7))
    save_file(net.state_dict(), tmp_path / "epoch-5.safetensors")
    listed = f"{training}/epoch-[12].safetensors,{tmp_path}/epoch-5.safetensors,{training}/epoch-10.safetensors"
    outcome = dissect.run_only(store, *words, f"checkpoints=[{listed}]", "layers=features.4")
    new = [one for one in list_results(small.open_store(store)) if one.result_id not in before]
    assert len({one.study_id for one in new} - studies) == 1
    assert {one.stage for one in new if one.study_id in studies} == {"evolution"}
    assert outcome.computed == [one.result_id for one in new if one.study_id in studies]
    rows = evolution_of(store)
    mine = rows[rows["result_id"] == outcome.computed[0]]
    assert sorted(mine["epoch"].unique()) == [1, 2, 5, 10]


def test_manifests_name_what_was_read(evolved):
    by_id = {(one.study_id, one.result_id): one for one in list_results(small.open_store(evolved))}
    for one in dissect.results(evolved, "evolution"):
        assert set(one.inputs) == {"detectors", "exemplars"}
        points = one.settings["points"]
        for point in points:
            for stage in ("detectors", "exemplars"):
                read = by_id[point["study_id"], point[stage]]
                assert (read.stage, read.layer) == (stage, one.layer)
        assert {name: points[-1][name] for name in one.inputs} == one.inputs
        assert points[-1]["study_id"] == one.study_id


def test_what_is_done_of_a_failed_run_is_not_done_again(copy, words, monkeypatch):
    whole, done = _FollowedLayer.rows, []

    def fails_once(self, place, models, images):
        done.append(place)
        if place == 1 and done.count(1) == 1:
            raise RuntimeError("the disk is full")
        return whole(self, place, models, images)

    monkeypatch.setattr(_FollowedLayer, "rows", fails_once)
    with pytest.raises(ShardsFailed, match="the disk is full"):
        dissect.run_only(copy, *words, "layers=features.4")
    assert len(evolution_of(copy)) == 0
    status = raydissect("status", f"store={copy}")
    assert status.code == 0, status.err
    (line,) = [line for line in status.out.splitlines() if "evolution" in line and "features.4" in line]
    assert line.split()[-2:] == ["2", "3"]
    ended = raydissect("run", "--resume", "last", f"store={copy}")
    assert ended.code == 0, ended.err
    assert done == [0, 1, 2, 1]
    assert evolution_of(copy)["place"].nunique() == 3


def test_tables_are_the_same_without_overlap_and_nearly_for_other_batches(copy, evolved, words):
    dissect.run_only(copy, *words, "cluster.window=1")
    small.same_tables(evolved, copy, "evolution", "evolution_layers")
    dissect.run_only(copy, *words, "batch=3", "layers=features.4")
    found = {one.settings["batch"]: one for one in dissect.results(copy, "evolution") if one.layer == "features.4"}
    keys = ["unit", "place"]
    one, other = (
        small.open_store(copy).read_table(found[batch].tables["evolution"].path).to_pandas().set_index(keys)
        for batch in (4, 3)
    )
    assert one.index.equals(other.index)
    assert one[["image_id", "anchor_image_id", "same_image"]].equals(
        other[["image_id", "anchor_image_id", "same_image"]]
    )
    for name in ("cosine", "cosine_last"):
        assert np.allclose(one[name], other[name], atol=1e-4, equal_nan=True)


@pytest.mark.cluster
def test_tables_are_the_same_on_any_number_of_workers(copy, evolved, words):
    dissect.run_only(copy, *words, "cluster=ray", "cluster.workers=2")
    small.same_tables(evolved, copy, "evolution", "evolution_layers")


def test_no_more_than_three_networks_and_a_pattern_of_each_are_held(copy, words, monkeypatch):
    stage, job = job_of(copy, *words, "batch=3", f"layers={LAYERS[0]}")
    held = SimpleNamespace(networks=weakref.WeakSet(), patterns=0)
    most = SimpleNamespace(networks=0, patterns=0)
    load_one, cut = evolution.load, LayerPatterns._cut

    def counted_load(*given):
        loaded = load_one(*given)
        held.networks.add(loaded.module)
        most.networks = max(most.networks, len(held.networks))
        return loaded

    def fewer():
        held.patterns -= 1

    def counted_cut(self, *given):
        made = cut(self, *given)
        weakref.finalize(made, fewer)
        held.patterns += 1
        most.patterns = max(most.patterns, held.patterns)
        return made

    monkeypatch.setattr(evolution, "load", counted_load)
    monkeypatch.setattr(LayerPatterns, "_cut", counted_cut)
    worker = stage.build(job)
    for shard in stage.shards(job):
        tables = worker.compute(worker.read(shard))
        assert set(tables) == {LAYERS[0]}
        assert len(held.networks) == 0
    assert most.networks == 3
    assert most.patterns <= 3 * 2 + 1  # of each network the one that is compared, and the one that is made
    assert held.patterns == 0


def test_the_rounding_of_this_process_is_left_as_it_was(copy, words):
    stage, job = job_of(copy, *words, f"layers={LAYERS[0]}", "units=[0,3]")
    switches = [torch.backends.cuda.matmul, torch.backends.cudnn.conv, torch.backends.mkldnn.conv]
    before = [switch.fp32_precision for switch in switches]
    torch.backends.mkldnn.conv.fp32_precision = "bf16"
    try:
        worker = stage.build(job)
        worker.compute(worker.read(stage.shards(job)[1]))
        assert torch.backends.mkldnn.conv.fp32_precision == "bf16"
    finally:
        torch.backends.mkldnn.conv.fp32_precision = before[2]
    assert [switch.fp32_precision for switch in switches] == before


def meddle(store: Path, words: list[str], spoil, **more) -> None:
    """Run, and do something to the store once the checkpoints are dissected."""
    settings = dissect.settings(store, *words, "layers=features.4")

    def on_progress(title, done, _):
        if title == "evolution" and done == 0:
            spoil()

    with make_executor(settings.cluster) as executor:
        run(settings, executor, on_progress, **more)


def test_results_that_are_collected_meanwhile_are_named_with_the_cure(copy, words):
    own = set(rows_of(copy, "exemplars", "exemplars", None)["study_id"])
    study_id = min(own - {prepare(dissect.settings(copy, *words)).study.study_id})
    exemplars = [one for one in list_results(small.open_store(copy), study_id) if one.stage == "exemplars"]

    def remove():
        for one in exemplars:
            (copy / one.path).unlink()

    with pytest.raises(ShardsFailed, match=rf"(?s)exemplars of checkpoint epoch-\d+ .*{study_id}.*same command again"):
        meddle(copy, words, remove)
    meddle(copy, words, lambda: None)
    assert evolution_of(copy)["place"].nunique() == 3


def test_an_altered_table_of_a_checkpoint_is_named_with_the_cure(copy, words):
    own = prepare(dissect.settings(copy, *words)).study.study_id
    (path,) = [
        one.tables["detectors"].path
        for one in dissect.results(copy, "detectors")
        if one.layer == "features.4"
        and one.study_id == min({r.study_id for r in list_results(small.open_store(copy))} - {own})
    ]
    data = (copy / path).read_bytes()
    with pytest.raises(ShardsFailed, match=r"(?s)of checkpoint epoch-\d+, .*detectors.*--verify makes it again"):
        meddle(copy, words, lambda: (copy / path).write_bytes(data[:-9] + b"123456789"))
    meddle(copy, words, lambda: None, verify=True)
    assert (copy / path).read_bytes() == data
    assert evolution_of(copy)["place"].nunique() == 3


def test_an_altered_batch_is_made_again(copy, words, monkeypatch):
    whole = Followed.reduce

    def spoil(self, job, layer):
        path = copy / staging_path(layer.result_id, "000001.arrow")
        path.write_bytes(path.read_bytes()[:-40] + b"x" * 40)
        monkeypatch.setattr(Followed, "reduce", whole)
        return whole(self, job, layer)

    monkeypatch.setattr(Followed, "reduce", spoil)
    dissect.run_only(copy, *words, "layers=features.4")
    assert evolution_of(copy)["place"].nunique() == 3


def test_weights_that_change_meanwhile_are_named(copy, words):
    stage, job = job_of(copy, *words, f"layers={LAYERS[0]}")
    for path in (copy / "weights").glob("*.safetensors"):
        save_file(MiniNet(generator=torch.Generator().manual_seed(9)).state_dict(), path)
    worker = stage.build(job)
    with pytest.raises(OSError, match="the weights of checkpoint epoch-1 have changed since the run began"):
        worker.compute(worker.read(stage.shards(job)[0]))


def test_defaults_are_those_of_the_paper():
    stage = Evolution()
    assert (stage.rule, stage.settled, stage.units, stage.checkpoints) == ("deconvnet", 0.9, "all", ())

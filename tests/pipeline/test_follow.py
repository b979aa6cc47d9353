"""Which checkpoints an evolution follows, in which order, and what is refused before anything has run."""

import shutil
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from pipeline.errors import InputError, SettingsError
from pipeline.executor import make_executor
from pipeline.follow import follow, list_checkpoints, name_checkpoints, number_epochs
from pipeline.ingest import ingest
from pipeline.ordering import natural
from pipeline.records import read_records
from pipeline.reprocess import Planner, make_schedule_plan
from pipeline.results import list_results
from pipeline.run import run
from pipeline.schedule import read_schedule
from pipeline.stages.evolution import Evolution
from pipeline.store import Store
from pipeline.subject import prepare
from pipeline.tasks import expand
from tests import dissect, small
from tests.command import Ended, raydissect
from workers.models import ModelError
from workers.networks.mininet import VARIANTS, MiniNet

LAYER = "features.4"


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    return small.write_source(tmp_path_factory.mktemp("follow") / "source", number=6)


@pytest.fixture(scope="module")
def ingested(tmp_path_factory, source) -> Path:
    store = tmp_path_factory.mktemp("ingested") / "store"
    chosen = dissect.settings(store, *small.overrides(source))
    ingest(chosen.data, Store(chosen.store))
    return store


@pytest.fixture
def store(tmp_path, ingested) -> Path:
    return shutil.copytree(ingested, tmp_path / "store")


def net(path: Path, seed: int, **settings) -> Path:
    path.parent.mkdir(exist_ok=True)
    save_file(MiniNet(generator=torch.Generator().manual_seed(seed), **settings).state_dict(), path)
    return path


@pytest.fixture
def ck(tmp_path) -> Path:
    """Checkpoints 2, 9 and 10."""
    for seed in (2, 9, 10):
        net(tmp_path / "ck" / f"epoch-{seed}.safetensors", seed)
    return tmp_path / "ck"


def words_of(source: Path, weights: object, *more: str, layers=(LAYER,)) -> list[str]:
    words = small.overrides(source, "units=[0,1]", "batch=2", "stages=[evolution]", *more, layers=layers)
    return [f"model.weights={weights}" if word == "model.weights=random" else word for word in words]


def followed(store: Path, *words: str):
    settings = dissect.settings(store, *words)
    return follow(settings, prepare(settings), settings.stages_by_name())


def points_of(store: Path, *words: str) -> list[tuple[str, int | None]]:
    return [(one.name, one.epoch) for one in followed(store, *words).stage.points]


def test_globs_are_sorted_by_the_numbers_in_them(store, source, ck):
    last = ck / "epoch-10.safetensors"
    found = followed(store, *words_of(source, last, f"checkpoints={ck}/epoch-*.safetensors"))
    assert [(one.name, one.epoch) for one in found.stage.points] == [("epoch-2", 2), ("epoch-9", 9), ("epoch-10", 10)]
    assert [other.model.weights for other, _ in found.others] == [f"{ck}/epoch-{n}.safetensors" for n in (2, 9)]
    assert all(other.stages == ("dissect",) and other.layers == (LAYER,) for other, _ in found.others)
    assert len({one.study_id for one in found.stage.points}) == 3
    assert not (store / "results").exists()


def test_lists_stay_in_their_order_and_a_glob_in_one_is_sorted_by_itself(store, source, ck):
    last = ck / "epoch-2.safetensors"
    listed = f"checkpoints=[{ck}/epoch-10.safetensors,{ck}/epoch-[9].safetensors,{last}]"
    assert points_of(store, *words_of(source, last, listed)) == [("epoch-10", 10), ("epoch-9", 9), ("epoch-2", 2)]


def test_the_store_is_looked_into_and_random_comes_before_the_first_epoch(store, source, ck):
    shutil.copytree(ck, store / "weights" / "net")
    last = ck / "epoch-10.safetensors"
    listed = "checkpoints=[random,store:weights/net/epoch-*.safetensors]"
    found = followed(store, *words_of(source, last, listed)).stage.points
    assert [(one.name, one.epoch) for one in found] == [("random", 0), ("epoch-2", 2), ("epoch-9", 9), ("epoch-10", 10)]
    assert found[0].weights == "random"
    assert all((store / one.weights.removeprefix("store:")).exists() for one in found[1:])


def test_the_runs_own_weights_come_last_where_the_list_does_not_end_with_them(store, source, ck):
    final = net(ck.parent / "final.safetensors", 11)
    chosen = words_of(source, final, f"checkpoints={ck}/epoch-*.safetensors")
    assert [name for name, _ in points_of(store, *chosen)] == ["epoch-2", "epoch-9", "epoch-10", "final"]
    assert [name for name, _ in points_of(store, *chosen, "most_checkpoints=3")] == ["epoch-2", "epoch-9", "final"]
    assert [name for name, _ in points_of(store, *chosen, "most_checkpoints=2")] == ["epoch-2", "final"]


def test_weights_of_an_earlier_checkpoint_are_refused(store, source, ck):
    chosen = words_of(source, ck / "epoch-9.safetensors", f"checkpoints={ck}/epoch-*.safetensors")
    for more in ((), ("most_checkpoints=2",)):
        with pytest.raises(SettingsError, match=r"are those of checkpoint .*epoch-9.* the last, .*epoch-10"):
            followed(store, *chosen, *more)
    copy = shutil.copy(ck / "epoch-9.safetensors", ck.parent / "final.safetensors")
    chosen = words_of(source, copy, f"checkpoints={ck}/epoch-*.safetensors")
    with pytest.raises(SettingsError, match=r"are those of checkpoint .*epoch-9.* the last, .*epoch-10"):
        followed(store, *chosen)


def test_of_many_checkpoints_only_those_that_are_picked_are_read(store, source, ck):
    (ck / "epoch-9.safetensors").write_bytes(b"broken")
    chosen = words_of(source, ck / "epoch-10.safetensors", f"checkpoints={ck}/epoch-*.safetensors")
    assert points_of(store, *chosen, "most_checkpoints=2") == [("epoch-2", 2), ("epoch-10", 10)]


@pytest.mark.parametrize(
    ("names", "epochs"),
    [
        (["epoch-2", "epoch-10"], [2, 10]),
        (["net3-epoch007", "net3-epoch010"], [7, 10]),
        (["random", "epoch-1", "epoch-2"], [0, 1, 2]),
        (["random", "epoch-1"], [None, None]),
        (["epoch-1", "epoch-1", "epoch-2"], [1, 1, 2]),
        (["e1-step10", "e2-step20"], [None, None]),
        (["epoch-1", "final"], [None, None]),
        (["a-1", "b-1"], [None, None]),
        (["epoch-1", "epoch-1"], [None, None]),
        (["random", "random"], [None, None]),
        (["checkpoint-500/model", "checkpoint-1000/model"], [500, 1000]),
        (["net-1700000000123", "net-1700000000999"], [None, None]),
    ],
)
def test_epochs_are_the_number_in_which_names_differ(names, epochs):
    assert number_epochs(names) == epochs


@given(st.lists(st.integers(0, 2**31 - 1), min_size=2, max_size=5, unique=True), st.sampled_from(["", "net-7-e"]))
def test_any_numbers_are_found_and_sorted(numbers, before):
    names = [f"{before}{number}" for number in numbers]
    assert number_epochs(names) == numbers
    assert sorted(names, key=natural) == [f"{before}{number}" for number in sorted(numbers)]


def test_names_have_their_folders_where_nothing_else_tells_them_apart():
    assert name_checkpoints(["a/epoch-1.pt", "https://b/epoch-2.5.pt?sig=x/y", "V1"]) == ["epoch-1", "epoch-2.5", "V1"]
    assert name_checkpoints(["a/c-1/model.pt", "store:c-2/model.pt", "random"]) == ["c-1/model", "c-2/model", "random"]
    assert name_checkpoints(["a/one.pt", "a/one.pt"]) == ["one", "one"]


def test_mininet_that_is_trained_here_is_followed_through_its_own_training(tmp_path):
    store = tmp_path / "store"
    words = ["data=mini", "data.num_images=24", "data.size=32", "model=mininet", "model.weights=trained"]
    words += ["model.epochs=3", f"layers={LAYER}", "units=[0,1,2]", "batch=4", "stages=[evolution]", "min_images=8"]
    dissect.ingest_and_run(store, *words)
    rows = dissect.read_table(store, "evolution_layers")
    assert rows["checkpoint"].tolist() == ["epoch-01", "epoch-02", "epoch-03"]
    assert rows["epoch"].tolist() == [1, 2, 3]
    own = {one.study_id for one in dissect.results(store, "evolution")}
    assert own == {rows["checkpoint_study_id"].iloc[-1]}
    studies = {one.study_id for one in list_results(Store(str(store)))}
    assert studies == set(rows["checkpoint_study_id"])
    assert dissect.run_only(store, *words).computed == []
    with pytest.raises(SettingsError, match="checkpoints has 1 checkpoint, must have 2 at least"):
        dissect.run_only(store, *words, "model.epochs=1")


def refused(store: Path, *words: str) -> Ended:
    """A run that is refused in one line, with nothing done or announced."""
    ended = raydissect("run", f"store={store}", "cluster=inline", *words)
    assert ended.code == 2, ended.err
    assert ended.err.count("raydissect: ") == 1
    assert list_results(Store(str(store))) == []
    assert Store(str(store)).list("runs") == []
    return ended


def test_a_checkpoint_of_another_network_is_named(store, source, ck):
    net(ck / "epoch-3.safetensors", 3, **VARIANTS["minialexnet"])
    ended = refused(store, *words_of(source, ck / "epoch-10.safetensors", f"checkpoints={ck}/epoch-*.safetensors"))
    assert f"checkpoint {ck}/epoch-3.safetensors: " in ended.err
    assert "features.0.weight" in ended.err


def test_another_number_of_classes_is_named_where_it_is_looked_at(store, source, ck):
    net(ck / "epoch-3.safetensors", 3, num_classes=5)
    chosen = [ck / "epoch-10.safetensors", f"checkpoints={ck}/epoch-*.safetensors"]
    ended = refused(store, *words_of(source, *chosen, layers=("logits",)))
    assert f"checkpoint {ck}/epoch-3.safetensors is of another network: layer classifier.3 has 5 units" in ended.err
    assert "has 8" in ended.err
    assert points_of(store, *words_of(source, *chosen))[1] == ("epoch-3", 3)


@pytest.mark.parametrize(
    ("listed", "told"),
    [
        ("[{ck}/nothing-*.safetensors]", "which matches no file of weights"),
        ("[{ck}/epoch-2.safetensors,{ck}/epoch-3.safetensors]", "checkpoint {ck}/epoch-3.safetensors: "),
        ("[{ck}/broken.safetensors]", "checkpoint {ck}/broken.safetensors: "),
        ("[{ck}/epoch-10.safetensors]", "checkpoints has 1 checkpoint, must have 2 at least"),
        ("[]", "checkpoints is empty: give files of weights in the order of the training"),
        ("[V1]", "checkpoint V1: weights of mininet is 'V1', must be one of random"),
        ("[store:weights/none.safetensors]", "checkpoint store:weights/none.safetensors: "),
    ],
)
def test_lists_that_cannot_be_followed_are_refused(store, source, ck, listed, told):
    (ck / "broken.safetensors").write_bytes((ck / "epoch-2.safetensors").read_bytes()[:1000])
    words = words_of(source, ck / "epoch-10.safetensors", f"checkpoints={listed.format(ck=ck)}")
    assert told.format(ck=ck) in refused(store, *words).err


def test_signatures_of_urls_are_not_told(store, source, ck, monkeypatch):
    words = words_of(source, ck / "epoch-10.safetensors", "checkpoints=[random,https://h/e.pt?sig=secret]")
    settings = dissect.settings(store, *words)
    subject = prepare(settings)

    def unreadable(other, on_progress=None):
        raise ModelError(f"cannot read {other.model.weights} at all")

    monkeypatch.setattr("pipeline.follow.prepare", unreadable)
    with pytest.raises(ModelError) as told:
        follow(settings, subject, settings.stages_by_name())
    assert str(told.value) == "checkpoint https://h/e.pt: cannot read https://h/e.pt at all"


def test_settings_that_do_not_fit_are_refused_before_checkpoints_are_dissected(store, source, ck):
    words = words_of(source, ck / "epoch-10.safetensors", f"checkpoints={ck}/epoch-*.safetensors")
    assert "units has 48, layer features.4 has units 0 to 47" in refused(store, *words, "units=[48]").err
    more = ["stages=[evolution,activation_maximization]", "preset=plain", "seeds=33"]
    words = [word for word in words if not word.startswith(("stages", "batch", "units"))]
    assert "seeds=33 is more than batch" in refused(store, *words, *more).err


def test_networks_with_other_nonlinearities_are_refused_before_anything_runs(store, source, tmp_path):
    import torchvision

    path = tmp_path / "other.safetensors"
    save_file(torchvision.models.mobilenet_v3_small().state_dict(), path)
    words = [word for word in words_of(source, "random", layers=("features.1",)) if not word.startswith("model=")]
    ended = refused(store, "model=mobilenet_v3_small", *words, f"checkpoints=[{path}]")
    assert "rule=deconvnet is defined for ReLU alone" in ended.err
    assert "hardswish" in ended.err


def test_a_run_that_is_stopped_while_a_checkpoint_is_dissected_is_resumed_as_a_whole(store, source, ck):
    words = words_of(source, ck / "epoch-10.safetensors", f"checkpoints={ck}/epoch-*.safetensors")
    settings = dissect.settings(store, *words)

    def on_progress(title, *_):
        if title == "tally":
            raise KeyboardInterrupt

    with make_executor(settings.cluster) as executor, pytest.raises(KeyboardInterrupt):
        run(settings, executor, on_progress)
    before = {one.result_id for one in list_results(Store(str(store)))}
    assert len(Store(str(store)).list("tables/runs")) == 1
    assert raydissect("status", f"store={store}").code == 0
    changed = raydissect("run", "--resume", "last", f"store={store}", "settled=0.5")
    assert changed.code == 2
    assert "stage.evolution.settled: " in changed.err
    ended = raydissect("run", "--resume", "last", f"store={store}")
    assert ended.code == 0, ended.err
    assert dissect.read_table(store, "evolution_layers")["checkpoint"].tolist() == ["epoch-2", "epoch-9", "epoch-10"]
    made = [one.result_id for one in list_results(Store(str(store)))]
    assert before < set(made)
    assert len(made) == len(set(made))


def write_schedule(folder: Path, store: Path, ck: Path) -> Path:
    path = folder / "nightly.yaml"
    given = {"units": "[0,1]", "cluster": "inline", "quantile": 0.1, "tail_quantile": 0.2, "cluster.decode_threads": 1}
    lines = [f"  {name}: {value}" for name, value in given.items()]
    path.write_text(
        "\n".join(
            [
                f"store: {store}",
                "settings:",
                *lines,
                f'  checkpoints: ["{ck}/epoch-*.safetensors"]',
                "jobs:",
                f"- {{models: mininet, checkpoints: {ck.parent}/final.safetensors, data: broden, layers: {LAYER}, "
                "stages: evolution}",
            ]
        )
    )
    return path


def test_a_schedule_finds_an_evolution_done_until_there_is_another_checkpoint(store, ck, tmp_path):
    net(tmp_path / "final.safetensors", 11)
    schedule = write_schedule(tmp_path, store, ck)

    def reasons() -> list[str]:
        return [step.reason for step in make_schedule_plan(read_schedule(schedule)).steps]

    def task():
        (one,) = expand(read_schedule(schedule)).tasks
        return one

    assert reasons() == ["new"]
    ended = raydissect("run", *task().words)
    assert ended.code == 0, ended.err
    assert Planner(Store(str(store))).look(task())[2]
    assert reasons() == ["done"]  # though run by hand
    ended = raydissect("reprocess", schedule)
    assert ended.code == 0, ended.err
    assert "1 tasks found done, 0 computed" in ended.out
    net(ck / "epoch-5.safetensors", 5)
    before = set(Store(str(store)).list(""))
    assert reasons() == ["new or changed checkpoints"]
    assert set(Store(str(store)).list("")) == before  # a plan writes nothing
    shutil.rmtree(ck)
    (step,) = make_schedule_plan(read_schedule(schedule)).steps
    assert "matches no file of weights" in (step.problem or "")
    records, _ = read_records(Store(str(store)), [task()])
    assert len(records) == 1


def test_checkpoints_are_listed_without_loading_any(store, ck):
    def listed(*patterns: str) -> list[str]:
        return list_checkpoints(Evolution(checkpoints=patterns), Store(str(store)), "x.pt", "")

    assert listed("random", f"{ck}/epoch-?.safetensors") == ["random", *(f"{ck}/epoch-{n}.safetensors" for n in (2, 9))]
    with pytest.raises(InputError, match="chained URLs"):
        listed("simplecache::s3://bucket/*.pt")


def test_another_preprocessing_is_refused(store, source, ck, monkeypatch):
    whole = prepare

    def other(settings, on_progress=None):
        found = whole(settings, on_progress)
        if settings.model.weights.endswith("epoch-9.safetensors"):
            size = {**found.study.preprocessing, "interpolation": "bicubic"}
            object.__setattr__(found, "study", found.study.model_copy(update={"preprocessing": size}))
        return found

    monkeypatch.setattr("pipeline.follow.prepare", other)
    with pytest.raises(ModelError, match=r"epoch-9\.safetensors wants images as .*bicubic"):
        followed(store, *words_of(source, ck / "epoch-10.safetensors", f"checkpoints={ck}/epoch-*.safetensors"))

"""Every benchmark on a tiny network and tiny images: its figures are there and make sense, whatever their values."""

import re
from collections import Counter
from dataclasses import replace
from pathlib import Path
from time import perf_counter

import pytest
import torch
from typer.testing import CliRunner

from benchmarks.__main__ import BENCHMARKS, ON_GPU, WITH_BARS, app
from benchmarks.activation_maximization import BARS, Climb, activation_maximization, looks, surplus_looks
from benchmarks.all_layers import all_layers
from benchmarks.bare import BareForward
from benchmarks.bench import TO_DETECTORS, Bench
from benchmarks.concepts import concepts
from benchmarks.data import ROOT, write_specks
from benchmarks.deconvnet import UNITS, Pairs, deconvnet
from benchmarks.figure import Figure
from benchmarks.forward_share import forward_share
from benchmarks.images import images
from benchmarks.memory import memory
from benchmarks.networks import MININET
from benchmarks.null import null
from benchmarks.staged import staged
from benchmarks.units import units
from benchmarks.workers import workers
from workers.methods.activation_maximization import PRESETS
from workers.nn.relus import LayerFunction


@pytest.fixture(scope="module")
def bench(tmp_path_factory) -> Bench:
    folder = tmp_path_factory.mktemp("bench")
    return Bench(folder, rounds=1, images=8, photographs=write_specks(folder / "specks", 32, distinct=8))


def by_name(figures: list[Figure]) -> dict[str, Figure]:
    assert all(value > 0 for figure in figures for value in figure.values)
    assert len({figure.name for figure in figures}) == len(figures)
    return {figure.name: figure for figure in figures}


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_a_dissection_goes_to_detectors_and_leaves_the_store_as_it_was(bench):
    ingested = bench.ingested(8)
    before = files_of(ingested)
    start = perf_counter()
    done = bench.dissect(ingested, MININET)
    wall = perf_counter() - start
    assert list(done.stages) == TO_DETECTORS
    assert not {"exemplars", "activation_maximization"} & set(done.stages)
    assert done.load_seconds > 0
    assert sum(done.stages.values()) < done.seconds
    assert done.seconds + done.load_seconds < wall
    assert files_of(ingested) == before


def test_a_bare_forward_pass_reaches_every_image_and_no_further_layer(bench, monkeypatch):
    bare = BareForward(bench, bench.ingested(8), MININET, "features.4")
    called = []
    module = bare._model.module
    for name in ("features.4", "features.5"):
        module.get_submodule(name).register_forward_hook(
            lambda _m, _i, output, name=name: called.append((name, len(output)))
        )
    passed = bare.run()
    assert called == [("features.4", 8)]
    assert 0 < passed.forward_seconds < passed.seconds
    assert passed.decode_seconds > 0


def test_forward_share(bench):
    figures = by_name(list(forward_share(bench, (MININET,))))
    one = figures["dissection / bare forward, MiniNet features.9, 8 images"]
    every = figures["dissection / bare forward, MiniNet auto, 4 images"]
    assert one.median > 1
    assert every.median > 1
    shares = [name for name in figures if name.startswith("share of stage")]
    assert len(shares) == len(TO_DETECTORS)
    assert sum(figures[name].median for name in shares) < 1


def test_growth(bench):
    assert "all 5 auto layers / one layer, MiniNet, 8 images" in by_name(list(all_layers(bench, MININET)))
    assert [figure.unit for figure in images(bench, MININET)] == ["ms", "ms", "ms", "x", "x"]
    assert len(by_name(list(units(bench, MININET, {"features.1": 32, "features.9": 96})))) == 2
    assert len(by_name(list(null(bench, (MININET,))))) == 1
    assert len(by_name(list(staged(bench, MININET)))) == 5


def test_concepts_run_no_network_in_a_round(bench):
    names = list(by_name(list(concepts(bench, MININET))))
    numbers = [int(re.search(r"(\d+) concepts", name).group(1)) for name in names]  # pyright: ignore
    assert numbers[0] == 4
    assert numbers[1] > 2 * numbers[0]  # so few images hold a concept that there are no ten of each
    assert numbers[2] > 20


def test_memory_is_of_a_process_of_its_own(bench):
    few, many, ratio = memory(bench, 4, 8)
    assert 50 < few.median < 5000
    assert ratio.values == (many.median / few.median,)


def test_deconvnet(bench):
    figures = by_name(list(deconvnet(bench, (MININET,), number=2)))
    assert len(figures) == 5
    assert sum(figure.bar is not None for figure in figures.values()) == 4
    assert all("MiniNet features.9, 2 images" in name for name in figures)


def test_deconvnet_times_as_many_pairs_on_either_side(bench, monkeypatch):
    pairs = Pairs(bench, MININET, 2)
    forward, original = [], LayerFunction.__call__

    def count(self, images, redirected=False):
        forward.append(len(images))
        return original(self, images, redirected)

    monkeypatch.setattr(LayerFunction, "__call__", count)
    pairs.bare(UNITS)
    assert forward == [2] * UNITS
    rows, row = [], pairs._stage.row

    def note(*arguments):
        rows.append(row(*arguments))

    object.__setattr__(pairs, "_stage", type("Stage", (), {"row": staticmethod(note)}))
    forward.clear()
    pairs.rows(UNITS)
    assert forward == [2]
    assert sorted((one["image_id"], one["unit"]) for one in rows) == [(i, u) for i in range(2) for u in range(UNITS)]


def test_activation_maximization(bench):
    early = replace(MININET, layer="features.1")
    figures = by_name(list(activation_maximization(bench, (MININET,), early, number=2)))
    what = "MiniNet features.9, 2 units, 112 px"
    for preset, bar in BARS.items():
        assert figures[f"{preset} / bare gradient, {what}"].bar == bar
        ratio = figures[f"bare gradient, {what}"].median / figures[f"{preset}, {what}"].median
        assert figures[f"{preset} / bare gradient, {what}"].median == pytest.approx(ratio)
    batches = [figure for name, figure in figures.items() if name.startswith("units/s")]
    assert [figure.bar for figure in batches] == [None, None]  # one image keeps a CPU busy
    assert batches[1].name.endswith("MiniNet features.1, 2 units, 48 px")
    shown = list(activation_maximization(replace(bench, only_bars=True), (MININET,), early, number=2))
    assert [figure.name for figure in shown] == list(figures)[:-2]


@pytest.mark.parametrize("preset", BARS)
def test_a_climb_takes_a_pass_a_step_and_the_looks_that_are_taken_off(bench, monkeypatch, preset):
    passes = []
    call = LayerFunction.__call__

    def count(self, images, redirected=False):
        passes.append((len(images), tuple(images.shape[2:]), torch.is_grad_enabled()))
        return call(self, images, redirected)

    climb = Climb(bench, MININET, 2)
    monkeypatch.setattr(LayerFunction, "__call__", count)
    climb.climb(preset, 4)
    recipe = replace(PRESETS[preset], steps=4)
    assert Counter(passes) == {(2, (112, 112), True): 4, (2, (112, 112), False): looks(recipe)}
    passes.clear()
    climb.gradients(4)
    assert Counter(passes) == {(2, (112, 112), True): 4}
    passes.clear()
    climb.climb(preset, 4, singly=True)
    assert Counter(passes) == {(1, (112, 112), True): 8, (1, (112, 112), False): 2 * looks(recipe)}


def test_few_steps_have_more_looks_than_their_share():
    plain, fourier = PRESETS["plain"], PRESETS["fourier"]
    assert (looks(plain), looks(fourier)) == (1, 33)
    assert surplus_looks(plain, 4) == 1 - 4 / 400
    assert surplus_looks(fourier, 4) == 2 - 33 * 4 / 512
    assert surplus_looks(fourier, 512) == 0


@pytest.mark.cluster
def test_workers(bench):
    one, two, ratio = workers(bench, MININET)
    assert ratio.values == (pytest.approx(two.median / one.median),)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [(["images", "imges"], "imges"), (["images", "--data", "nowhere"], "nowhere"), (["--device", "tpu"], "tpu")],
)
def test_the_command_refuses_what_it_does_not_know(arguments, named):
    ended = CliRunner().invoke(app, [*arguments, "--images", "4"])
    assert ended.exit_code == 2
    assert named in ended.output


def test_every_benchmark_is_explained():
    text = (ROOT / "BENCHMARKS.md").read_text()
    assert [name for name in BENCHMARKS if f"`{name}`" not in text] == []
    assert all((ROOT / "benchmarks" / f"{name}.py").exists() for name in BENCHMARKS)
    assert {*WITH_BARS, *ON_GPU} <= set(BENCHMARKS)

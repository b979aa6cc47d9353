"""Every benchmark on a tiny network and tiny images: its figures are there and make sense, whatever their values."""

import re
from pathlib import Path
from time import perf_counter

import pytest
from typer.testing import CliRunner

from benchmarks.__main__ import BENCHMARKS, app
from benchmarks.all_layers import all_layers
from benchmarks.bare import BareForward
from benchmarks.bench import TO_DETECTORS, Bench
from benchmarks.concepts import concepts
from benchmarks.data import ROOT, write_specks
from benchmarks.figure import Figure
from benchmarks.forward_share import forward_share
from benchmarks.images import images
from benchmarks.memory import memory
from benchmarks.networks import MININET
from benchmarks.null import null
from benchmarks.staged import staged
from benchmarks.units import units
from benchmarks.workers import workers


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
    assert "exemplars" not in done.stages
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

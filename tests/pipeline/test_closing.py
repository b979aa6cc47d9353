"""A run's last lines: of the stages that were asked for, and of its own results alone."""

import re

import pytest
import torch
from safetensors.torch import save_file

from tests import dissect, small
from tests.command import raydissect
from workers.networks.mininet import MiniNet

LAYER = "features.4"


@pytest.fixture(scope="module")
def words(tmp_path_factory) -> list[str]:
    """A store with two checkpoints, and what dissects the second."""
    folder = tmp_path_factory.mktemp("closing")
    for epoch in (1, 2):
        save_file(MiniNet(8, torch.Generator().manual_seed(epoch)).state_dict(), folder / f"epoch-{epoch}.safetensors")
    chosen = small.overrides(small.write_source(folder / "source"), f"checkpoints={folder}/epoch-*.safetensors", layers=(LAYER,))  # fmt: skip
    chosen = [word for word in chosen if not word.startswith("model.weights")]
    chosen += [f"model.weights={folder}/epoch-2.safetensors", "units=[0,1,2]"]
    dissect.ingest_and_run(folder / "store", *chosen, "stages=[dissect,deconvnet,diagnosis,evolution]")
    return ["run", f"store={folder / 'store'}", "cluster=inline", *chosen]


def closing(words: list[str], stages: str) -> list[str]:
    ended = raydissect(*words, f"stages=[{stages}]")
    assert ended.code == 0, ended.err
    return ended.out.splitlines()[3:]  # after the study and its one layer's detectors


def test_patterns_by_layer_and_rule(words):
    header, row = closing(words, "deconvnet")
    assert re.split(" {2,}", header) == ["layer", "rule", "units", "patterns"]
    assert re.fullmatch(rf"{LAYER} +deconvnet +[123] +\d+", row)


def test_a_verdict_a_layer(words):
    header, row = closing(words, "diagnosis")
    assert header.split() == ["layer", "verdict"]
    assert row.startswith(f"{LAYER}  ")
    assert len(row.split()) > 2


def test_when_layers_settle(words):
    header, row = closing(words, "evolution")
    assert header.startswith("layer       checkpoints  settled from")
    assert re.fullmatch(rf"{LAYER} +2 +epoch-2 +-?\d\.\d{{3}} +\d+ to \d+", row)


def test_several_stages_one_after_another_and_none_unasked(words):
    assert [line.split()[0] for line in closing(words, "evolution,deconvnet")] == ["layer", LAYER] * 2
    assert closing(words, "dissect") == []

"""A data set of a dozen images and an untrained MiniNet: whole dissections in a second."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from pipeline.plan import make_plan
from pipeline.run import prepare
from pipeline.stage import Job, LayerJob, Stage
from pipeline.store import Store
from schemas import TABLES
from tests import dissect
from tests.tiny_broden import TinyImage, encode_image, tiny_images, write_broden
from workers.networks.mininet import MiniNet

LAYERS = ("features.4", "features.6", "classifier.2")
"""After a ReLU, before one, and fully connected: a grid of one cell."""

SIZES = ((6, 5), (9, 12), (1, 7))
"""Label maps of several sizes in one shard, one of them smaller than the layers' grids."""


def images(number: int = 13, labels: int = 0) -> list[TinyImage]:
    """Blotches from dark to bright, that do not depend on `labels`, the seed of what labels them."""
    generator = np.random.default_rng(0)
    found = []
    for index in range(number):
        blotches = generator.integers(0, 256, (3, 2, 3)).repeat(4, 0).repeat(5, 1) * (index + 1) / number
        labelled = tiny_images(number, seed=labels, label_size=SIZES[index % len(SIZES)])[index]
        found.append(replace(labelled, data=encode_image(blotches.astype(np.uint8))))
    return found


def write_source(folder: Path, number: int = 13, labels: int = 0) -> Path:
    return write_broden(folder, images(number, labels))


def overrides(source: Path | str, *more: str, layers: tuple[str, ...] = LAYERS) -> list[str]:
    """Settings under which even a grid of one cell has masks."""
    return [
        "data=broden", f"data.root={source}", "data.shard_size=4", "data.batch_size=2", "data.threads=1",
        "model=mininet", "model.weights=random", "quantile=0.1", "tail_quantile=0.2",
        f"layers=[{','.join(layers)}]", *more,
    ]  # fmt: skip


def job_of(name: str, store: Path | str, *chosen: str) -> tuple[Stage, Job]:
    """A stage and its job, with the results it reads, as a run would hand them to a worker."""
    settings = dissect.settings(store, *chosen)
    subject, stages = prepare(settings), settings.stages_by_name()
    stage = stages[name]
    plan = make_plan(subject.store, subject.study, list(subject.layers), [name], stages)
    layers = {
        layer.name: LayerJob(
            layer,
            plan.ids[name, layer.name],
            stage.settings_of(layer.name),
            {read: plan.published[read, layer.name] for read in stage.reads()},
        )
        for layer in subject.layers.values()
    }
    return stage, Job(subject.store, subject.study, subject.manifest, subject.model, "cpu", layers)


def same_tables(first: Path | str, second: Path | str, *names: str) -> None:
    """Assert that two stores hold the same rows, whatever the ids of their results."""
    for name in names:
        left, right = (dissect.read_table(store, name) for store in (first, second))
        keys = [column for column in TABLES[name].sort if column in left]
        left, right = (table.sort_values(["layer", *keys]).reset_index(drop=True) for table in (left, right))
        assert len(left) > 0, name
        assert left.equals(right), name


def open_store(store: Path | str) -> Store:
    return Store(str(store))


def write_weights(path: Path, changes: dict) -> Path:
    """An untrained MiniNet's weights, with a value put at a place of some of them."""
    state = MiniNet(generator=torch.Generator().manual_seed(0)).state_dict()
    for name, (place, value) in changes.items():
        state[name][place] = value
    save_file(state, path)
    return path

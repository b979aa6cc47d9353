"""Runs of the real pipeline, and what the oracle says of the same activations and labels."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image

from pipeline.compose import RunSettings, compose_settings
from pipeline.executor import make_executor
from pipeline.ingest import ingest
from pipeline.results import Result, list_results
from pipeline.run import run
from pipeline.runner import Outcome
from pipeline.stage import Job, LayerJob
from pipeline.stages.forward import picture_reader, record_layers
from pipeline.store import Store
from pipeline.study import list_studies
from pipeline.subject import Subject, prepare
from pipeline.views import open_tables
from schemas import TABLES
from tests import oracle

KEYS = ["study_id", "result_id"]

OTHERS = ("activation_maximization", "deconvnet", "diagnosis", "evolution")
"""Stages, or how their tables' names begin, that a dissection does not run."""

DISSECTED = [name for name in TABLES if not name.startswith(OTHERS)]
"""The tables that a dissection fills."""


def settings(store: Path | str, *overrides: str) -> RunSettings:
    return compose_settings([f"store={store}", "cluster=inline", *overrides])


def ingest_and_run(store: Path | str, *overrides: str) -> Outcome:
    chosen = settings(store, *overrides)
    ingest(chosen.data, Store(chosen.store))
    return run_only(store, *overrides)


def run_only(store: Path | str, *overrides: str, verify: bool = False) -> Outcome:
    chosen = settings(store, *overrides)
    with make_executor(chosen.cluster) as executor:
        return run(chosen, executor, verify=verify)


def read_table(store: Path | str, name: str) -> pd.DataFrame:
    """All rows of a published table, without the ids that differ from run to run."""
    table = open_tables(Store(str(store)))[name]
    table = table.to_table() if hasattr(table, "to_table") else table
    return table.to_pandas().drop(columns=[key for key in KEYS if key in table.schema.names])


def results(store: Path | str, stage: str) -> list[Result]:
    return [result for result in list_results(Store(str(store))) if result.stage == stage]


def published(store: Path | str) -> dict[tuple[str, str, str, str], tuple[str, int]]:
    """Hash and rows of every published file, by stage, layer, result and table."""
    return {
        (result.stage, result.layer, result.result_id, name): (file.sha256, file.rows)
        for result in list_results(Store(str(store)))
        for name, file in result.tables.items()
    }


@dataclass
class Recorded:
    """Everything the oracle starts from: activations by layer (image unit h w), labels, own categories."""

    subject: Subject
    activations: dict[str, np.ndarray]
    annotated: list[oracle.Annotated]
    category: dict[int, str]

    def geometry(self, layer: str) -> oracle.Geometry:
        size, field = self.subject.study.preprocessing, self.subject.layers[layer].field
        return oracle.Geometry(
            size["height"], size["width"], field.offset_y, field.offset_x, field.stride_y, field.stride_x
        )


def record_everything(source: Path, store: Path | str, *overrides: str) -> Recorded:
    """The same forward pass as the pipeline's, batch by batch, with every activation kept."""
    subject = prepare(settings(store, *overrides))
    jobs = {name: LayerJob(layer, "", {}) for name, layer in subject.layers.items()}
    job = Job(subject.store, subject.study, subject.manifest, subject.model, "cpu", jobs)
    model, parts = job.load_model(), {name: [] for name in jobs}
    read = picture_reader(job, model)
    threads = torch.get_num_threads()
    torch.set_num_threads(subject.study.numerics.threads)
    try:
        with torch.inference_mode():
            for shard in job.shards:
                pictures = read(shard)
                record_layers(job, model, pictures, lambda layer, _, act: parts[layer].append(act.clone().numpy()))
    finally:
        torch.set_num_threads(threads)
    concepts = job.concepts.to_pandas()
    present = concepts[concepts["pixels"] > 0]
    annotated = read_labels(source, [path for shard in job.shards for path in _paths(subject.store, shard.path)])
    category = dict(zip(present["concept_id"].tolist(), present["category"], strict=True))
    return Recorded(subject, {name: np.concatenate(part) for name, part in parts.items()}, annotated, category)


def read_labels(source: Path, paths: list[str]) -> list[oracle.Annotated]:
    """Labels straight from a Broden folder, none of the pipeline's code in between."""
    index = pd.read_csv(source / "index.csv", dtype=str, keep_default_na=False).set_index("image")
    categories = [name for name in index.columns if name not in ("split", "ih", "iw", "sh", "sw")]
    annotated = []
    for path in paths:
        row = index.loc[path]
        entries = [entry for name in categories for entry in row[name].split(";") if entry]
        planes = [_plane(source / "images" / entry) for entry in entries if not entry.isdigit()]
        whole = [int(entry) for entry in entries if entry.isdigit()]
        annotated.append(oracle.Annotated(row["split"], int(row["sh"]), int(row["sw"]), planes, whole))
    return annotated


def _plane(path: Path) -> np.ndarray:
    pixels = np.asarray(Image.open(io.BytesIO(path.read_bytes())).convert("RGB")).astype(np.int64)
    return pixels[..., 0] + 256 * pixels[..., 1]


def _paths(store: Store, shard: str) -> list[str]:
    return [image["path"] for image in store.read_table(shard, ["image"])["image"].to_pylist()]


def only_study(store: Path | str) -> str:
    (study_id,) = list_studies(Store(str(store)))
    return study_id

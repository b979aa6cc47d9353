"""Activations of a shard: as the pilot left them, or else by a forward pass."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from pipeline.errors import AlteredError
from pipeline.results import staging_path
from pipeline.sealed import read_sealed
from pipeline.stage import Job, LayerJob, stage_table
from pipeline.stages.forward import Pictures, picture_reader, record_layers
from pipeline.threads import at_once
from workers.worker import Shard

ACTIVATION = ".activation.arrow"

Kept = dict[str, list[Tensor]]
"""Activations by layer, batch by batch: image unit h w."""


@dataclass(frozen=True)
class KeptActivations:
    """What the pilot left of a shard."""

    shard: Shard
    image_ids: list[int]
    activations: Kept


class ActivationSource:
    """Hands over a shard's activations batch by batch, the same whether they were kept or are made now."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._model = job.load_model()
        self._decode = picture_reader(job, self._model)

    def read(self, shard: Shard) -> Pictures | KeptActivations:
        """What the pilot left of all the shard's layers, or its images."""
        found = at_once(lambda name: _read_activation(self._job, self._job.layers[name], shard), shard.layers)
        kept = {name: batches for name, batches in zip(shard.layers, found, strict=True) if batches is not None}
        if len(kept) < len(shard.layers):
            return self._decode(shard)
        return KeptActivations(shard, list(range(shard.first_image, shard.first_image + shard.rows)), kept)

    def each(self, source: Pictures | KeptActivations, on_activation: Callable[[str, int, Tensor], None]) -> None:
        """Call `on_activation` with layer, first image's place in the shard, and activation: see `record_layers`."""
        if isinstance(source, Pictures):
            record_layers(self._job, self._model, source, on_activation)
            return
        step = self._job.manifest.batch_size
        for place, start in enumerate(range(0, len(source.image_ids), step)):
            for name, batches in source.activations.items():
                on_activation(name, start, batches[place].to(self._job.device))


def keep_activation(job: Job, layer: LayerJob, shard: Shard, batches: list[Tensor]) -> int:
    """Leave a shard's whole activation in the pilot's staging, a batch after another; bytes written."""
    cells = [pa.array(batch.flatten().numpy()) for batch in batches]
    maps = pa.chunked_array([pa.FixedSizeListArray.from_arrays(batch, layer.layer.cells) for batch in cells])
    return stage_table(job.store, layer.result_id, _activation_file(shard), pa.table({"map": maps})).bytes


def _read_activation(job: Job, layer: LayerJob, shard: Shard) -> list[Tensor] | None:
    """Batch by batch, as the pilot had them; None where there is nothing of the shard's length."""
    path = staging_path(layer.inputs["pilot"].result_id, _activation_file(shard))
    try:
        maps = read_sealed(job.store, path)[1]["map"]
    except AlteredError:  # none was left, or another run that is done with it has just removed it
        return None
    found = layer.layer
    shape = (-1, found.num_units, found.height, found.width)
    return [torch.from_numpy(np.array(batch.flatten())).view(shape) for batch in maps.chunks]


def forget_activations(job: Job, layer: LayerJob) -> None:
    """Remove what the pilot left of a layer, once a record has it."""
    pilot = layer.inputs["pilot"].result_id
    for path in job.store.list(f"staging/{pilot}"):
        if path.endswith(ACTIVATION):
            job.store.remove(path)


def _activation_file(shard: Shard) -> str:
    return f"{shard.name}{ACTIVATION}"

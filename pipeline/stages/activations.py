"""Activations of a shard: as the pilot left them, or else by a forward pass."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from pipeline.errors import StoreError
from pipeline.results import staging_path
from pipeline.stage import Job, LayerJob, stage_table
from pipeline.stages.forward import Pictures, picture_reader, record_layers
from workers.worker import Shard

ACTIVATION = ".activation.arrow"


@dataclass(frozen=True)
class KeptActivations:
    """What the pilot left of a shard, by layer: image unit h w."""

    shard: Shard
    image_ids: list[int]
    activations: dict[str, Tensor]


class ActivationSource:
    """Hands over a shard's activations batch by batch, the same whether they were kept or are made now."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._model = job.load_model()
        self._decode = picture_reader(job, self._model)

    def read(self, shard: Shard) -> Pictures | KeptActivations:
        """What the pilot left of all the shard's layers, or its images."""
        kept = {}
        for name in shard.layers:
            activation = _read_activation(self._job, self._job.layers[name], shard)
            if activation is None:
                return self._decode(shard)
            kept[name] = activation
        return KeptActivations(shard, list(range(shard.first_image, shard.first_image + shard.rows)), kept)

    def each(self, source: Pictures | KeptActivations, on_activation: Callable[[str, int, Tensor], None]) -> None:
        """Call `on_activation` with layer, first image's place in the shard, and activation: see `record_layers`."""
        if isinstance(source, Pictures):
            record_layers(self._job, self._model, source, on_activation)
            return
        step = self._job.manifest.batch_size
        for start in range(0, len(source.image_ids), step):
            for name, activation in source.activations.items():
                on_activation(name, start, activation[start : start + step].to(self._job.device))


def keep_activation(job: Job, layer: LayerJob, shard: Shard, activation: Tensor) -> int:
    """Leave a shard's whole activation (image unit h w) in the pilot's staging; bytes written."""
    cells = pa.array(activation.flatten().numpy())
    maps = pa.FixedSizeListArray.from_arrays(cells, layer.layer.cells)
    return stage_table(job.store, layer.result_id, _activation_file(shard), pa.table({"map": maps})).bytes


def _read_activation(job: Job, layer: LayerJob, shard: Shard) -> Tensor | None:
    path = staging_path(layer.inputs["pilot"].result_id, _activation_file(shard))
    try:
        maps = job.store.read_table(path)["map"].combine_chunks().flatten()
    except StoreError:  # none was left, or another run that is done with it has just removed it
        return None
    found = layer.layer
    return torch.from_numpy(np.array(maps)).view(shard.rows, found.num_units, found.height, found.width)


def forget_activations(job: Job, layer: LayerJob) -> None:
    """Remove what the pilot left of a layer, once a record has it."""
    pilot = layer.inputs["pilot"].result_id
    for path in job.store.list(f"staging/{pilot}"):
        if path.endswith(ACTIVATION):
            job.store.remove(path)


def _activation_file(shard: Shard) -> str:
    return f"{shard.name}{ACTIVATION}"

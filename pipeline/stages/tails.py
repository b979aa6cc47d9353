"""Reading tail maps back: a shard's maps of one layer, whichever record they came from."""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Float32, Int64
from torch import Tensor

from pipeline.columns import to_tensor
from pipeline.results import Result, staging_path
from pipeline.stage import Job, LayerJob
from schemas.staging import UNIT_STATISTICS
from workers.worker import Shard

SUPPLEMENT = "record+"
"""The input that holds the units whose bound was too high: all their maps."""


@dataclass(frozen=True)
class ShardMaps:
    """Tail maps of one shard and layer, in the order of image and unit."""

    image_id: Int64[Tensor, " map"]
    unit: Int64[Tensor, " map"]
    max: Float32[Tensor, " map"]
    map: Float32[Tensor, "map cell"]

    def __getitem__(self, index: Tensor) -> "ShardMaps":
        return ShardMaps(self.image_id[index], self.unit[index], self.max[index], self.map[index])


def read_tail_maps(job: Job, layer: LayerJob, shard: Shard) -> ShardMaps:
    """All maps of a shard that may hold cells above a threshold; each image and unit once."""
    maps = _read(job, layer.inputs["record"], shard)
    supplement = layer.inputs.get(SUPPLEMENT)
    if supplement is None:
        return maps
    again = torch.zeros(layer.layer.num_units, dtype=torch.bool)
    again[supplement.settings["units"]] = True
    kept, added = maps[~again[maps.unit]], _read(job, supplement, shard)
    merged = ShardMaps(
        torch.cat([kept.image_id, added.image_id]),
        torch.cat([kept.unit, added.unit]),
        torch.cat([kept.max, added.max]),
        torch.cat([kept.map, added.map]),
    )
    order = np.lexsort((merged.unit.numpy(), merged.image_id.numpy()))
    return merged[torch.from_numpy(order)]


def read_unit_statistics(job: Job, layer: LayerJob) -> pa.Table:
    """One row a unit; of a unit that was recorded again, the second record's."""
    table = _statistics(job, layer.inputs["record"])
    supplement = layer.inputs.get(SUPPLEMENT)
    if supplement is None:
        return table
    again = _statistics(job, supplement)
    rows = np.arange(len(table))
    rows[supplement.settings["units"]] += len(table)
    return pa.concat_tables([table, again]).take(pa.array(rows)).select(UNIT_STATISTICS.schema.names)


def read_top_images(job: Job, layer: LayerJob) -> pa.Table:
    """Images with the largest maxima of every unit, descending."""
    table = job.store.read_table(staging_path(layer.inputs["record"].result_id, "top_images.arrow"))
    supplement = layer.inputs.get(SUPPLEMENT)
    if supplement is None:
        return table
    again = job.store.read_table(staging_path(supplement.result_id, "top_images.arrow"))
    kept = ~np.isin(table["unit"].to_numpy(), supplement.settings["units"])
    return pa.concat_tables([table.filter(pa.array(kept)), again])


def _statistics(job: Job, record: Result) -> pa.Table:
    table = job.store.read_table(staging_path(record.result_id, "units.arrow"))
    return table.replace_schema_metadata(None)


def _read(job: Job, record: Result, shard: Shard) -> ShardMaps:
    table = job.store.read_table(staging_path(record.result_id, f"{shard.name}.maps.arrow")).combine_chunks()
    cells = table.schema.field("map").type.list_size
    flat = pa.concat_arrays(table["map"].chunks).flatten() if len(table) else pa.array([], pa.float32())
    return ShardMaps(
        to_tensor(table, "image_id"),
        to_tensor(table, "unit", np.int64),
        to_tensor(table, "max"),
        torch.from_numpy(np.array(flat)).view(-1, cells),
    )

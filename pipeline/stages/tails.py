"""What a record left, read back: a shard's tail maps and cells, whichever record they came from.

Maps that were not kept are made again: `MapSource` hides the difference.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Bool, Float32, Int64
from torch import Tensor

from pipeline.columns import to_tensor
from pipeline.results import Result, staging_path
from pipeline.sealed import read_sealed
from pipeline.stage import Job, LayerJob
from pipeline.stages.forward import Pictures, picture_reader, record_layers
from pipeline.stages.record import read_choice
from schemas.staging import UNIT_STATISTICS
from workers.methods.tail_maps import TailCells, maps_above, portions, spread
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


class MapSource:
    """Hands a stage the maps that exceed a level: from staging, or where none were kept by a forward pass.

    Args:
        job: whose inputs name the records.
        levels: least maximum of a map, by layer and unit; above all bounds.
    """

    def __init__(self, job: Job, levels: dict[str, Float32[Tensor, " unit"]]) -> None:
        self._job, self._levels = job, levels
        choices = {name: read_choice(job.store, layer.inputs["record"].result_id) for name, layer in job.layers.items()}
        self._kept = {name for name, choice in choices.items() if choice.passes == "one"}
        self._model = None if self._kept == set(job.layers) else job.load_model()
        self._decode = self._model and picture_reader(job, self._model)

    @property
    def runs_network(self) -> bool:
        """Whether some maps were not kept."""
        return self._model is not None

    def read(self, shard: Shard) -> "ShardSource":
        """The tail maps of the shard's layers, and its images if some must be made again."""
        kept = {
            name: read_tail_maps(self._job, self._job.layers[name], shard, self._levels[name])
            for name in shard.layers
            if name in self._kept
        }
        others = tuple(name for name in shard.layers if name not in self._kept)
        return ShardSource(kept, self._decode(replace(shard, layers=others)) if others and self._decode else None)

    def each(self, source: "ShardSource", on_maps: Callable[[str, ShardMaps], None]) -> None:
        """Call `on_maps` with a layer and some of its maps, all of an image at once, images ascending."""
        for name, maps in source.kept.items():
            on_maps(name, maps)
        if source.pictures is None or self._model is None:
            return
        image_ids = torch.tensor(source.pictures.image_ids)
        levels = {name: level.to(self._job.device) for name, level in self._levels.items()}

        def cut(layer: str, start: int, activation: Tensor) -> None:
            for first, part in portions(activation):
                tail = maps_above(part, levels[layer])
                ids = image_ids[start + first + tail.image.cpu()]
                on_maps(layer, ShardMaps(ids, tail.unit.cpu(), tail.max.cpu(), tail.map.cpu()))

        record_layers(self._job, self._model, source.pictures, cut)


@dataclass(frozen=True)
class ShardSource:
    """What a shard's maps come from: staging, and images for the layers whose maps were not kept."""

    kept: dict[str, ShardMaps]
    pictures: Pictures | None


def read_tail_maps(job: Job, layer: LayerJob, shard: Shard, level: Float32[Tensor, " unit"]) -> ShardMaps:
    """The maps of a shard whose maximum exceeds a level above the bound; each image and unit once.

    Cells that were not kept, which no cell above the bound is beside, are minus infinity.
    """
    supplement = layer.inputs.get(SUPPLEMENT)
    if supplement is None:
        return _read(job, layer, layer.inputs["record"], shard, level)
    again = _recorded_again(layer, supplement)
    kept = _read(job, layer, layer.inputs["record"], shard, level.masked_fill(again, torch.inf))
    added = _read(job, layer, supplement, shard, level)
    merged = ShardMaps(
        torch.cat([kept.image_id, added.image_id]),
        torch.cat([kept.unit, added.unit]),
        torch.cat([kept.max, added.max]),
        torch.cat([kept.map, added.map]),
    )
    order = np.lexsort((merged.unit.numpy(), merged.image_id.numpy()))
    return merged[torch.from_numpy(order)]


def read_tail_cells(job: Job, layer: LayerJob, shard: Shard) -> TailCells:
    """The shard's cells above their unit's bound; of units that were recorded again, all cells."""
    cells = _read_cells(job, layer.inputs["record"], shard)
    supplement = layer.inputs.get(SUPPLEMENT)
    if supplement is None:
        return cells
    first = ~_recorded_again(layer, supplement)[cells.unit]
    added = _read_cells(job, supplement, shard)
    return TailCells(torch.cat([cells.unit[first], added.unit]), torch.cat([cells.value[first], added.value]))


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
    table = read_sealed(job.store, staging_path(layer.inputs["record"].result_id, "top_images.arrow"))[1]
    supplement = layer.inputs.get(SUPPLEMENT)
    if supplement is None:
        return table
    again = read_sealed(job.store, staging_path(supplement.result_id, "top_images.arrow"))[1]
    kept = ~np.isin(table["unit"].to_numpy(), supplement.settings["units"])
    return pa.concat_tables([table.filter(pa.array(kept)), again])


def _recorded_again(layer: LayerJob, supplement: Result) -> Bool[Tensor, " unit"]:
    again = torch.zeros(layer.layer.num_units, dtype=torch.bool)
    again[supplement.settings["units"]] = True
    return again


def _read_cells(job: Job, record: Result, shard: Shard) -> TailCells:
    table = read_sealed(job.store, staging_path(record.result_id, f"{shard.name}.cells.arrow"))[1]
    units = torch.from_numpy(np.array(table["unit"].to_numpy(), dtype=np.int64))
    lengths, values = _lists(table["cells"])
    return TailCells(units.repeat_interleave(lengths), values)


def _statistics(job: Job, record: Result) -> pa.Table:
    table = read_sealed(job.store, staging_path(record.result_id, "units.arrow"))[1]
    return table.replace_schema_metadata(None)


def _read(job: Job, layer: LayerJob, record: Result, shard: Shard, level: Float32[Tensor, " unit"]) -> ShardMaps:
    table = read_sealed(job.store, staging_path(record.result_id, f"{shard.name}.maps.arrow"))[1]
    image_id, unit, largest = to_tensor(table, "image_id"), to_tensor(table, "unit", np.int64), to_tensor(table, "max")
    some = largest > level[unit]
    lengths, values = _lists(table["cells"])
    bits = _bits(table["kept"])[some.numpy()]  # map byte
    kept = torch.from_numpy(np.unpackbits(bits, axis=1, count=layer.layer.cells).view(np.bool_))  # map cell
    cells = spread(kept, values[some.repeat_interleave(lengths)])
    return ShardMaps(image_id[some], unit[some], largest[some], cells)


def _lists(column: pa.ChunkedArray) -> tuple[Int64[Tensor, " row"], Tensor]:
    """A column of lists as their lengths, and what is in them one after another."""
    lists = column.combine_chunks()
    lengths, values = np.array(lists.value_lengths(), dtype=np.int64), np.array(lists.flatten())
    return torch.from_numpy(lengths), torch.from_numpy(values)


def _bits(column: pa.ChunkedArray) -> np.ndarray:
    """A column of binary values of one size, a row of bytes each."""
    rows, width = column.combine_chunks(), column.type.byte_width
    data = np.frombuffer(rows.buffers()[1] or b"", np.uint8)
    return data[rows.offset * width :][: len(rows) * width].reshape(-1, width)

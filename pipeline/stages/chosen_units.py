"""Stages that look at some units of a layer only."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, ClassVar, Literal

import pyarrow as pa
from pydantic import field_validator

from pipeline.errors import SettingsError
from pipeline.results import read_result_table, staging_path
from pipeline.sealed import read_sealed
from pipeline.stage import Job, Layer, LayerJob, Reduced, Stage, stage_table
from pipeline.threads import read_ahead
from schemas import DETECTORS, Table
from workers.worker import Shard


class UnitStage(Stage):
    """Settings that name units, and which these are."""

    units: Literal["all", "detectors"] | tuple[int, ...] = "all"

    @field_validator("units", mode="before")
    @classmethod
    def _word_or_list(cls, value: Any) -> Any:
        """A word is no list of one, though the command line cannot tell."""
        words = list(value) if isinstance(value, list | tuple) else [value]
        if words in (["all"], ["detectors"]):
            return words[0]
        try:
            return tuple(int(word) for word in words)
        except ValueError as error:
            raise ValueError(f"{value} must be all, detectors, or a list of numbers of units") from error

    @property
    def units_setting(self) -> str | list[int]:
        """What is hashed of `units`: a list in order, each once."""
        return self.units if isinstance(self.units, str) else sorted(set(self.units))

    def check(self, layer: Layer, job: Job) -> None:
        if not isinstance(self.units, str) and (bad := [u for u in self.units if not 0 <= u < layer.num_units]):
            raise SettingsError(f"units has {bad[0]}, layer {layer.name} has units 0 to {layer.num_units - 1}")

    def chosen(self, job: Job, layer: LayerJob) -> list[int]:
        """The units of a layer, ascending; before the detectors are there, as many as there may be."""
        if not isinstance(self.units, str):
            return sorted(set(self.units))
        if self.units == "all" or "detectors" not in layer.inputs:
            return list(range(layer.layer.num_units))
        columns = ["unit", "is_detector", "is_best_overall"]
        rows = read_result_table(job.store, layer.inputs["detectors"], DETECTORS, columns).to_pylist()
        return sorted(row["unit"] for row in rows if row["is_detector"] and row["is_best_overall"])


class BatchStage(UnitStage):
    """A stage whose shards are batches of one layer each, named `000000-LAYER`; each leaves some of the layer's rows."""

    partial: ClassVar[Table]  # what a shard leaves: the stage's table without the key of the result

    def marker(self, shard: Shard) -> str:
        return f"{shard.name.partition('-')[0]}.arrow"

    def writer(self, job: Job) -> Callable[[Shard, list[dict[str, Any]]], int]:
        """Writes a shard's rows, which marks it done."""

        def write(shard: Shard, rows: list[dict[str, Any]]) -> int:
            (layer,) = shard.layers
            table = self.partial.cast(pa.Table.from_pylist(rows, schema=self.partial.schema))
            return stage_table(job.store, job.layers[layer].result_id, self.marker(shard), table).bytes

        return write

    def reduce(self, job: Job, layer: LayerJob) -> Reduced:
        def read(shard: Shard) -> pa.Table:
            return read_sealed(job.store, staging_path(layer.result_id, self.marker(shard)))[1]

        only = replace(job, layers={layer.layer.name: layer})
        parts = list(read_ahead(read, self.shards(only)))
        table = pa.concat_tables(parts) if parts else self.partial.schema.empty_table()
        return Reduced({self.name: table.replace_schema_metadata(None)})

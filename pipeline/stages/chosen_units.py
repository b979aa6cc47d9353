"""Stages that look at some units of a layer only."""

from typing import Any, Literal

from pydantic import field_validator

from pipeline.errors import SettingsError
from pipeline.results import read_result_table
from pipeline.stage import Job, Layer, LayerJob, Stage
from schemas import DETECTORS


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

"""What a report shows beside the dissection: activation maximization, patterns, diagnosis, evolution."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import pyarrow as pa

from pipeline.report.data import DiagnosisData, EvolutionData, MaximizationData, PatternsData, ReportData
from pipeline.report.diagnosis import LayerDiagnosis, read_diagnosis
from pipeline.report.download import plain_columns, write_csv
from pipeline.report.evolution import Evolution, write_evolution
from pipeline.report.maximized import Sheet, write_sheet
from pipeline.report.names import page_names
from pipeline.report.patterns import PatternSheet, write_patterns


@dataclass(frozen=True)
class Extras:
    """All there is beside the dissection, dissected layers first, in the order of the network."""

    sheets: list[Sheet]
    patterns: list[PatternSheet]
    diagnoses: list[LayerDiagnosis]
    evolutions: list[Evolution]

    @property
    def layers(self) -> set[str]:
        """The names of the layers that have any of it."""
        return {one.layer for kind in (self.sheets, self.patterns, self.diagnoses, self.evolutions) for one in kind}

    def sheets_of(self, layer: str) -> list[Sheet]:
        return [one for one in self.sheets if one.layer == layer]

    def patterns_of(self, layer: str) -> list[PatternSheet]:
        return [one for one in self.patterns if one.layer == layer]

    def diagnosis_of(self, layer: str) -> LayerDiagnosis | None:
        return next((one for one in self.diagnoses if one.layer == layer), None)

    def evolution_of(self, layer: str) -> Evolution | None:
        return next((one for one in self.evolutions if one.layer == layer), None)


def write_extras(folder: Path, data: ReportData, pages: dict[str, str]) -> Extras:
    """Write all files but the pages; each table is read when it is its turn.

    Args:
        folder: of the report.
        data: the study.
        pages: the dissected layers' page names by layer.

    Raises:
        InputError: a picture that must be there is missing, in another format than the column's, or broken.
    """
    kinds = (data.maximized, data.patterns, data.diagnoses, data.evolutions)
    layers = list(dict.fromkeys([*pages, *(one.layer for kind in kinds for one in kind)]))
    maximized, patterns = _in_order(data.maximized, layers), _in_order(data.patterns, layers)
    diagnoses, evolutions = _in_order(data.diagnoses, layers), _in_order(data.evolutions, layers)
    plain = dict(zip(layers, page_names(layers), strict=True)) | pages
    taken = {*pages.values(), *(f"{page}-detectors" for page in pages.values())}
    wanted = [
        *(f"{plain[one.layer]}-maximized-{one.variant}" for one in maximized),
        *(f"{plain[one.layer]}-patterns-{one.rule}" for one in patterns),
        *(f"{plain[one.layer]}-evolution" for one in evolutions),
    ]
    names = iter(page_names(wanted, taken, longest=160))
    sheets = [write_sheet(folder, one, next(names)) for one in maximized]
    projected = [write_patterns(folder, one, next(names)) for one in patterns]
    followed = [write_evolution(folder, one, next(names)) for one in evolutions]
    diagnosed = [read_diagnosis(one) for one in diagnoses]
    _write_all(folder / "evolution.csv", [rows for _, rows in followed])
    _write_all(folder / "diagnosis.csv", [rows for _, rows, _ in diagnosed])
    _write_all(folder / "diagnosis-layers.csv", [rows for _, _, rows in diagnosed])
    return Extras(sheets, projected, [one for one, _, _ in diagnosed], [one for one, _ in followed])


Data = TypeVar("Data", MaximizationData, PatternsData, DiagnosisData, EvolutionData)


def _in_order(kind: Sequence[Data], layers: Sequence[str]) -> list[Data]:
    return sorted(kind, key=lambda one: layers.index(one.layer))


def _write_all(path: Path, tables: Sequence[pa.Table]) -> None:
    """The rows of several layers as one CSV file; none without layers."""
    if tables:
        write_csv(path, plain_columns(pa.concat_tables([table.replace_schema_metadata() for table in tables])))

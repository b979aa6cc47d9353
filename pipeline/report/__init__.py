"""The report people read: plain HTML files made from the published tables."""

from pipeline.report.data import (
    DiagnosisData,
    EvolutionData,
    LayerData,
    MaximizationData,
    PatternsData,
    ReportData,
)
from pipeline.report.pages import write_report

__all__ = [
    "DiagnosisData", "EvolutionData", "LayerData", "MaximizationData", "PatternsData", "ReportData", "write_report",
]  # fmt: skip

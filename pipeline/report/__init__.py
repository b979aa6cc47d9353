"""The report people read: plain HTML files made from the published tables."""

from pipeline.report.data import LayerData, MaximizationData, ReportData
from pipeline.report.pages import write_report

__all__ = ["LayerData", "MaximizationData", "ReportData", "write_report"]

"""Layer summary: detectors and unique concepts of a layer, by category."""

from typing import ClassVar

import pyarrow as pa

from pipeline.results import read_result_table
from pipeline.stage import Job, LayerJob, Reduced, Stage
from schemas import DETECTORS


class LayerSummary(Stage):
    """Counts of the detectors table (Bau et al. 2017, section 3.2; the survey's Fig. 17)."""

    name: ClassVar[str] = "layer_summary"
    inputs: ClassVar[tuple[str, ...]] = ("detectors",)

    def reduce(self, job: Job, layer: LayerJob) -> Reduced:
        frame = read_result_table(job.store, layer.inputs["detectors"], DETECTORS).to_pandas()
        within = frame[frame["is_detector"]]
        overall = within[within["is_best_overall"]]
        rows = []
        for category in job.manifest.categories:
            own, inside = overall[overall["category"] == category], within[within["category"] == category]
            rows.append(
                {
                    "category": category,
                    "num_units": layer.layer.num_units,
                    "num_detectors": len(own),
                    "num_unique_concepts": own["concept_id"].nunique(),
                    "num_detectors_within": len(inside),
                    "num_unique_concepts_within": inside["concept_id"].nunique(),
                }
            )
        return Reduced({"layer_summary": pa.Table.from_pylist(rows)})

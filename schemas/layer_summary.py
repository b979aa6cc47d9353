"""Detectors and unique concepts of a layer, by category (Bau et al. 2017, Fig. 5; the survey's Fig. 17)."""

import pyarrow as pa

from schemas.table import RESULT_KEY, Table, column

LAYER_SUMMARY = Table(
    "layer_summary",
    1,
    pa.schema(
        [
            *RESULT_KEY,
            column("category", pa.string(), "the concepts' category"),
            column("num_units", pa.int32(), "units of the layer"),
            column("num_detectors", pa.int32(), "units whose best concept overall lies in the category, with iou > min_iou"),
            column("num_unique_concepts", pa.int32(), "distinct concepts among those"),
            column("num_detectors_within", pa.int32(), "units whose best concept within the category has iou > min_iou"),
            column("num_unique_concepts_within", pa.int32(), "distinct concepts among those; its sum over categories is the published number of unique detectors"),
        ]
    ),
    sort=("category",),
)  # fmt: skip

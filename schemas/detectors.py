"""The best concept of every unit in every category, and whether the unit is its detector."""

import pyarrow as pa

from schemas.table import RESULT_KEY, UNIT, Table, column

DETECTORS = Table(
    "detectors",
    1,
    pa.schema(
        [
            *RESULT_KEY,
            UNIT,
            column("category", pa.string(), "the category within which the concept is the best"),
            column("concept_id", pa.int32(), "label number of the best concept; ties go to the lowest"),
            column("concept", pa.string(), "its name"),
            column("iou", pa.float64(), "intersection / union, both summed over the data set first"),
            column("iou_low", pa.float64(), "lower end of the delete-one-shard jackknife's 95% interval; null with one shard", nullable=True),
            column("iou_high", pa.float64(), "upper end of that interval; null with one shard", nullable=True),
            column("p_value", pa.float64(), "share of the layer's null best IoUs at least this large, (r + 1) / (n + 1); null without null permutations", nullable=True),
            column("intersection", pa.int64(), "pixels in both the unit's mask and the concept"),
            column("union", pa.int64(), "pixels in either, as the `union` setting counts them"),
            column("is_detector", pa.bool_(), "whether iou > min_iou"),
            column("is_best_overall", pa.bool_(), "whether this is the unit's best concept of all categories"),
        ]
    ),
    sort=("unit", "category"),
)  # fmt: skip

"""Mask areas: the four meanings of A', by unit, category and split (`concept` is in `tally`)."""

import pyarrow as pa

from schemas.table import RESULT_KEY, SPLIT, UNIT, Table, column
from schemas.tally import PERMUTATION

AREA_COUNTS = (
    column("mask_pixels_annotated", pa.int64(), "mask pixels over images annotated for the category"),
    column(
        "mask_pixels_under_mask",
        pa.int64(),
        "mask pixels over images where a label of the category lies under the mask",
    ),
    column("mask_pixels", pa.int64(), "mask pixels over all images; the same in every category"),
)
_KEY = (UNIT, column("category", pa.string(), "color, object, part, ..."), SPLIT)

AREAS = Table("areas", 1, pa.schema([*RESULT_KEY, *_KEY, *AREA_COUNTS]), sort=("unit", "category", "split"))

NULL_AREAS = Table(
    "null_areas",
    1,
    pa.schema([*RESULT_KEY, PERMUTATION, *_KEY, *AREA_COUNTS]),
    sort=("permutation", "unit", "category", "split"),
)

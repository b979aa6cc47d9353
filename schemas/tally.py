"""Where masks meet concepts: pixel counts by unit, concept and split. Rows of two zeros are left out."""

import pyarrow as pa

from schemas.table import RESULT_KEY, SPLIT, UNIT, Table, column

CONCEPT_COUNTS = (
    column("intersection", pa.int64(), "I[u,c]: pixels in both the mask and the concept"),
    column("mask_pixels_concept", pa.int64(), "mask pixels over the images that hold the concept"),
)
_KEY = (UNIT, column("concept_id", pa.int32(), "label number of the concept"), SPLIT)

TALLY = Table(
    "tally",
    1,
    pa.schema([*RESULT_KEY, *_KEY, *CONCEPT_COUNTS]),
    sort=("unit", "concept_id", "split"),
)

PERMUTATION = column("permutation", pa.int32(), "which derangement of the images, from 0")

NULL_TALLY = Table(
    "null_tally",
    1,
    pa.schema([*RESULT_KEY, PERMUTATION, *_KEY, *CONCEPT_COUNTS]),
    sort=("permutation", "unit", "concept_id", "split"),
)

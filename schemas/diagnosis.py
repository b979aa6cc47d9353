"""What is wrong with a layer's units: dead, saturated, doubled, aliased."""

import pyarrow as pa

from schemas.table import RESULT_KEY, UNIT, Table, column

DIAGNOSIS = Table(
    "diagnosis",
    1,
    pa.schema(
        [
            *RESULT_KEY,
            UNIT,
            column("max", pa.float32(), "largest cell over the data set"),
            column("is_dead", pa.bool_(), "whether no cell is ever above 0"),
            column("is_saturated", pa.bool_(), "whether so many cells lie at the largest value that it is the threshold, and no mask is left"),
            column("num_positive", pa.int64(), "cells above 0"),
            column("num_cells", pa.int64(), "images * height * width of the grid"),
            column("most_alike", pa.int32(), "the unit of the layer whose activation correlates with this one's most; null for a constant unit, or where all others are constant", nullable=True),
            column("correlation", pa.float64(), "Pearson's, over all cells of all images, with that unit", nullable=True),
            column("duplicate_of", pa.int32(), "the lowest unit that this one is linked to by correlations above the limit; null if there is none below it", nullable=True),
            column("aliasing", pa.float32(), "median over the unit's patterns of `nyquist_share` in `deconvnet`; null beyond the second convolution, without patterns, or for a first stride of 1", nullable=True),
            column("aliasing_images", pa.float32(), "median of `nyquist_share_image` likewise", nullable=True),
            column("above_nyquist", pa.float32(), "median of `above_nyquist` likewise: in the first layer, how much of what its filters let pass is taken for something else", nullable=True),
            column("is_aliased", pa.bool_(), "whether aliasing exceeds that of the images, and that of white noise, by more than the limit", nullable=True),
        ]
    ),
    sort=("unit",),
)  # fmt: skip

DIAGNOSIS_LAYERS = Table(
    "diagnosis_layers",
    1,
    pa.schema(
        [
            *RESULT_KEY,
            column("num_units", pa.int32(), "units of the layer"),
            column("num_dead", pa.int32(), "that are dead"),
            column("num_saturated", pa.int32(), "that are saturated"),
            column("num_duplicates", pa.int32(), "that have a `duplicate_of`"),
            column("first_stride", pa.int32(), "stride of the network's first convolution, in pixels"),
            column("aliasing", pa.float32(), "median over units; null where no unit has a value", nullable=True),
            column("aliasing_images", pa.float32(), "median over units", nullable=True),
            column("above_nyquist", pa.float32(), "median over units", nullable=True),
            column("num_aliased", pa.int32(), "that are aliased, of those with a value"),
            column("verdict", pa.string(), "in words: what was found, or that nothing was"),
        ]
    ),
)  # fmt: skip

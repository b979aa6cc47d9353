"""Activation thresholds T_u: one row a unit."""

import pyarrow as pa

from schemas.table import RESULT_KEY, UNIT, Table, column

THRESHOLDS = Table(
    "thresholds",
    1,
    pa.schema(
        [
            *RESULT_KEY,
            UNIT,
            column(
                "threshold", pa.float32(), "T_u, the (k+1)-th largest cell over all images, k = floor(quantile * cells)"
            ),
            column("num_cells", pa.int64(), "N_u = images * height * width of the grid"),
            column("num_above", pa.int64(), "cells strictly above the threshold, at most k"),
            column("max", pa.float32(), "largest cell"),
            column("min", pa.float32(), "smallest cell"),
            column("mean", pa.float64(), "mean of all cells, summed in float64 in the order of the images"),
            column("is_dead", pa.bool_(), "whether every cell has one and the same value"),
        ]
    ),
    sort=("unit",),
)

"""The layers that were recorded: size and receptive field."""

import pyarrow as pa

from schemas.table import RESULT_KEY, Table, column

LAYERS = Table(
    "layers",
    1,
    pa.schema(
        [
            *RESULT_KEY,
            column("num_units", pa.int32(), "channels"),
            column("height", pa.int32(), "rows of the grid"),
            column("width", pa.int32(), "columns of the grid"),
            column("num_images", pa.int64(), "images recorded"),
            column("stride_y", pa.float64(), "input pixels between the receptive-field centers of neighboring rows; null where the field covers the whole input", nullable=True),
            column("stride_x", pa.float64(), "likewise for columns", nullable=True),
            column("offset_y", pa.float64(), "input row of the receptive-field center of grid row 0, pixel centers at integers", nullable=True),
            column("offset_x", pa.float64(), "likewise for columns", nullable=True),
            column("field_y", pa.int32(), "rows of the receptive field; null where it covers the whole input", nullable=True),
            column("field_x", pa.int32(), "columns of the receptive field", nullable=True),
        ]
    ),
)  # fmt: skip

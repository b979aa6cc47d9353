"""The images that activate a unit most."""

import pyarrow as pa

from schemas.table import PICTURE, RESULT_KEY, UNIT, Table, column

EXEMPLARS = Table(
    "exemplars",
    1,
    pa.schema(
        [
            *RESULT_KEY,
            UNIT,
            column("rank", pa.int32(), "0 for the image with the largest activation; ties go to the lowest image_id"),
            column("image_id", pa.int64(), "place of the image in the data set, from 0"),
            column("image", pa.string(), "its path in the source"),
            column("activation", pa.float32(), "the map's maximum over this image"),
            column("y", pa.int32(), "grid row of that maximum, the first in row order"),
            column("x", pa.int32(), "grid column of that maximum"),
            column("mask_pixels", pa.int64(), "pixels of the mask on the picture"),
            column("picture", PICTURE, "the image with the mask outlined and the rest dimmed, JPEG"),
        ]
    ),
    sort=("unit", "rank"),
)  # fmt: skip

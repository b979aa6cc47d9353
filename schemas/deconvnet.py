"""What in an image drives a unit: patterns projected back to pixels."""

import pyarrow as pa

from schemas.table import PICTURE, RESULT_KEY, UNIT, Table, column

DECONVNET = Table(
    "deconvnet",
    1,
    pa.schema(
        [
            *RESULT_KEY,
            UNIT,
            column("variant", pa.string(), "the rule of ReLUs on the way back: deconvnet, guided, gradient"),
            column("rank", pa.int32(), "of the exemplar, 0 for the image with the largest activation"),
            column("keep", pa.string(), "what of the unit's map was projected: cell (its maximum alone), map (all of it)"),
            column("image_id", pa.int64(), "place of the image in the data set, from 0"),
            column("image", pa.string(), "its path in the source"),
            column("activation", pa.float32(), "the unit's value at the cell, in the pass that was projected back"),
            column("y", pa.int32(), "grid row of the map's maximum"),
            column("x", pa.int32(), "grid column of the map's maximum"),
            column("top", pa.int32(), "first row of the network's input that `pattern` and `crop` show: the cell's receptive field as far as it lies in the image; with keep=map the whole image"),
            column("left", pa.int32(), "first column"),
            column("bottom", pa.int32(), "one after the last row"),
            column("right", pa.int32(), "one after the last column"),
            column("is_clipped", pa.bool_(), "whether the receptive field reaches beyond the image"),
            column("norm", pa.float32(), "Euclidean norm of the pattern, in the network's input space"),
            column("peak", pa.float32(), "its largest absolute value"),
            column("outside", pa.int64(), "values of the pattern that are not 0 and lie outside the box; 0 is what must be"),
            column("nyquist_share", pa.float32(), "share of the pattern's spectral energy in the bands around the Nyquist frequency of the network's first stride; null where that stride is 1, or the pattern is 0", nullable=True),
            column("nyquist_share_image", pa.float32(), "the same of the crop: what images have there by themselves", nullable=True),
            column("above_nyquist", pa.float32(), "share of the pattern's spectral energy above that Nyquist frequency, along either axis; null likewise", nullable=True),
            column("pattern", PICTURE, "the pattern, gray where it is 0; PNG up to 64 pixels a side, JPEG above"),
            column("crop", PICTURE, "the same pixels of the image"),
        ]
    ),
    sort=("unit", "variant", "rank"),
)  # fmt: skip

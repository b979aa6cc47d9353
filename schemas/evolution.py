"""How units come about in training: their patterns at one checkpoint after another."""

import pyarrow as pa

from schemas.table import PICTURE, RESULT_KEY, UNIT, Table, column

PLACE = column("place", pa.int32(), "place of the checkpoint in the list, from 0")
CHECKPOINT = column("checkpoint", pa.string(), "its file's name without the suffix, with its folder where that alone tells files apart; or the weights' own name")  # fmt: skip
EPOCH = column("epoch", pa.int32(), "the number in which the checkpoints' names differ; 0 for random weights; null if they differ otherwise", nullable=True)  # fmt: skip
STUDY = column("checkpoint_study_id", pa.string(), "the study of these weights: its tables hold all else of them")

EVOLUTION = Table(
    "evolution",
    1,
    pa.schema(
        [
            *RESULT_KEY,
            UNIT,
            PLACE,
            CHECKPOINT,
            EPOCH,
            STUDY,
            column("image_id", pa.int64(), "the image that activates the unit most at this checkpoint; where none does, the unit has no row"),
            column("activation", pa.float32(), "the unit's value on it"),
            column("y", pa.int32(), "grid row of it"),
            column("x", pa.int32(), "grid column of it"),
            column("same_image", pa.bool_(), "whether it is the image of the checkpoint before; null for the first, and where the unit had none", nullable=True),
            column("anchor_image_id", pa.int64(), "the image whose patterns are compared: the one that activates the unit most at the last checkpoint", nullable=True),
            column("cosine", pa.float32(), "of the anchor's pattern, at the cell of the last checkpoint's maximum, with that of the checkpoint before; 0 where only one of them is 0, null where both are, and for the first", nullable=True),
            column("cosine_last", pa.float32(), "with that of the last checkpoint likewise", nullable=True),
            column("concept", pa.string(), "the best concept at this checkpoint; null where no mask meets a label", nullable=True),
            column("category", pa.string(), "its category", nullable=True),
            column("iou", pa.float64(), "its IoU", nullable=True),
            column("is_detector", pa.bool_(), "whether that makes the unit a detector"),
            column("top", pa.int32(), "first row of the network's input that `pattern` and `crop` show"),
            column("left", pa.int32(), "first column"),
            column("bottom", pa.int32(), "one after the last row"),
            column("right", pa.int32(), "one after the last column"),
            column("pattern", PICTURE, "the pattern of this checkpoint's top image; PNG up to 64 pixels a side, JPEG above"),
            column("crop", PICTURE, "the same pixels of the image"),
        ]
    ),
    sort=("unit", "place"),
)  # fmt: skip

EVOLUTION_LAYERS = Table(
    "evolution_layers",
    1,
    pa.schema(
        [
            *RESULT_KEY,
            PLACE,
            CHECKPOINT,
            EPOCH,
            STUDY,
            column("num_units", pa.int32(), "units that were followed"),
            column("num_compared", pa.int32(), "units with a `cosine_last`"),
            column("cosine", pa.float32(), "median over units; null for the first checkpoint", nullable=True),
            column("cosine_low", pa.float32(), "lower quartile", nullable=True),
            column("cosine_high", pa.float32(), "upper quartile", nullable=True),
            column("cosine_last", pa.float32(), "median over units of that with the last checkpoint", nullable=True),
            column("same_image", pa.float32(), "share of units whose top image is that of the checkpoint before", nullable=True),
            column("num_detectors", pa.int32(), "detectors among these units"),
            column("num_unique_concepts", pa.int32(), "distinct concepts that they detect"),
            column("is_settled", pa.bool_(), "whether, from here to the last checkpoint, the median `cosine_last` stays at `settled` or above"),
        ]
    ),
    sort=("place",),
)  # fmt: skip

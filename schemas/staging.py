"""Files under `staging/`: what a stage leaves for the stages after it. Not a table of the contract."""

import pyarrow as pa

from schemas.table import SPLIT, UNIT, Table, column

PILOT_CELLS = Table(
    "pilot_cells",
    1,
    pa.schema(
        [
            UNIT,
            column("cells", pa.list_(pa.float32()), "largest sampled cells of the pilot's shard, descending"),
            column("maxima", pa.list_(pa.float32()), "maximum of the unit's map on every image of the shard"),
        ]
    ),
)

BOUNDS = Table(
    "bounds",
    1,
    pa.schema(
        [
            UNIT,
            column("bound", pa.float32(), "maps whose maximum exceeds it are kept as tail maps"),
            column("active", pa.int64(), "images of the pilot on which the maximum exceeds it"),
        ]
    ),
    sort=("unit",),
)

UNIT_STATISTICS = Table(
    "unit_statistics",
    1,
    pa.schema(
        [
            UNIT,
            column("bound", pa.float32(), "the unit's bound"),
            column("num_above", pa.int64(), "cells above the bound"),
            column("num_at", pa.int64(), "cells equal to the bound"),
            column("max", pa.float32(), "largest cell"),
            column("min", pa.float32(), "smallest cell"),
            column("sum", pa.float64(), "sum of all cells"),
        ]
    ),
    sort=("unit",),
)

TOP_IMAGES = Table(
    "top_images",
    1,
    pa.schema(
        [
            UNIT,
            column("image_id", pa.int64(), "an image with a tail map"),
            column("max", pa.float32(), "the map's maximum; descending within a unit, ties to the lowest image_id"),
        ]
    ),
)

TAIL_CELLS = Table(
    "tail_cells",
    1,
    pa.schema([UNIT, column("cells", pa.large_list(pa.float32()), "the shard's cells above the unit's bound")]),
)


def tail_maps(cells: int | None) -> Table:
    """The tail maps of one shard, of grids of so many cells; in the order of image and unit.

    None leaves out the maps themselves, where a second forward pass makes them again.
    """
    kept = (
        []
        if cells is None
        else [
            column(
                "kept", pa.binary(-(-cells // 8)), "which cells were kept: a bit each, row-major, the first highest"
            ),
            column(
                "cells", pa.large_list(pa.float32()), "these cells: all above the unit's bound, and their neighbors"
            ),
        ]
    )
    return Table(
        "tail_maps",
        1,
        pa.schema(
            [
                column("image_id", pa.int64(), "place of the image in the data set"),
                UNIT,
                column("max", pa.float32(), "the map's maximum"),
                *kept,
            ]
        ),
    )


PARTIAL_TALLY = Table(
    "partial_tally",
    1,
    pa.schema(
        [
            column("permutation", pa.int32(), "-1 for the images' own labels, else which derangement"),
            UNIT,
            SPLIT,
            column("concept_id", pa.int32(), "null in a row of areas", nullable=True),
            column("category", pa.string(), "null in a row of concept counts", nullable=True),
            column("intersection", pa.int64(), "as in `tally`", nullable=True),
            column("mask_pixels_concept", pa.int64(), "as in `tally`", nullable=True),
            column("mask_pixels_annotated", pa.int64(), "as in `areas`", nullable=True),
            column("mask_pixels_under_mask", pa.int64(), "as in `areas`", nullable=True),
            column("mask_pixels", pa.int64(), "as in `areas`", nullable=True),
        ]
    ),
)

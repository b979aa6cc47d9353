"""The studies: what was looked at."""

import pyarrow as pa

from schemas.table import Table, column

STUDIES = Table(
    "studies",
    1,
    pa.schema(
        [
            column("study_id", pa.string(), "hash of everything below"),
            column("model", pa.string(), "name in the model registry"),
            column("weights", pa.string(), "where they came from: a weights enum, a file's name, or random"),
            column("weights_sha256", pa.string(), "hash of the loaded parameters and buffers, names included"),
            column("dataset_id", pa.string(), "images and labels"),
            column("images_id", pa.string(), "images, splits and batches"),
            column("dataset", pa.string(), "the data set's name"),
            column("num_images", pa.int64(), "images in the data set"),
            column("numerics", pa.string(), "JSON: torch version, device kind, CPU capability, threads, batch size, precision, memory format"),
        ]
    ),
    sort=("study_id",),
)  # fmt: skip

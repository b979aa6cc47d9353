"""The published results, read from their manifests."""

import pyarrow as pa

from schemas.table import RESULT_KEY, Table, column

RESULTS = Table(
    "results",
    1,
    pa.schema(
        [
            *RESULT_KEY,
            column("stage", pa.string(), "the stage that made it"),
            column("settings", pa.string(), "JSON: the stage's settings"),
            column("inputs", pa.list_(pa.string()), "ids of the results it read"),
            column("rows", pa.int64(), "rows of its tables"),
            column("bytes", pa.int64(), "bytes of its tables"),
            column("seconds", pa.float64(), "seconds of work, summed over shards"),
            column("finished", pa.timestamp("ms", tz="UTC"), "when it was published"),
        ]
    ),
    sort=("study_id", "stage", "layer", "result_id"),
)

"""The invocations: what was asked, found done, computed, and how it ended."""

import pyarrow as pa

from schemas.table import Table, column

RUNS = Table(
    "runs",
    1,
    pa.schema(
        [
            column("run_id", pa.string(), "time and a random part"),
            column("study_id", pa.string(), "the study it worked on"),
            column("settings", pa.string(), "JSON: the settings as given"),
            column("versions", pa.string(), "JSON: raydissect, python, torch, torchvision, ray, pyarrow"),
            column("device", pa.string(), "cpu, cuda: ..."),
            column("started", pa.timestamp("ms", tz="UTC"), "when it began"),
            column("finished", pa.timestamp("ms", tz="UTC"), "when it ended"),
            column("seconds", pa.string(), "JSON: wall seconds a stage"),
            column("computed", pa.list_(pa.string()), "ids of the results it published"),
            column("found", pa.list_(pa.string()), "ids of the results it found done"),
            column("hardware", pa.list_(pa.string()), "CPU capabilities and devices of its workers, distinct"),
            column("outcome", pa.string(), "done, failed or interrupted"),
            column("error", pa.string(), "what went wrong", nullable=True),
        ]
    ),
    sort=("started", "run_id"),
)

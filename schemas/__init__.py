"""What is stored: one pyarrow schema per table, documented column by column.

`TABLES` lists the published tables by name; `schemas.table.Table.cast` is the validation every
table passes before it is written.
"""

from schemas.activation_maximization import ACTIVATION_MAXIMIZATION
from schemas.areas import AREAS, NULL_AREAS
from schemas.dataset import CONCEPTS, LABEL_AREAS, REJECTS, SHARD, SHARD_LABEL_AREAS, Manifest
from schemas.deconvnet import DECONVNET
from schemas.detectors import DETECTORS
from schemas.diagnosis import DIAGNOSIS, DIAGNOSIS_LAYERS
from schemas.evolution import EVOLUTION, EVOLUTION_LAYERS
from schemas.exemplars import EXEMPLARS
from schemas.layer_summary import LAYER_SUMMARY
from schemas.layers import LAYERS
from schemas.results import RESULTS
from schemas.runs import RUNS
from schemas.studies import STUDIES
from schemas.table import Table
from schemas.tally import NULL_TALLY, TALLY
from schemas.thresholds import THRESHOLDS

TABLES: dict[str, Table] = {
    table.name: table
    for table in (
        STUDIES, RESULTS, RUNS, LAYERS, CONCEPTS, LABEL_AREAS, THRESHOLDS, TALLY, AREAS,
        NULL_TALLY, NULL_AREAS, DETECTORS, LAYER_SUMMARY, EXEMPLARS,
        ACTIVATION_MAXIMIZATION, DECONVNET, DIAGNOSIS, DIAGNOSIS_LAYERS, EVOLUTION, EVOLUTION_LAYERS,
    )
}  # fmt: skip

__all__ = [
    "ACTIVATION_MAXIMIZATION", "AREAS", "CONCEPTS", "DECONVNET", "DETECTORS", "DIAGNOSIS", "DIAGNOSIS_LAYERS",
    "EVOLUTION", "EVOLUTION_LAYERS", "EXEMPLARS", "LABEL_AREAS", "LAYERS", "LAYER_SUMMARY", "NULL_AREAS", "NULL_TALLY", "REJECTS", "RESULTS", "RUNS", "SHARD", "SHARD_LABEL_AREAS", "STUDIES", "TABLES", "TALLY",
    "THRESHOLDS", "Manifest", "Table",
]  # fmt: skip

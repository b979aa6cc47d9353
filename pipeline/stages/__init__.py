"""The stages by name, in an order in which each comes after what it reads."""

from pipeline.stage import Stage
from pipeline.stages.activation_maximization import ActivationMaximization
from pipeline.stages.deconvnet import Deconvnet
from pipeline.stages.detectors import Detectors
from pipeline.stages.diagnosis import Diagnosis
from pipeline.stages.evolution import Evolution
from pipeline.stages.exemplars import Exemplars
from pipeline.stages.layer_summary import LayerSummary
from pipeline.stages.pilot import Pilot
from pipeline.stages.record import Record
from pipeline.stages.tally import Tally
from pipeline.stages.thresholds import Thresholds

STAGES: dict[str, type[Stage]] = {
    stage.name: stage
    for stage in (
        Pilot,
        Record,
        Thresholds,
        Tally,
        Detectors,
        LayerSummary,
        Exemplars,
        ActivationMaximization,
        Deconvnet,
        Diagnosis,
        Evolution,
    )
}

GROUPS = {"dissect": ("thresholds", "tally", "detectors", "layer_summary", "exemplars")}
"""Names for several stages at once; what these read comes along."""

"""What a report is made from: rows of the published tables."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa


@dataclass(frozen=True)
class LayerData:
    """One dissected layer.

    Args:
        layer: the layer's row of `layers`.
        summary: its rows of `layer_summary`.
        detectors: its rows of `detectors`.
        exemplars: its rows of `exemplars`: a table, or tables or record batches one after another; of an
            iterable only one element is held at a time, and it is read once.
        thresholds: its rows of `thresholds`.
        settings: quantile, mask_order, upsampling, union, min_iou, null_permutations; others are shown too.
    """

    layer: dict[str, Any]
    summary: pa.Table
    detectors: pa.Table
    exemplars: pa.Table | Iterable[pa.Table | pa.RecordBatch]
    thresholds: pa.Table
    settings: dict[str, Any]


@dataclass(frozen=True)
class MaximizationData:
    """The pictures that maximize the units of one layer, all made with one preset.

    Args:
        layer: dotted module name; the layer need not be dissected.
        variant: the preset; of a layer each comes once.
        settings: of the result; all are shown.
        read: gives the rows of `activation_maximization`; called once, when it is the layer's turn, so that
            the pictures of one result are held at a time.
    """

    layer: str
    variant: str
    settings: dict[str, Any]
    read: Callable[[], pa.Table]


@dataclass(frozen=True)
class PatternsData:
    """What in images drives the units of one layer, projected back by one rule.

    Args:
        layer: dotted module name; the layer need not be dissected.
        rule: of ReLUs on the way back; of a layer each comes once.
        settings: of the result; all are shown.
        read: gives the rows of `deconvnet`; called once, when it is the layer's turn.
    """

    layer: str
    rule: str
    settings: dict[str, Any]
    read: Callable[[], pa.Table]


@dataclass(frozen=True)
class DiagnosisData:
    """What is wrong with the units of one layer.

    Args:
        layer: dotted module name; the layer need not be dissected, and comes once.
        settings: of the result; all are shown.
        read: gives the rows of `diagnosis`.
        read_layer: gives the layer's row of `diagnosis_layers`.
    """

    layer: str
    settings: dict[str, Any]
    read: Callable[[], pa.Table]
    read_layer: Callable[[], pa.Table]


@dataclass(frozen=True)
class EvolutionData:
    """The units of one layer over training.

    Args:
        layer: dotted module name; the layer need not be dissected, and comes once.
        settings: of the result; all are shown.
        read: gives the rows of `evolution`; called once, when it is the layer's turn.
        read_checkpoints: gives the layer's rows of `evolution_layers`.
    """

    layer: str
    settings: dict[str, Any]
    read: Callable[[], pa.Table]
    read_checkpoints: Callable[[], pa.Table]


@dataclass(frozen=True)
class ReportData:
    """One study and its layers, from the input of the network to its output.

    Args:
        study: the study's row of `studies`; at least study_id, model, weights, dataset and num_images.
        layers: the dissected layers in the order of the network.
        maximized: activation maximization, of these layers and of others; others come after them, in this
            order, and the first one of a layer gives the large pictures on the layer's page.
        patterns: of the DeconvNet, likewise: the first rule of a layer is on the layer's page.
        diagnoses: of these layers and of others.
        evolutions: likewise.
    """

    study: dict[str, Any]
    layers: Sequence[LayerData]
    maximized: Sequence[MaximizationData] = ()
    patterns: Sequence[PatternsData] = ()
    diagnoses: Sequence[DiagnosisData] = ()
    evolutions: Sequence[EvolutionData] = ()

"""`raydissect layers`: what a network's layers are, without data."""

from typing import Any

from pipeline.compose import RunSettings
from pipeline.stage import read_anywhere
from pipeline.store import Store
from workers.models import RANDOM, ModelSpec, load
from workers.nn.layers import expand_layers, layer_table
from workers.weights import is_file


def inspect_layers(settings: RunSettings, everything: bool) -> list[dict[str, Any]]:
    """Rows of the layers that `layers=` names, or of all that have a grid.

    Of the weights only a file is read, which may have another number of classes; nothing else depends on them.
    """
    model = settings.model
    weights = model.weights if is_file(model.weights) else RANDOM
    spec = ModelSpec(name=model.name, weights=weights, num_classes=model.num_classes)
    loaded = load(spec, read_anywhere(Store(settings.store)))
    shape = (3, loaded.preprocessing.height, loaded.preprocessing.width)
    patterns = ("*",) if everything else settings.layers
    rows = layer_table(loaded.module, expand_layers(loaded.module, patterns, shape), shape)
    return [
        {
            "layer": row.name,
            "units": row.channels,
            "grid": f"{row.height} x {row.width}",
            "stride": ""
            if row.receptive_field is None
            else f"{row.receptive_field.stride_y:g} x {row.receptive_field.stride_x:g}",
            "receptive field": "whole input"
            if row.receptive_field is None
            else f"{row.receptive_field.field_y} x {row.receptive_field.field_x}",
        }
        for row in rows
    ]

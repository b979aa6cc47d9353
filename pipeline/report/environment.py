"""How templates are rendered: values as text, settings in words, every label escaped."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from pipeline.report.chart import COLUMNS_HEIGHT
from pipeline.report.diagnosis import STRIP_WIDTH
from pipeline.report.evolution import depth_class, describe_moment, draw_unit
from pipeline.report.maximized import explain, filter_of, title_of, trace_of
from pipeline.report.patterns import describe_pattern
from pipeline.report.sparkline import HEIGHT, WIDTH

MISSING = "–"
MEANINGS = {
    "union": {
        "annotated": "mask pixels over images annotated for the concept's category",
        "all": "mask pixels over all images",
        "under_mask": "mask pixels over images where a label of the category lies under the mask",
        "concept": "mask pixels over images that hold the concept",
    },
    "mask_order": {
        "upsample_first": "the map is upsampled, then compared with the threshold",
        "threshold_first": "the map is compared with the threshold, then upsampled and compared with 0.5",
    },
    "upsampling": {
        "resize": "bilinear, half-pixel centers",
        "receptive_field": "bilinear, aligned by the receptive field's center and stride",
    },
    "target": {
        "neuron": "the map's center cell",
        "channel": "the map's mean",
        "logit": "the class's score before the softmax",
    },
    "rule": {
        "deconvnet": "on the way back a ReLU lets through what is positive there",
        "guided": "on the way back a ReLU lets through what is positive there, where the forward pass was too",
        "gradient": "on the way back a ReLU lets through all, where the forward pass was positive",
    },
    "keep": {
        "cell": "the map's maximum alone goes back to pixels",
        "map": "the unit's whole map goes back to pixels",
    },
}

_TEMPLATES = Path(__file__).parent / "templates"


def make_environment(classes: dict[str, str]) -> Environment:
    """The templates' environment.

    Args:
        classes: the style sheet's class of each category.
    """
    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    formats = {"count": "{:,}", "iou": "{:.3f}", "real": "{:#.4g}"}
    for name, form in formats.items():
        environment.filters[name] = _formatter(form)
    environment.filters["probability"] = _format_probability
    environment.filters["color"] = classes.__getitem__
    environment.filters["ratio"] = _format_ratio
    environment.filters["percent"] = _formatter("{:.0%}")
    environment.globals |= {"explain": explain, "filter_of": filter_of, "title_of": title_of, "trace_of": trace_of}
    environment.globals |= {
        "describe": describe,
        "describe_pattern": describe_pattern,
        "describe_moment": describe_moment,
    }
    environment.globals |= {"draw_unit": draw_unit, "depth_class": depth_class}
    environment.globals |= {"sparkline": (WIDTH, HEIGHT), "strip_width": STRIP_WIDTH, "columns_height": COLUMNS_HEIGHT}
    return environment


def describe(settings: dict[str, Any]) -> list[tuple[str, Any, str]]:
    """Settings as name, value, what the value means; of things with names, such as checkpoints, the names."""
    return [
        (name, MISSING if value is None else _name_things(value), MEANINGS.get(name, {}).get(str(value), ""))
        for name, value in settings.items()
    ]


def _name_things(value: Any) -> Any:
    things = isinstance(value, list | tuple) and value and all(isinstance(one, dict) and "name" in one for one in value)
    return ", ".join(str(one["name"]) for one in value) if things else value


def _formatter(form: str) -> Callable[[float | None], str]:
    return lambda value: MISSING if value is None else form.format(value).rstrip(".")


def _format_probability(value: float | None) -> str:
    return MISSING if value is None else f"{value:.4f}" if value >= 0.0001 else f"{value:.1e}"


def _format_ratio(value: float | None) -> str:
    return MISSING if value is None else f"{value:.0f}×" if abs(value) >= 10 else f"{value:.2f}×"

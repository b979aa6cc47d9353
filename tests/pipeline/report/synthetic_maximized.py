"""Small tables as activation maximization publishes them: dead and blocked units, seeds, filters, an animation."""

import io
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image

from pipeline.report import MaximizationData, ReportData
from schemas import ACTIVATION_MAXIMIZATION
from tests.pipeline.report.synthetic import STUDY, make_layer

DEAD, BLOCKED, HALF_BLOCKED = 5, 2, 3  # of the third, one seed is drawn
SETTINGS = {"preset": "plain", "target": "neuron", "steps": 40, "learning_rate": 1.0, "seeds": 2, "animate": None}
CUT_SHORT = b"\xff\xd8\xff\xe0 cut short"


def waves(unit: int, seed: int, size: int = 48, encoding: str = "JPEG") -> bytes:
    """A picture that differs by unit and seed."""
    y, x = np.mgrid[:size, :size] / size
    angle = 0.6 * unit
    wave = np.sin((3 + unit % 4) * 6.28 * (np.cos(angle) * x + np.sin(angle) * y) + seed)
    pixels = [128 + 100 * wave, 128 + 60 * wave * np.cos(unit), 128 - 80 * wave]
    buffer = io.BytesIO()
    Image.fromarray(np.stack(pixels, 2).astype(np.uint8)).save(buffer, encoding)
    return buffer.getvalue()


def moving() -> bytes:
    frames = [Image.new("RGB", (8, 8), (shade, 0, 0)) for shade in (0, 200)]
    buffer = io.BytesIO()
    frames[0].save(buffer, "WEBP", save_all=True, append_images=frames[1:], duration=200)
    return buffer.getvalue()


def as_cell(data: bytes) -> dict[str, Any]:
    return {"bytes": data, "path": "../../escape.html"}


def maximized_row(unit: int, seed: int = 0, variant: str = "plain", **changed: Any) -> dict[str, Any]:
    """A drawn row whose ratio is 0.5 + unit / 2."""
    trace = [0.1 * unit + (4.0 + 2.0 * unit - 0.1 * unit) * (1 - 0.5**i) for i in range(9)]
    row = {
        "unit": unit, "variant": variant, "seed": seed, "target": "neuron", "pre_relu": True, "outcome": "drawn",
        "objective": 4.0 * (0.5 + unit / 2), "best_step": 40, "last_objective": trace[-1], "best_real": 4.0,
        "ratio": 0.5 + unit / 2, "argmax_step": 3 if unit else None, "redirected_steps": unit, "trace_every": 5,
        "trace": trace, "diversity": 0.25, "contrast": 1.0 + unit / 8, "picture": as_cell(waves(unit, seed)),
        "last_picture": as_cell(waves(unit, seed + 1)), "filter": None, "filter_cosine": None, "animation": None,
    }  # fmt: skip
    return row | changed


def not_drawn_row(unit: int, seed: int, outcome: str, variant: str = "plain") -> dict[str, Any]:
    empty = (
        "objective", "best_step", "last_objective", "ratio", "argmax_step", "trace", "diversity", "contrast", "picture",
        "last_picture",
    )  # fmt: skip
    return maximized_row(unit, seed, variant, outcome=outcome, **dict.fromkeys(empty))


def maximized_rows(num_units: int, seeds: int = 2, variant: str = "plain") -> list[dict[str, Any]]:
    """Every unit and seed, with the units that are not drawn."""
    rows = [maximized_row(unit, seed, variant) for unit in range(num_units) for seed in range(seeds)]
    for i, row in enumerate(rows):
        unit, seed = row["unit"], row["seed"]
        if unit == DEAD:
            rows[i] = not_drawn_row(unit, seed, "dead", variant)
        if unit == BLOCKED or (unit == HALF_BLOCKED and seed == 0):
            rows[i] = not_drawn_row(unit, seed, "relu_blocked", variant)
    return rows


def with_filter(row: dict[str, Any]) -> dict[str, Any]:
    if row["outcome"] != "drawn":
        return row
    return row | {"filter": as_cell(waves(row["unit"], 0, 7, "PNG")), "filter_cosine": 0.9 + 0.01 * row["unit"]}


def to_maximized_table(layer: str, rows: list[dict[str, Any]]) -> pa.Table:
    key = {"study_id": STUDY["study_id"], "result_id": "abcdef0123456789", "layer": layer}
    schema = ACTIVATION_MAXIMIZATION.schema
    return ACTIVATION_MAXIMIZATION.cast(pa.Table.from_pylist([{**key, **row} for row in rows], schema=schema))


def make_maximized(layer: str, rows: list[dict[str, Any]], variant: str = "plain") -> MaximizationData:
    return MaximizationData(layer, variant, SETTINGS | {"preset": variant}, lambda: to_maximized_table(layer, rows))


def make_maximized_data() -> ReportData:
    """A first layer with filters, a layer with two variants, and a layer that is not dissected."""
    first = [with_filter(row) for row in maximized_rows(8)]
    first[0]["animation"] = as_cell(moving())
    return ReportData(
        STUDY,
        [make_layer("features.0", 8), make_layer("features.1")],
        [
            make_maximized("classifier.6", maximized_rows(10, seeds=1)),
            make_maximized("features.0", first),
            make_maximized("features.1", maximized_rows(12, 4, "fourier"), "fourier"),
            make_maximized("features.1", maximized_rows(12, 1)),
        ],
    )


def make_maximized_only() -> ReportData:
    return ReportData(STUDY, [], [make_maximized("conv1", maximized_rows(8, 1)), make_maximized("conv2", [])])

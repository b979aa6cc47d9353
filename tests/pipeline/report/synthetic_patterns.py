"""Small tables as the DeconvNet publishes them: small boxes, large ones, one cut off by the image's edge."""

import io
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image

from pipeline.report import PatternsData, ReportData
from schemas import DECONVNET
from tests.pipeline.report.synthetic import ATTACK, STUDY, make_layer
from tests.pipeline.report.synthetic_maximized import as_cell, make_maximized, maximized_rows

SETTINGS = {"rule": "deconvnet", "keep": "cell", "relu_rule": "strict", "count": 9, "units": "all", "batch": 32}
NUM_RANKS = 9
CLIPPED = 3


def blob(unit: int, rank: int, height: int, width: int, gray: bool = False) -> bytes:
    """A picture that differs by unit and rank: a pattern is gray but where it drives the unit."""
    y, x = np.mgrid[:height, :width] / max(height, width)
    angle = 0.7 * unit + 0.1 * rank
    wave = np.sin((6 + unit % 5) * 6.28 * (np.cos(angle) * x + np.sin(angle) * y))
    spot = np.exp(-8 * ((x - 0.3 - 0.04 * rank) ** 2 + (y - 0.5) ** 2))
    weight = 110 * wave * (spot if gray else 1)
    pixels = [128 + weight, 128 + weight * np.cos(unit), 128 - weight * np.sin(rank)]
    buffer = io.BytesIO()
    encoding = "PNG" if max(height, width) <= 64 else "JPEG"
    Image.fromarray(np.stack(pixels, 2).clip(0, 255).astype(np.uint8)).save(buffer, encoding)
    return buffer.getvalue()


def pattern_row(unit: int, rank: int = 0, side: int = 11, rule: str = "deconvnet", **changed: Any) -> dict[str, Any]:
    """A row whose box is `side` pixels a side, but for one unit's, which the image's edge cuts off."""
    width = side // 2 + 1 if unit == CLIPPED else side
    row = {
        "unit": unit, "variant": rule, "rank": rank, "keep": "cell", "image_id": 10 * unit + rank, "image": f"{ATTACK}/{unit}.jpg",
        "activation": 9.0 - rank, "y": 1, "x": 2, "top": 8, "left": 0 if unit == CLIPPED else 16, "bottom": 8 + side,
        "right": width if unit == CLIPPED else 16 + width, "is_clipped": unit == CLIPPED, "norm": 1.0, "peak": 0.5,
        "outside": 0, "nyquist_share": 0.1 + 0.05 * unit, "nyquist_share_image": 0.05, "above_nyquist": 0.2,
        "pattern": as_cell(blob(unit, rank, side, width, gray=True)), "crop": as_cell(blob(unit, rank, side, width)),
    }  # fmt: skip
    return row | changed


def pattern_rows(units: int, side: int = 11, rule: str = "deconvnet", ranks: int = NUM_RANKS) -> list[dict[str, Any]]:
    """Every unit's patterns, the first unit's one short."""
    return [
        pattern_row(unit, rank, side, rule)
        for unit in range(units)
        for rank in range(ranks - (unit == 0 and ranks > 1))
    ]


def to_pattern_table(layer: str, rows: list[dict[str, Any]]) -> pa.Table:
    key = {"study_id": STUDY["study_id"], "result_id": "0123abcd0123abcd", "layer": layer}
    return DECONVNET.cast(pa.Table.from_pylist([{**key, **row} for row in rows], schema=DECONVNET.schema))


def make_patterns(layer: str, rows: list[dict[str, Any]], rule: str = "deconvnet") -> PatternsData:
    return PatternsData(layer, rule, SETTINGS | {"rule": rule}, lambda: to_pattern_table(layer, rows))


def make_patterns_data() -> ReportData:
    """A layer of small boxes, a layer with two rules beside activation maximization, and one that is not dissected."""
    without = {"nyquist_share": None, "nyquist_share_image": None, "above_nyquist": None}
    return ReportData(
        STUDY,
        [make_layer("features.0", 8), make_layer("features.1")],
        [make_maximized("features.1", maximized_rows(12, 2))],
        patterns=[
            make_patterns("classifier.6", [row | without for row in pattern_rows(4, 80)]),
            make_patterns("features.0", pattern_rows(8, 7)),
            make_patterns("features.1", pattern_rows(11, 96)),
            make_patterns("features.1", pattern_rows(11, 96, "guided"), "guided"),
        ],
    )

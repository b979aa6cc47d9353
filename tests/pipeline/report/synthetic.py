"""Small tables as a dissection publishes them: hostile labels, a dead unit, one without a concept."""

import io
import json
from typing import Any

import pyarrow as pa
from PIL import Image

from pipeline.report import LayerData, ReportData
from schemas import DETECTORS, EXEMPLARS, LAYER_SUMMARY, THRESHOLDS, Table

ATTACK = "<img src=x onerror=alert(1)>"
FORMULA = '=HYPERLINK("http://example.org")'
NUM_UNITS = 12
DEAD = 5
SILENT = 6  # its mask meets no concept
RANKS = 3
SETTINGS = {
    "quantile": 0.005, "mask_order": "upsample_first", "upsampling": "resize", "union": "annotated",
    "min_iou": 0.04, "null_permutations": 1,
}  # fmt: skip
STUDY = {
    "study_id": "0123456789abcdef", "model": "mininet", "weights": "random", "dataset": "mini",
    "num_images": 60, "numerics": json.dumps({"torch": "2.12.0", "threads": 1}),
}  # fmt: skip

# unit: concept, category, intersection, union; units that are not here have no row
BEST = {
    0: ("car", "object", 300, 1000), 1: ("wheel", "part", 100, 1000), 2: ("dotted", "texture", 39, 1000),
    3: (ATTACK, "object", 200, 1000), 4: (FORMULA, "animal", 90, 1000), 6: ("car", "object", 0, 1000),
    7: ("car", "object", 250, 1000), 8: ("carpet", "material", 60, 1000), 9: ("red-c", "color", 80, 1000),
    10: ("street-s", "scene", 50, 1000), 11: ("dotted", "texture", 41, 1000),
}  # fmt: skip


def to_table(table: Table, layer: str, rows: list[dict[str, Any]]) -> pa.Table:
    key = {"study_id": STUDY["study_id"], "result_id": "fedcba9876543210", "layer": layer}
    return table.cast(pa.Table.from_pylist([{**key, **row} for row in rows]))


def picture(unit: int, rank: int, encoding: str = "JPEG") -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (32, 32), (20 * unit, 80 * rank, 100)).save(buffer, encoding)
    return buffer.getvalue()


def detector_row(unit: int, match: tuple[str, str, int, int], best: bool = True) -> dict[str, Any]:
    concept, category, intersection, union = match
    iou = intersection / union
    ends = {"iou_low": iou - 0.01, "iou_high": iou + 0.01, "p_value": 0.01 * (unit + 1)}
    if unit == 1:
        ends = dict.fromkeys(ends)
    return {
        "unit": unit, "category": category, "concept_id": unit + 1, "concept": concept, "iou": iou, **ends,
        "intersection": intersection, "union": union, "is_detector": iou > 0.04, "is_best_overall": best,
    }  # fmt: skip


def exemplar_rows(num_units: int = NUM_UNITS) -> list[dict[str, Any]]:
    return [
        {
            "unit": unit, "rank": rank, "image_id": 10 * unit + rank, "image": f"{ATTACK}/{unit}.jpg",
            "activation": 9.0 - rank, "y": 0, "x": 0, "mask_pixels": 4,
            "picture": {"bytes": picture(unit, rank), "path": "../../escape.html"},
        }
        for unit in range(num_units)
        for rank in range(RANKS)
    ]  # fmt: skip


def make_layer(name: str = "features.0", num_units: int = NUM_UNITS) -> LayerData:
    matches = {unit: BEST[unit] for unit in BEST if unit < num_units}
    rows = [detector_row(unit, match) for unit, match in matches.items()]
    rows += [detector_row(0, ("wheel", "part", 45, 1000), best=False)]
    rows += [detector_row(1, ("car", "object", 10, 1000), best=False)]
    detectors = to_table(DETECTORS, name, rows)
    summary = []
    for category in sorted({row["category"] for row in rows}):
        within = [row["concept"] for row in rows if row["category"] == category and row["is_detector"]]
        overall = [
            row["concept"]
            for row in rows
            if row["category"] == category and row["is_detector"] and row["is_best_overall"]
        ]
        summary.append(
            {
                "category": category, "num_units": num_units, "num_detectors": len(overall),
                "num_unique_concepts": len(set(overall)), "num_detectors_within": len(within),
                "num_unique_concepts_within": len(set(within)),
            }
        )  # fmt: skip
    thresholds = [
        {
            "unit": unit, "threshold": -0.1 * unit, "num_cells": 960, "num_above": 4, "max": 9.0, "min": 0.0,
            "mean": 0.5, "is_dead": unit == DEAD,
        }
        for unit in range(num_units)
    ]  # fmt: skip
    return LayerData(
        layer={
            "layer": name, "num_units": num_units, "height": 4, "width": 4, "num_images": 60, "stride_y": 8.0,
            "stride_x": 8.0, "offset_y": 3.5, "offset_x": 3.5, "field_y": 15, "field_x": 15,
        },
        summary=to_table(LAYER_SUMMARY, name, summary),
        detectors=detectors,
        exemplars=to_table(EXEMPLARS, name, exemplar_rows(num_units)),
        thresholds=to_table(THRESHOLDS, name, thresholds),
        settings=SETTINGS,
    )  # fmt: skip


def make_data() -> ReportData:
    return ReportData(STUDY, [make_layer("features.0", 8), make_layer("features.1")])

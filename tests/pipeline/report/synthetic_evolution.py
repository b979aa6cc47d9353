"""Small tables as the evolution of units publishes them: nulls, a unit that comes late, another image on the way."""

from typing import Any

import pyarrow as pa

from pipeline.report import EvolutionData, ReportData
from schemas import EVOLUTION, EVOLUTION_LAYERS
from tests.pipeline.report.synthetic import ATTACK, FORMULA, STUDY, make_layer
from tests.pipeline.report.synthetic_maximized import as_cell
from tests.pipeline.report.synthetic_patterns import blob

NUM_PLACES = 6
LATE = 2  # nothing activates this unit before the third checkpoint
SETTINGS = {"settled": 0.9, "checkpoints": ["epoch-1.pt", "epoch-2.pt"], "count": 1}
LABELS = (("car", "object"), (ATTACK, "object"), (FORMULA, "animal"), ("dotted", "texture"))


def checkpoint_of(place: int, named: bool = False) -> dict[str, Any]:
    """A checkpoint; `named` without a number."""
    name = f"{ATTACK}-{place}" if named else f"epoch-{10 * place + 5}"
    return {
        "place": place,
        "checkpoint": name,
        "epoch": None if named else 10 * place + 5,
        "checkpoint_study_id": f"{place:016x}",
    }


def moment_row(
    unit: int, place: int, side: int = 11, named: bool = False, places: int = NUM_PLACES, **changed: Any
) -> dict[str, Any]:
    """A row of which the concept is a detector's from the middle of training on."""
    first = place == (LATE if unit == LATE else 0)
    moved = place == 1 and unit % 2 == 1
    image = 100 * unit + (place == 0 and unit % 2 == 1)
    concept, category = LABELS[unit % len(LABELS)]
    share = place / max(places - 1, 1)
    iou = 0.12 * share
    row = {
        "unit": unit, **checkpoint_of(place, named), "image_id": image, "activation": 2.0 + place, "y": 1, "x": 2,
        "same_image": None if first else not moved, "anchor_image_id": 100 * unit,
        "cosine": None if first else 0.3 + 0.69 * share, "cosine_last": 0.1 + 0.9 * share, "concept": concept,
        "category": category, "iou": iou, "is_detector": iou > 0.04, "top": 8, "left": 16, "bottom": 8 + side,
        "right": 16 + side, "pattern": as_cell(blob(unit, place, side, side, gray=True)),
        "crop": as_cell(blob(image, 0, side, side)),
    }  # fmt: skip
    return row | changed


def moment_rows(num_units: int, side: int = 11, named: bool = False, places: int = NUM_PLACES) -> list[dict[str, Any]]:
    return [
        moment_row(unit, place, side, named, places)
        for unit in range(num_units)
        for place in range(places)
        if unit != LATE or place >= LATE
    ]


def checkpoint_rows(
    num_units: int, named: bool = False, places: int = NUM_PLACES, speed: float = 1.0
) -> list[dict[str, Any]]:
    rows = []
    for place in range(places):
        share = min(1.0, speed * place / max(places - 1, 1))
        cosine = None if place == 0 else 0.3 + 0.65 * share
        rows.append(
            {
                **checkpoint_of(place, named), "num_units": num_units, "num_compared": num_units, "cosine": cosine,
                "cosine_low": None if cosine is None else cosine - 0.1, "cosine_high": None if cosine is None else cosine + 0.04,
                "cosine_last": 0.2 + 0.8 * share**0.5, "same_image": None if place == 0 else share,
                "num_detectors": place, "num_unique_concepts": min(place, 4), "is_settled": 0.2 + 0.8 * share**0.5 >= 0.9,
            }
        )  # fmt: skip
    return rows


def make_evolution(
    layer: str, rows: list[dict[str, Any]], checkpoints: list[dict[str, Any]], **changed: Any
) -> EvolutionData:
    key = {"study_id": STUDY["study_id"], "result_id": "e401e401e401e401", "layer": layer}

    def read() -> pa.Table:
        return EVOLUTION.cast(pa.Table.from_pylist([{**key, **row} for row in rows], schema=EVOLUTION.schema))

    def read_checkpoints() -> pa.Table:
        found = [{**key, **row} for row in checkpoints]
        return EVOLUTION_LAYERS.cast(pa.Table.from_pylist(found, schema=EVOLUTION_LAYERS.schema))

    return EvolutionData(layer, SETTINGS | changed, read, read_checkpoints)


def make_evolution_data() -> ReportData:
    """Two dissected layers over epochs, and one that is not dissected over checkpoints without numbers."""
    undissected = [
        row | {"concept": None, "category": None, "iou": None, "is_detector": False} for row in moment_rows(3, 80, True)
    ]
    return ReportData(
        STUDY,
        [make_layer("features.0", 8), make_layer("features.1")],
        evolutions=[
            make_evolution("classifier.6", undissected, checkpoint_rows(3, True)),
            make_evolution("features.0", moment_rows(8, 7), checkpoint_rows(8, speed=1.6)),
            make_evolution("features.1", moment_rows(12, 70), checkpoint_rows(12)),
        ],
    )

"""Small tables as the diagnosis publishes them: each ailment, a unit with several, a layer without any."""

from typing import Any

import pyarrow as pa

from pipeline.report import DiagnosisData, ReportData
from schemas import DIAGNOSIS, DIAGNOSIS_LAYERS
from tests.pipeline.report.synthetic import ATTACK, STUDY, make_layer

DEAD, SATURATED, DUPLICATE, LINKED, ALIASED = 5, 1, 7, 8, 3
SETTINGS = {"correlation": 0.95, "aliasing": True, "aliasing_limit": 0.3}


def diagnosis_row(unit: int, **changed: Any) -> dict[str, Any]:
    row = {
        "unit": unit, "max": 9.0, "is_dead": False, "is_saturated": False, "num_positive": 400, "num_cells": 960,
        "most_alike": 0 if unit else 1, "correlation": 0.5, "duplicate_of": None, "aliasing": 0.1 + 0.01 * unit,
        "aliasing_images": 0.08, "above_nyquist": 0.2, "is_aliased": False,
    }  # fmt: skip
    return row | changed


def diagnosis_rows(num_units: int = 12) -> list[dict[str, Any]]:
    rows = [diagnosis_row(unit) for unit in range(num_units)]
    rows[DEAD] = diagnosis_row(
        DEAD, max=0.0, is_dead=True, num_positive=0, most_alike=None, correlation=None, aliasing=None,
        aliasing_images=None, above_nyquist=None, is_aliased=None,
    )  # fmt: skip
    rows[SATURATED].update(is_saturated=True, max=6.0)
    rows[ALIASED].update(aliasing=0.41, is_aliased=True)
    if num_units > LINKED:
        rows[DUPLICATE].update(most_alike=0, correlation=0.999, duplicate_of=0, aliasing=0.35, is_aliased=True)
        rows[LINKED].update(most_alike=7, correlation=0.97, duplicate_of=0)
    return rows


def sound_rows(num_units: int) -> list[dict[str, Any]]:
    """Units of a layer where aliasing is not measured, and nothing is found."""
    nothing = {"aliasing": None, "aliasing_images": None, "above_nyquist": None, "is_aliased": None}
    return [diagnosis_row(unit, **nothing) for unit in range(num_units)]


def layer_row(rows: list[dict[str, Any]], **changed: Any) -> dict[str, Any]:
    shares = sorted(row["aliasing"] for row in rows if row["aliasing"] is not None)
    row = {
        "num_units": len(rows), "num_dead": sum(row["is_dead"] for row in rows),
        "num_saturated": sum(row["is_saturated"] for row in rows),
        "num_duplicates": sum(row["duplicate_of"] is not None for row in rows), "first_stride": 4,
        "aliasing": shares[len(shares) // 2] if shares else None, "aliasing_images": 0.08 if shares else None,
        "above_nyquist": 0.2 if shares else None,
        "num_aliased": sum(bool(row["is_aliased"]) for row in rows), "verdict": "1 dead, 1 saturated, 2 duplicates",
    }  # fmt: skip
    return row | changed


def make_diagnosis(layer: str, rows: list[dict[str, Any]], **changed: Any) -> DiagnosisData:
    key = {"study_id": STUDY["study_id"], "result_id": "d1a9d1a9d1a9d1a9", "layer": layer}

    def read() -> pa.Table:
        return DIAGNOSIS.cast(pa.Table.from_pylist([{**key, **row} for row in rows], schema=DIAGNOSIS.schema))

    def read_layer() -> pa.Table:
        one = [{**key, **layer_row(rows, **changed)}]
        return DIAGNOSIS_LAYERS.cast(pa.Table.from_pylist(one, schema=DIAGNOSIS_LAYERS.schema))

    return DiagnosisData(layer, SETTINGS, read, read_layer)


def make_diagnosis_data() -> ReportData:
    """A layer with all ailments, one with some, and one that is not dissected and sound, with a hostile verdict."""
    return ReportData(
        STUDY,
        [make_layer("features.0", 8), make_layer("features.1")],
        diagnoses=[
            make_diagnosis("classifier.6", sound_rows(4), verdict=f"nothing was found {ATTACK}"),
            make_diagnosis("features.0", diagnosis_rows(8)),
            make_diagnosis(
                "features.1", diagnosis_rows(12), verdict="much is wrong: " + "aliased, doubled, dead; " * 5
            ),
        ],
    )

"""Gather what a report shows: for every layer the newest detectors with the results these were made from, and
the newest activation maximization of every preset.
"""

import json
import re
from functools import partial
from typing import Any

from pipeline.errors import InputError
from pipeline.report.data import LayerData, MaximizationData, ReportData
from pipeline.results import Result, list_results, read_result_table
from pipeline.store import Store
from pipeline.study import Study
from schemas import ACTIVATION_MAXIMIZATION, DETECTORS, EXEMPLARS, LAYER_SUMMARY, LAYERS, TABLES, THRESHOLDS


def collect(store: Store, study: Study, wanted: dict[str, dict[str, Any]] | None = None) -> ReportData:
    """The report's data of one study.

    Args:
        store: where it lies.
        study: which.
        wanted: settings by stage that detectors and activation maximization, and what they were made from,
            must have; of several results that do, the newest counts.

    Raises:
        InputError: there is neither yet, or none with the settings that were asked of it.
    """
    wanted = wanted or {}
    results = list_results(store, study.study_id)
    by_id = {result.result_id: result for result in results}
    detectors = [result for result in results if result.stage == "detectors"]
    maximized = [result for result in results if result.stage == ACTIVATION_MAXIMIZATION.name]
    if not detectors and not maximized:
        raise InputError(
            f"study {study.study_id} has no detectors and no activation maximization yet: "
            "run it with stages=[dissect] or stages=[activation_maximization] first"
        )
    newest = {result.layer: result for result in _chosen(detectors, by_id, wanted)}
    presets = {(result.layer, str(result.settings["preset"])): result for result in _chosen(maximized, by_id, wanted)}
    if detectors and not newest:
        raise _none_with(study, "detectors", wanted, "dissect")
    if not presets and (not newest or ACTIVATION_MAXIMIZATION.name in wanted):
        raise _none_with(study, "activation maximization", wanted, ACTIVATION_MAXIMIZATION.name)
    layers = [_layer(store, results, by_id, result) for result in newest.values()]
    layers.sort(key=lambda layer: depth(layer.layer))
    row = store.read_table(f"tables/studies/study_id={study.study_id}/study.parquet").to_pylist()[0]
    sheets = [
        _maximization(store, *key, presets[key]) for key in sorted(presets, key=lambda key: (_natural(key[0]), key[1]))
    ]
    return ReportData({**row, "numerics": json.loads(row["numerics"])}, layers, sheets)


def depth(layer: dict[str, Any]) -> tuple:
    """Sorts layers from the input of the network to its output: by what a cell sees, then by name."""
    whole = layer["field_y"] is None
    return (whole, layer["field_y"] or 0, layer["stride_y"] or 0, _natural(layer["layer"]))


def _natural(layer: str) -> list[str | int]:
    """Sorts names with the numbers in them as numbers, which are every second part."""
    return [int(part) if place % 2 else part for place, part in enumerate(re.split(r"(\d+)", layer))]


def _chosen(results: list[Result], by_id: dict[str, Result], wanted: dict[str, dict[str, Any]]) -> list[Result]:
    """The results that have the wanted settings, the newest last."""
    having = [result for result in results if _has_settings(result, by_id, wanted)]
    return sorted(having, key=lambda result: result.finished)


def _none_with(study: Study, what: str, wanted: dict[str, dict[str, Any]], stage: str) -> InputError:
    return InputError(
        f"study {study.study_id} has no {what} with settings {json.dumps(wanted)}: run it with stages=[{stage}] first"
    )


def _maximization(store: Store, layer: str, variant: str, result: Result) -> MaximizationData:
    read = partial(read_result_table, store, result, ACTIVATION_MAXIMIZATION)
    return MaximizationData(layer, variant, result.settings, read)


def _layer(store: Store, results: list[Result], by_id: dict[str, Result], detectors: Result) -> LayerData:
    tally = by_id[detectors.inputs["tally"]]
    thresholds = by_id[tally.inputs["thresholds"]]
    record = by_id[tally.inputs["record"]]
    summary = _made_from(results, "layer_summary", "detectors", detectors)
    exemplars = _made_from(results, "exemplars", "thresholds", thresholds)
    settings = {
        **thresholds.settings,
        **{name: tally.settings[name] for name in ("mask_order", "upsampling", "null_permutations")},
        **detectors.settings,
    }
    return LayerData(
        layer=read_result_table(store, record, LAYERS).to_pylist()[0],
        summary=_rows(store, summary, LAYER_SUMMARY.name),
        detectors=read_result_table(store, detectors, DETECTORS),
        exemplars=_rows(store, exemplars, EXEMPLARS.name),
        thresholds=read_result_table(store, thresholds, THRESHOLDS),
        settings=settings,
    )


def _has_settings(result: Result, by_id: dict[str, Result], wanted: dict[str, dict[str, Any]]) -> bool:
    """Whether a result, and everything it was made from, has the wanted settings."""
    own = wanted.get(result.stage, {})
    if any(result.settings.get(name) != value for name, value in own.items()):
        return False
    return all(_has_settings(by_id[one], by_id, wanted) for one in result.inputs.values() if one in by_id)


def _made_from(results: list[Result], stage: str, read: str, source: Result) -> Result | None:
    """The newest result of a stage that was made from another."""
    made = [result for result in results if result.stage == stage and result.inputs.get(read) == source.result_id]
    return max(made, key=lambda result: result.finished, default=None)


def _rows(store: Store, result: Result | None, table: str) -> Any:
    return TABLES[table].schema.empty_table() if result is None else read_result_table(store, result, TABLES[table])

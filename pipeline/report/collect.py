"""Gather what a report shows: for every layer the newest detectors with the results these were made from, the
newest activation maximization of every preset, the newest patterns of every rule, and the newest diagnosis and
evolution.
"""

import json
from functools import partial
from typing import Any

from pipeline.errors import InputError
from pipeline.ordering import natural
from pipeline.report.data import (
    DiagnosisData,
    EvolutionData,
    LayerData,
    MaximizationData,
    PatternsData,
    ReportData,
)
from pipeline.report.patterns import order_rules
from pipeline.results import Result, list_results, read_result_table
from pipeline.store import Store
from pipeline.study import Study
from schemas import (
    ACTIVATION_MAXIMIZATION,
    DECONVNET,
    DETECTORS,
    DIAGNOSIS,
    DIAGNOSIS_LAYERS,
    EVOLUTION,
    EVOLUTION_LAYERS,
    EXEMPLARS,
    LAYER_SUMMARY,
    LAYERS,
    TABLES,
    THRESHOLDS,
)

WORDS = {
    DETECTORS.name: "detectors",
    ACTIVATION_MAXIMIZATION.name: "activation maximization",
    DECONVNET.name: "patterns",
    DIAGNOSIS.name: "diagnosis",
    EVOLUTION.name: "evolution",
}
"""The stages that a report shows, in words."""
RUN_BY = {DETECTORS.name: "dissect"}
"""What `stages=` takes for a stage, where that is not its name."""
VARIANTS = {ACTIVATION_MAXIMIZATION.name: "preset", DECONVNET.name: "rule"}
"""The setting by which a layer has several results of a stage side by side."""


def collect(store: Store, study: Study, wanted: dict[str, dict[str, Any]] | None = None) -> ReportData:
    """The report's data of one study.

    Args:
        store: where it lies.
        study: which.
        wanted: settings by stage that results, and what they were made from, must have; of several that do, the
            newest counts.

    Raises:
        InputError: there is nothing to show yet, or none with the settings that were asked of it.
    """
    wanted = wanted or {}
    results = list_results(store, study.study_id)
    by_id = {result.result_id: result for result in results}
    found = {stage: _newest(stage, results, by_id, wanted) for stage in WORDS}
    _check(study, {result.stage for result in results}, found, wanted)
    layers = [_layer(store, results, by_id, result) for result in found[DETECTORS.name].values()]
    layers.sort(key=lambda layer: depth(layer.layer))
    row = store.read_table(f"tables/studies/study_id={study.study_id}/study.parquet").to_pylist()[0]

    def read(result: Result, name: str) -> Any:
        return partial(read_result_table, store, result, TABLES[name])

    return ReportData(
        {**row, "numerics": json.loads(row["numerics"])},
        layers,
        [
            MaximizationData(layer, variant, result.settings, read(result, ACTIVATION_MAXIMIZATION.name))
            for (layer, variant), result in found[ACTIVATION_MAXIMIZATION.name].items()
        ],
        [
            PatternsData(layer, rule, result.settings, read(result, DECONVNET.name))
            for (layer, rule), result in found[DECONVNET.name].items()
        ],
        [
            DiagnosisData(layer, result.settings, read(result, DIAGNOSIS.name), read(result, DIAGNOSIS_LAYERS.name))
            for (layer, _), result in found[DIAGNOSIS.name].items()
        ],
        [
            EvolutionData(layer, result.settings, read(result, EVOLUTION.name), read(result, EVOLUTION_LAYERS.name))
            for (layer, _), result in found[EVOLUTION.name].items()
        ],
    )


def _newest(
    stage: str, results: list[Result], by_id: dict[str, Result], wanted: dict[str, dict[str, Any]]
) -> dict[tuple[str, str], Result]:
    """The newest result that has the wanted settings by layer and variant, in the order of their names."""
    having = [result for result in results if result.stage == stage and _has_settings(result, by_id, wanted)]
    setting = VARIANTS.get(stage)
    found = {
        (result.layer, str(result.settings[setting]) if setting else ""): result
        for result in sorted(having, key=lambda result: result.finished)
    }
    return dict(sorted(found.items(), key=lambda item: (natural(item[0][0]), order_rules(item[0][1]))))


def _check(
    study: Study, there: set[str], found: dict[str, dict[tuple[str, str], Result]], wanted: dict[str, dict[str, Any]]
) -> None:
    """Refuse a study that has nothing to show, and settings that nothing has."""
    if not there & set(WORDS):
        *others, last = (f"stages=[{RUN_BY.get(stage, stage)}]" for stage in WORDS)
        raise InputError(
            f"study {study.study_id} has no {', no '.join(WORDS.values())} yet: "
            f"run it with {', '.join(others)} or {last} first"
        )
    for stage, words in WORDS.items():
        asked = stage in wanted or stage == DETECTORS.name or not any(found.values())
        if stage in there and asked and not found[stage]:
            raise InputError(
                f"study {study.study_id} has no {words} with settings {json.dumps(wanted)}: "
                f"run it with stages=[{RUN_BY.get(stage, stage)}] first"
            )


def depth(layer: dict[str, Any]) -> tuple:
    """Sorts layers from the input of the network to its output: by what a cell sees, then by name."""
    whole = layer["field_y"] is None
    return (whole, layer["field_y"] or 0, layer["stride_y"] or 0, natural(layer["layer"]))


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

"""Static pages of one study: an index, one page a dissected layer, one a layer and preset of activation
maximization and a layer and rule of the DeconvNet, one of what is wrong with units, one a layer over training and one of
all of these, pictures, a script and a style sheet.

Everything is a plain file with a relative address, so that a report opens from a disk, a web server or a
zip file alike. Labels reach the pages through Jinja's autoescape only, and never become part of a file name,
a class or a style; the Content-Security-Policy refuses inline scripts and styles and any other origin.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment

from pipeline.report.chart import Tick, draw_ticks, stack_columns
from pipeline.report.data import LayerData, ReportData
from pipeline.report.diagnosis import AILMENTS, draw_strip
from pipeline.report.download import write_csv
from pipeline.report.environment import describe, make_environment
from pipeline.report.evolution import Evolution, draw_all, draw_layer, group_evolutions
from pipeline.report.extras import Extras, write_extras
from pipeline.report.maximized import Sheet
from pipeline.report.names import page_names
from pipeline.report.patterns import PatternSheet
from pipeline.report.pictures import Exemplar, write_pictures
from pipeline.report.summary import BAR_WIDTH, LayerSummary, stack, summarize
from pipeline.report.units import (
    ConceptCount,
    Unit,
    color_classes,
    count_concepts,
    join_thresholds,
    order_categories,
    read_units,
)

WHISKER_WIDTH = 160
PANELS = (("Detectors", "num_detectors"), ("Unique concepts", "num_unique_concepts"))

_HERE = Path(__file__).parent
_STATIC = ("report.css", "report.js")


@dataclass(frozen=True)
class Site:
    """What the pages of a report share.

    Args:
        folder: where they go.
        environment: of their templates.
        study: their study's row.
        pages: the dissected layers' page names by layer, in the order of the network.
        extras: what else there is of these and of other layers.
    """

    folder: Path
    environment: Environment
    study: dict[str, Any]
    pages: dict[str, str]
    extras: Extras

    def write(self, name: str, template: str, context: dict[str, Any]) -> Path:
        """Write a page from its template."""
        path = self.folder / name
        root = "../" * name.count("/")
        text = self.environment.get_template(template).render({"study": self.study, "root": root, **context})
        path.write_text(text + "\n", encoding="utf-8", newline="\n")
        return path

    def unit_address(self, layer: str, unit: int) -> str | None:
        """Where under `layers` a unit is shown: its card, else its patterns; None if it is nowhere."""
        if layer in self.pages:
            return f"{self.pages[layer]}.html#unit-{unit}"
        found = (sheet.parts.page_of(unit) for sheet in self.extras.patterns if sheet.layer == layer)
        page = next((page for page in found if page), None)
        return f"{page}.html#unit-{unit}" if page else None


def write_report(folder: Path, data: ReportData, all_units: bool = False) -> Path:
    """Write the report of a study; the same tables give the same bytes.

    Args:
        folder: where the files go; made if missing, older files of the same names are replaced.
        data: the study and its layers.
        all_units: show exemplars of every unit, not of detectors only.

    Returns:
        path of `index.html`, which is written last.

    Raises:
        InputError: a picture is in a format that its column does not have, or is broken.
    """
    for name in ("layers", "static"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for name in _STATIC:
        (folder / "static" / name).write_bytes((_HERE / "static" / name).read_bytes())

    layers = [layer.layer["layer"] for layer in data.layers]
    pages = dict(zip(layers, page_names(layers), strict=True))
    extras = write_extras(folder, data, pages)
    dissected = {name for layer in data.layers for name in _categories(layer)}
    categories = dissected.union(*(one.categories for one in extras.evolutions))
    site = Site(folder, make_environment(color_classes(categories)), data.study, pages, extras)
    summaries = []
    units_of: dict[str, list[Unit]] = {}
    for layer, (name, page) in zip(data.layers, pages.items(), strict=True):
        units_of[name] = read_units(layer)
        summaries.append(summarize(page, layer, units_of[name]))
        _write_layer(site, layer, units_of[name], all_units)
    for sheet in extras.sheets:
        context = _sheet_context(site, sheet, units_of.get(sheet.layer, []))
        site.write(f"layers/{sheet.page}.html", "maximized.html.j2", context)
    for patterns in extras.patterns:
        _write_patterns(site, patterns, units_of.get(patterns.layer, []))
    for evolution in extras.evolutions:
        _write_evolution(site, evolution)
    if extras.evolutions:
        site.write("evolution.html", "evolutions.html.j2", _evolutions_context(site))
    if extras.diagnoses:
        site.write("diagnosis.html", "diagnosis.html.j2", _diagnosis_context(site))
    context = _index_context(data, summaries, order_categories(dissected))
    context |= {"extras": extras, "pages": pages, "num_layers": len({*layers, *extras.layers})}
    return site.write("index.html", "index.html.j2", context)


def _write_layer(site: Site, layer: LayerData, units: Sequence[Unit], all_units: bool) -> None:
    """A dissected layer's page, its exemplars and its detectors as CSV."""
    name = layer.layer["layer"]
    page = site.pages[name]
    shown = {unit.unit for unit in units if all_units or unit.is_detector}
    exemplars = write_pictures(site.folder / "pictures" / page, layer.exemplars, shown)
    write_csv(site.folder / "layers" / f"{page}-detectors.csv", join_thresholds(layer.detectors, units))
    context = _layer_context(layer, units, exemplars) | _neighbors(list(site.pages.items()), (name, page))
    context["with_card"] = [unit for unit in units if unit.unit in shown]
    context |= {"page": page, "sheets": site.extras.sheets_of(name), "patterns": site.extras.patterns_of(name)}
    context |= {"diagnosis": site.extras.diagnosis_of(name), "evolution": site.extras.evolution_of(name)}
    site.write(f"layers/{page}.html", "layer.html.j2", context)


def _write_patterns(site: Site, sheet: PatternSheet, units: Sequence[Unit]) -> None:
    alike = [(other.layer, other.page) for other in site.extras.patterns if other.rule == sheet.rule]
    context = {
        "sheet": sheet,
        "rules": site.extras.patterns_of(sheet.layer),
        "settings": describe(sheet.settings),
        "units": {unit.unit: unit for unit in units},
        "num_units": len(units),
        "dissection": site.pages.get(sheet.layer),
        **_neighbors(alike, (sheet.layer, sheet.page)),
    }
    for part in sheet.parts:
        site.write(f"layers/{part.page}.html", "patterns.html.j2", context | {"part": part})


def _write_evolution(site: Site, evolution: Evolution) -> None:
    alike = [(other.layer, other.page) for other in site.extras.evolutions]
    order = order_categories(evolution.categories)
    context = {
        "evolution": evolution,
        "settings": describe(evolution.settings),
        "chart": draw_layer(evolution),
        "panels": _columns_of([evolution], order)[0][1],
        "ticks": draw_ticks(evolution.labels),
        "categories": order,
        "addresses": {unit: site.unit_address(evolution.layer, unit) for unit in evolution.units},
        "dissection": site.pages.get(evolution.layer),
        **_neighbors(alike, (evolution.layer, evolution.page)),
    }
    for part in evolution.parts:
        site.write(f"layers/{part.page}.html", "evolution.html.j2", context | {"part": part})


def _evolutions_context(site: Site) -> dict[str, Any]:
    evolutions = site.extras.evolutions
    categories = order_categories(set().union(*(one.categories for one in evolutions)))
    groups = [(group, draw_all(group)) for group in group_evolutions(evolutions)]
    return {
        "evolutions": evolutions,
        "groups": groups,
        "panels": _columns_of([one for one in evolutions if one.is_dissected], categories),
        "categories": categories,
        "settings": describe(_common([one.settings for one in evolutions])),
        "results": sorted({result for one in evolutions for result in one.results}),
    }


def _columns_of(
    evolutions: Sequence[Evolution], categories: Sequence[str]
) -> list[tuple[Evolution, list[Any], list[Tick]]]:
    """Stacked columns of detectors and of unique concepts of each layer, all on one scale a count."""
    counts = {"Detectors": "detectors", "Unique concepts": "unique_concepts"}
    found: list[tuple[Evolution, list[Any], list[Tick]]] = [(one, [], draw_ticks(one.labels)) for one in evolutions]
    for title, name in counts.items():
        largest = max((sum(one.values()) for layer in evolutions for one in getattr(layer, name)), default=0)
        for layer, panels, _ in found:
            columns = stack_columns(getattr(layer, name), layer.labels, categories, largest)
            panels.append((title, columns, largest))
    return found


def _diagnosis_context(site: Site) -> dict[str, Any]:
    diagnoses = site.extras.diagnoses
    largest = max((one.largest for one in diagnoses), default=0.0)
    return {
        "diagnoses": [(f"layer-{i}", one, draw_strip(one, largest)) for i, one in enumerate(diagnoses)],
        "totals": {name: sum(len(getattr(one, name)) for one in diagnoses) for name in AILMENTS},
        "num_units": sum(len(one.units) for one in diagnoses),
        "is_measured": any(one.is_measured for one in diagnoses),
        "largest": largest,
        "pages": site.pages,
        "addresses": {one.layer: {unit: site.unit_address(one.layer, unit) for unit in one.units} for one in diagnoses},
        "settings": _shared([one.settings for one in diagnoses]),
        "results": sorted({result for one in diagnoses for result in one.results}),
    }


def _categories(layer: LayerData) -> set[str]:
    return {*layer.summary["category"].to_pylist(), *layer.detectors["category"].to_pylist()}


def _neighbors(alike: Sequence[tuple[str, str]], this: tuple[str, str]) -> dict[str, Any]:
    """Name and page of the layers before and after."""
    named = [None, *alike, None]
    place = alike.index(this)
    return {"before": named[place], "after": named[place + 2]}


def _layer_context(layer: LayerData, units: Sequence[Unit], exemplars: dict[int, list[Exemplar]]) -> dict[str, Any]:
    concepts = count_concepts(units)
    min_iou = layer.settings.get("min_iou")
    ends = [end for unit in units if unit.best for end in (unit.best.iou, unit.best.iou_high or 0.0)]
    return {
        "layer": layer.layer,
        "settings": describe(layer.settings),
        "min_iou": min_iou,
        "results": sorted(set(layer.detectors["result_id"].to_pylist())),
        "units": units,
        "exemplars": exemplars,
        "num_detectors": sum(unit.is_detector for unit in units),
        "num_dead": sum(unit.is_dead for unit in units),
        "num_concepts": len(concepts),
        "concepts": _group(concepts),
        "categories": order_categories({unit.best.category for unit in units if unit.best}),
        "scale": WHISKER_WIDTH / _round_up(max([*ends, 2 * (min_iou or 0.0)])),
        "whisker_width": WHISKER_WIDTH,
    }


def _sheet_context(site: Site, sheet: Sheet, units: Sequence[Unit]) -> dict[str, Any]:
    alike = [(other.layer, other.page) for other in site.extras.sheets if other.variant == sheet.variant]
    return {
        "sheet": sheet,
        "variants": site.extras.sheets_of(sheet.layer),
        "settings": describe(sheet.settings),
        "units": {unit.unit: unit for unit in units},
        "num_units": len(units),
        "dissection": site.pages.get(sheet.layer),
        **_neighbors(alike, (sheet.layer, sheet.page)),
    }


def _index_context(data: ReportData, summaries: Sequence[LayerSummary], categories: Sequence[str]) -> dict[str, Any]:
    panels = []
    for title, count in PANELS:
        totals = [summary.total(count) for summary in summaries]
        bars = [stack(summary, count, categories, max(totals)) for summary in summaries]
        panels.append((title, list(zip(summaries, totals, bars, strict=True))))
    return {
        "numerics": _to_dict(data.study.get("numerics")),
        "settings": _shared([layer.settings for layer in data.layers]),
        "summaries": summaries,
        "categories": categories,
        "panels": panels,
        "bar_width": BAR_WIDTH,
    }


def _shared(settings: Sequence[dict[str, Any]]) -> list[tuple[str, Any, str]]:
    """Settings in words that several results have in common; none where they differ."""
    alike = bool(settings) and all(other == settings[0] for other in settings)
    return describe(settings[0]) if alike else []


def _common(settings: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The settings that several results have in common."""
    first, *others = settings
    return {name: value for name, value in first.items() if all(other.get(name) == value for other in others)}


def _group(concepts: Sequence[ConceptCount]) -> list[tuple[str, list[ConceptCount]]]:
    """The concepts of each category, in the order of legends."""
    names = order_categories({concept.category for concept in concepts})
    return [(name, [concept for concept in concepts if concept.category == name]) for name in names]


def _to_dict(numerics: Any) -> dict[str, Any]:
    """The study's numerics, which its table stores as JSON."""
    return json.loads(numerics) if isinstance(numerics, str) else dict(numerics or {})


def _round_up(value: float, step: float = 0.05) -> float:
    return max(math.ceil(value / step), 1) * step

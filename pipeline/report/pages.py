"""Static pages of one study: an index, one page a dissected layer, one a layer and preset of activation
maximization, pictures, a script and a style sheet.

Everything is a plain file with a relative address, so that a report opens from a disk, a web server or a
zip file alike. Labels reach the pages through Jinja's autoescape only, and never become part of a file name,
a class or a style; the Content-Security-Policy refuses inline scripts and styles and any other origin.
"""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment

from pipeline.report.data import LayerData, ReportData
from pipeline.report.download import write_csv
from pipeline.report.environment import describe, make_environment
from pipeline.report.maximized import Sheet, write_sheet
from pipeline.report.names import page_names
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
    categories = {name for layer in data.layers for name in _categories(layer)}
    environment = make_environment(color_classes(categories))
    for name in ("layers", "static"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for name in _STATIC:
        (folder / "static" / name).write_bytes((_HERE / "static" / name).read_bytes())

    layers = [layer.layer["layer"] for layer in data.layers]
    pages = page_names(layers)
    sheets = _write_sheets(folder, data, dict(zip(layers, pages, strict=True)))
    summaries = []
    units_of: dict[str, list[Unit]] = {}
    for i, (layer, page) in enumerate(zip(data.layers, pages, strict=True)):
        units = units_of[layers[i]] = read_units(layer)
        shown = {unit.unit for unit in units if all_units or unit.is_detector}
        exemplars = write_pictures(folder / "pictures" / page, layer.exemplars, shown)
        write_csv(folder / "layers" / f"{page}-detectors.csv", join_thresholds(layer.detectors, units))
        summaries.append(summarize(page, layer, units))
        context = _layer_context(layer, units, exemplars)
        context |= {"study": data.study, "page": page, **_neighbors(layers, pages, i)}
        context["with_card"] = [unit for unit in units if unit.unit in shown]
        context["sheets"] = [sheet for sheet in sheets if sheet.layer == layers[i]]
        _write(folder / "layers" / f"{page}.html", environment, "layer.html.j2", context)
    for sheet in sheets:
        context = _sheet_context(sheet, sheets, units_of.get(sheet.layer, []))
        context |= {"study": data.study, "dissection": _page_of(sheet.layer, layers, pages)}
        _write(folder / "layers" / f"{sheet.page}.html", environment, "maximized.html.j2", context)
    context = _index_context(data, summaries, order_categories(categories))
    context["sheets"] = [(sheet, _page_of(sheet.layer, layers, pages)) for sheet in sheets]
    context["num_layers"] = len({*layers, *(sheet.layer for sheet in sheets)})
    return _write(folder / "index.html", environment, "index.html.j2", context)


def _write_sheets(folder: Path, data: ReportData, pages: dict[str, str]) -> list[Sheet]:
    """The files of activation maximization but its pages: dissected layers first, in the order of the network.

    Args:
        folder: of the report.
        data: the study.
        pages: the dissected layers' page names by layer.
    """
    others = [one.layer for one in data.maximized if one.layer not in pages]
    layers = list(dict.fromkeys([*pages, *others]))
    ordered = sorted(data.maximized, key=lambda one: layers.index(one.layer))
    taken = {*pages.values(), *(f"{page}-detectors" for page in pages.values())}
    plain = dict(zip(layers, page_names(layers), strict=True)) | pages
    names = page_names([f"{plain[one.layer]}-maximized-{one.variant}" for one in ordered], taken, longest=160)
    return [write_sheet(folder, one, name) for one, name in zip(ordered, names, strict=True)]


def _page_of(layer: str, layers: Sequence[str], pages: Sequence[str]) -> str | None:
    """The page of a layer's dissection, if there is one."""
    return dict(zip(layers, pages, strict=True)).get(layer)


def _categories(layer: LayerData) -> set[str]:
    return {*layer.summary["category"].to_pylist(), *layer.detectors["category"].to_pylist()}


def _neighbors(layers: Sequence[str], pages: Sequence[str], place: int) -> dict[str, Any]:
    """Name and page of the layers before and after."""
    named = [None, *zip(layers, pages, strict=True), None]
    return {"before": named[place], "after": named[place + 2]}


def _layer_context(layer: LayerData, units: Sequence[Unit], exemplars: dict[int, list[Exemplar]]) -> dict[str, Any]:
    concepts = count_concepts(units)
    min_iou = layer.settings.get("min_iou")
    ends = [end for unit in units if unit.best for end in (unit.best.iou, unit.best.iou_high or 0.0)]
    return {
        "root": "../",
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


def _sheet_context(sheet: Sheet, sheets: Sequence[Sheet], units: Sequence[Unit]) -> dict[str, Any]:
    alike = [other for other in sheets if other.variant == sheet.variant]
    return {
        "root": "../",
        "sheet": sheet,
        "variants": [other for other in sheets if other.layer == sheet.layer],
        "settings": describe(sheet.settings),
        "units": {unit.unit: unit for unit in units},
        "num_units": len(units),
        **_neighbors([other.layer for other in alike], [other.page for other in alike], alike.index(sheet)),
    }


def _index_context(data: ReportData, summaries: Sequence[LayerSummary], categories: Sequence[str]) -> dict[str, Any]:
    settings = [layer.settings for layer in data.layers]
    shared = bool(settings) and all(other == settings[0] for other in settings)
    panels = []
    for title, count in PANELS:
        totals = [summary.total(count) for summary in summaries]
        bars = [stack(summary, count, categories, max(totals)) for summary in summaries]
        panels.append((title, list(zip(summaries, totals, bars, strict=True))))
    return {
        "root": "",
        "study": data.study,
        "numerics": _to_dict(data.study.get("numerics")),
        "settings": describe(settings[0]) if shared else [],
        "summaries": summaries,
        "categories": categories,
        "panels": panels,
        "bar_width": BAR_WIDTH,
    }


def _group(concepts: Sequence[ConceptCount]) -> list[tuple[str, list[ConceptCount]]]:
    """The concepts of each category, in the order of legends."""
    names = order_categories({concept.category for concept in concepts})
    return [(name, [concept for concept in concepts if concept.category == name]) for name in names]


def _to_dict(numerics: Any) -> dict[str, Any]:
    """The study's numerics, which its table stores as JSON."""
    return json.loads(numerics) if isinstance(numerics, str) else dict(numerics or {})


def _round_up(value: float, step: float = 0.05) -> float:
    return max(math.ceil(value / step), 1) * step


def _write(path: Path, environment: Environment, template: str, context: dict[str, Any]) -> Path:
    text = environment.get_template(template).render(context)
    path.write_text(text + "\n", encoding="utf-8", newline="\n")
    return path

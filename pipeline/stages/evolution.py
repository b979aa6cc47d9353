"""Evolution: the same units at one checkpoint of a training after another."""

from collections.abc import Generator
from contextlib import ExitStack, closing
from dataclasses import replace
from functools import cached_property
from typing import Any, ClassVar, Literal

import numpy as np
import pyarrow as pa
from pydantic import Field
from torch import Tensor

from pipeline.errors import AlteredError, StoreError
from pipeline.results import Result, find_result, read_result_table
from pipeline.settings import Settings
from pipeline.stage import Job, Layer, LayerJob, Reduced, read_anywhere, stage_writer, staged_tables
from pipeline.stages.chosen_units import UnitStage
from pipeline.stages.deconvnet import check_nonlinearities
from pipeline.stages.patterns import LayerPatterns, Pattern, Request, in_batches
from pipeline.stages.real_images import decode, read_images
from schemas import DETECTORS, EVOLUTION, EVOLUTION_LAYERS, EXEMPLARS, Table
from workers.methods.deconvnet import Rule
from workers.models import LoadedModel, load
from workers.precision import rounding
from workers.worker import Shard, Worker

PARTIAL = Table("partial_evolution", 1, pa.schema(list(EVOLUTION.schema)[3:]), sort=EVOLUTION.sort)

Row = dict[str, Any]


class Evolution(UnitStage):
    """Patterns of each checkpoint's own top images, and how alike those of one image are from checkpoint to checkpoint.

    What is to be followed is found out before the run: see `pipeline.follow`, which makes it a `Followed`.
    """

    name: ClassVar[str] = "evolution"
    inputs: ClassVar[tuple[str, ...]] = ("detectors", "exemplars")

    checkpoints: tuple[str, ...] = ()  # files, URLs, globs of these, in order; none: those of mininet's own training
    most_checkpoints: int | None = Field(None, ge=2)  # of more, those closer together where training begins
    settled: float = Field(0.9, gt=0, le=1)  # least median cosine with the last checkpoint of a settled layer
    rule: Rule = "deconvnet"
    relu_rule: Literal["strict", "extend"] = "strict"
    batch: int = Field(16, ge=1)  # images that go through the network at a time

    def check(self, layer: Layer, job: Job) -> None:
        super().check(layer, job)
        check_nonlinearities(self.rule, self.relu_rule, layer, job)


class Checkpoint(Settings):
    """One state of the network: where its weights are, and its results that are read.

    Attributes:
        name: the file's, without the suffix.
        epoch: the number in which names differ.
        weights: as `ModelSpec` has them, with `kept` a copy of named ones.
        kept: see `weights`.
        sha256: of the weights by name.
        study_id: its study.
        exemplars: result ids by layer.
        detectors: result ids by layer.
    """

    name: str
    epoch: int | None
    weights: str
    kept: str | None
    sha256: str
    study_id: str
    exemplars: dict[str, str]
    detectors: dict[str, str]


class Followed(Evolution):
    """With the checkpoints that were found, the study's own weights last."""

    points: tuple[Checkpoint, ...] = Field(min_length=2)

    def settings_of(self, layer: str) -> dict[str, Any]:
        points = [
            {"name": one.name, "epoch": one.epoch, "weights_sha256": one.sha256, "study_id": one.study_id}
            | {"exemplars": one.exemplars[layer], "detectors": one.detectors[layer]}
            for one in self.points
        ]
        own = self.model_dump(mode="json", exclude={"points", "checkpoints", "most_checkpoints"})
        return {**own, "units": self.units_setting, "points": points}

    def shards(self, job: Job) -> list[Shard]:
        return [Shard(f"{place:06d}", place, layers=tuple(job.layers)) for place in range(len(self.points))]

    def build(self, job: Job) -> Worker:
        followed = {name: _FollowedLayer(self, job, layer) for name, layer in job.layers.items()}

        def read(shard: Shard) -> tuple[Shard, dict[int, Tensor]]:
            wanted = set().union(*(followed[layer].image_ids(shard.index) for layer in shard.layers))
            found = read_images(job, wanted)
            return shard, {image_id: decode(job, data) for image_id, data in sorted(found.items())}

        def compute(loaded: tuple[Shard, dict[int, Tensor]]) -> dict[str, pa.Table]:
            shard, images = loaded
            place = shard.index
            models = {one: self._load(job, one) for one in {max(place - 1, 0), place, len(self.points) - 1}}
            return {
                layer: PARTIAL.cast(
                    pa.Table.from_pylist(followed[layer].rows(place, models, images), schema=PARTIAL.schema)
                )
                for layer in shard.layers
            }

        return Worker(read, compute, stage_writer(job))

    def reduce(self, job: Job, layer: LayerJob) -> Reduced:
        parts = [part for _, _, part in staged_tables(job.store, layer.result_id, self.shards(job), "arrow")]
        table = pa.concat_tables(parts).replace_schema_metadata(None)
        units = len(self.chosen(job, layer))
        return Reduced({EVOLUTION.name: table, EVOLUTION_LAYERS.name: self._summarize(table, units)})

    def _load(self, job: Job, place: int) -> LoadedModel:
        """A checkpoint's network, as the study runs its own."""
        point, numerics = self.points[place], job.study.numerics
        spec = replace(job.model, weights=point.weights, copy=point.kept)
        loaded = load(spec, read_anywhere(job.store))
        if loaded.weights_sha256 != point.sha256:
            raise StoreError(
                f"the weights of checkpoint {point.name} have changed since the run began: {point.weights}"
            )
        return loaded.on(job.device, numerics.precision, numerics.memory_format)

    def _summarize(self, table: pa.Table, units: int) -> pa.Table:
        """The rows of `evolution_layers`."""
        columns = ["unit", "place", "same_image", "cosine", "cosine_last", "concept", "is_detector"]
        found = table.select(columns).to_pandas()
        rows = [self._summary(place, found[found["place"] == place], units) for place in range(len(self.points))]
        settled = True
        for row in reversed(rows):
            settled = settled and row["cosine_last"] is not None and row["cosine_last"] >= self.settled
            row["is_settled"] = settled
        return pa.Table.from_pylist(rows)

    def _summary(self, place: int, found: Any, units: int) -> Row:
        """One row, from a data frame of a checkpoint's units."""
        cosine, last = (found[name].dropna().to_numpy(np.float64) for name in ("cosine", "cosine_last"))
        low, middle, high = np.quantile(cosine, (0.25, 0.5, 0.75)) if len(cosine) else (None, None, None)
        detecting = found[found["is_detector"].astype(bool)]
        same = found["same_image"].dropna()
        return _key(place, self.points[place]) | {
            "num_units": units,
            "num_compared": len(last),
            "cosine": middle,
            "cosine_low": low,
            "cosine_high": high,
            "cosine_last": float(np.median(last)) if len(last) else None,
            "same_image": float(same.astype(bool).mean()) if len(same) else None,
            "num_detectors": len(detecting),
            "num_unique_concepts": detecting["concept"].nunique(),
        }


def _key(place: int, point: Checkpoint) -> Row:
    return {
        "place": place, "checkpoint": point.name, "epoch": point.epoch, "checkpoint_study_id": point.study_id,
    }  # fmt: skip


class _FollowedLayer:
    """One layer over the checkpoints."""

    def __init__(self, stage: Followed, job: Job, layer: LayerJob) -> None:
        self._stage, self._job, self._layer = stage, job, layer
        self._units = set(stage.chosen(job, layer))

    @cached_property
    def _tops(self) -> list[dict[int, Request]]:
        """The image that activates each unit most, by checkpoint and unit."""
        columns = ["unit", "rank", "image_id", "image", "y", "x"]
        tops = []
        for point in self._stage.points:
            rows = self._read(point, "exemplars", point.exemplars, EXEMPLARS, columns)
            requests = [Request(**row) for row in rows if row["rank"] == 0 and row["unit"] in self._units]
            tops.append({one.unit: one for one in requests})
        return tops

    def _read(self, point: Checkpoint, stage: str, ids: dict[str, str], table: Table, columns: list[str]) -> list[Row]:
        found = self._result(point, stage, ids)
        try:
            return read_result_table(self._job.store, found, table, columns).to_pylist()
        except AlteredError as error:
            if point.study_id == self._job.study.study_id:
                raise
            raise StoreError(f"of checkpoint {point.name}, {error}; --verify makes it again") from error

    def _result(self, point: Checkpoint, stage: str, ids: dict[str, str]) -> Result:
        layer = self._layer.layer.name
        found = find_result(self._job.store, point.study_id, stage, layer, ids[layer])
        if found is None:
            raise StoreError(
                f"the {stage} of checkpoint {point.name} on {layer}, result {ids[layer]} of study {point.study_id}, "
                "are gone since the run began: the same command again makes them again"
            )
        return found

    def _detected(self, point: Checkpoint) -> dict[int, Row]:
        columns = ["unit", "concept", "category", "iou", "intersection", "is_detector", "is_best_overall"]
        rows = self._read(point, "detectors", point.detectors, DETECTORS, columns)
        return {row["unit"]: row for row in rows if row["is_best_overall"] and row["intersection"] > 0}

    def image_ids(self, place: int) -> set[int]:
        """The images that a checkpoint's patterns are made from."""
        return {one.image_id for tops in (self._tops[place], self._tops[-1]) for one in tops.values()}

    def rows(self, place: int, models: dict[int, LoadedModel], images: dict[int, Tensor]) -> list[Row]:
        """The rows of one checkpoint.

        Args:
            place: of the checkpoint.
            models: of it, the one before, and the last.
            images: by image_id.
        """
        point, detected = self._stage.points[place], self._detected(self._stage.points[place])
        cosines = self._cosines(place, models, images)
        before = self._tops[place - 1] if place else {}
        made, rows = self._of(models[place]), []
        for request, pattern in self._patterns(made, [*self._tops[place].values()], images):
            unit, box = request.unit, pattern.box
            match, anchor = detected.get(unit, {}), self._tops[-1].get(unit)
            last, previous = cosines.get(unit, (None, None))
            rows.append(
                _key(place, point)
                | {
                    "unit": unit,
                    "image_id": request.image_id,
                    "activation": pattern.activation,
                    "y": request.y,
                    "x": request.x,
                    "same_image": request.image_id == before[unit].image_id if unit in before else None,
                    "anchor_image_id": None if anchor is None else anchor.image_id,
                    "cosine": previous if place else None,
                    "cosine_last": last,
                    **{name: match.get(name) for name in ("concept", "category", "iou")},
                    "is_detector": match.get("is_detector", False),
                    "top": box.top,
                    "left": box.left,
                    "bottom": box.bottom,
                    "right": box.right,
                    **made.draw(pattern),
                }
            )
        return rows

    def _cosines(
        self, place: int, models: dict[int, LoadedModel], images: dict[int, Tensor]
    ) -> dict[int, tuple[float | None, float | None]]:
        """Of the anchors' patterns at this checkpoint, with the last and with the one before, by unit."""
        anchors = [*self._tops[-1].values()]
        before, final = max(place - 1, 0), len(self._stage.points) - 1
        found = {}
        with ExitStack() as stack:  # each sets and resets the rounding while another is under way: not beyond here
            stack.enter_context(rounding(self._job.study.numerics.precision))
            patterns = [
                stack.enter_context(closing(self._patterns(self._of(model), anchors, images)))
                for model in models.values()
            ]
            for made in zip(*patterns, strict=True):  # unit by unit, so that no more than one pattern each is held
                unit = made[0][0].unit
                value = {one: pattern.value for one, (_, pattern) in zip(models, made, strict=True)}
                found[unit] = (_cosine(value[place], value[final]), _cosine(value[place], value[before]))
        return found

    def _patterns(
        self, made: LayerPatterns, requests: list[Request], images: dict[int, Tensor]
    ) -> Generator[tuple[Request, Pattern]]:
        for batch in in_batches(requests, self._stage.batch):
            yield from made.project(images, batch)

    def _of(self, model: LoadedModel) -> LayerPatterns:
        stage, job = self._stage, self._job
        extend = stage.relu_rule == "extend"
        return LayerPatterns(
            model, self._layer.layer, job.study.numerics, job.device, stage.rule, "cell", extend, stage.batch
        )


def _cosine(first: Tensor, second: Tensor) -> float | None:
    """Of two patterns, however faint: 0 where only one is 0, for they have nothing in common; None where both are."""
    one, other = first.double().flatten(), second.double().flatten()
    norms = (one.norm() * other.norm()).item()
    if norms == 0:
        return 0.0 if one.any() or other.any() else None
    return (one @ other).item() / norms


def spread_out(number: int, most: int) -> list[int]:
    """Places among so many checkpoints: the first, the last, and between them ever farther apart.

    Zeiler & Fergus 2014, Figure 4, has epochs 1, 2, 5, 10, 20, 30, 40, 64.
    """
    if number <= most:
        return list(range(number))
    wanted = np.geomspace(1, number, most)
    places = [0]
    for index, value in enumerate(wanted[1:-1], 1):  # each at least one after another, and room for those to come
        places.append(min(max(round(float(value)) - 1, places[-1] + 1), number - most + index))
    return [*places, number - 1]

"""From a list of checkpoints to what is known of each: all are dissected, each in a study of its own."""

import logging
import re
from collections.abc import Callable

from pipeline.compose import RunSettings
from pipeline.errors import SettingsError
from pipeline.plan import make_plan
from pipeline.settings import OnProgress
from pipeline.stage import Stage
from pipeline.stages.evolution import Checkpoint, Evolution, Followed, spread_out
from pipeline.store import Store
from pipeline.subject import Subject, prepare
from pipeline.tasks import find_checkpoints, is_glob
from workers.models import ModelError

logger = logging.getLogger("raydissect")

STORED = "store:"
TRAINED = "trained"


def follow(
    settings: RunSettings,
    subject: Subject,
    stages: dict[str, Stage],
    dissect: Callable[[RunSettings, Subject], object],
    on_progress: OnProgress | None = None,
) -> Followed:
    """Find the checkpoints of a stage `evolution`, have each dissected, and name the results to read.

    All are loaded before anything runs, so that a file that does not fit is found at once. The run's own weights come
    last; where the list does not end with them, they are added.

    Args:
        settings: of the run.
        subject: the run's own network.
        stages: their settings, by name.
        dissect: has a checkpoint dissected, as far as it is not.
        on_progress: told about shards.

    Raises:
        SettingsError: there are fewer than two checkpoints, or the run's own weights are one of the earlier ones.
        ModelError: a checkpoint is of another network; the message names it.
    """
    stage = stages[Evolution.name]
    assert isinstance(stage, Evolution)
    listed = list_checkpoints(stage, settings, subject)
    found = [(weights, _open(weights, settings, subject, on_progress)) for weights in listed]
    own = subject.study.weights_sha256
    if found[-1][1].study.weights_sha256 != own:
        earlier = [weights for weights, one in found if one.study.weights_sha256 == own]
        if earlier:
            raise SettingsError(
                f"model.weights are those of checkpoint {earlier[0]}, must be those of the last, {listed[-1]}: "
                "an evolution belongs to the network that training ended with"
            )
        found.append((settings.model.weights, subject))
    if len(found) < 2:
        raise SettingsError(f"checkpoints has {len(found)} checkpoint, must have 2 at least to tell what changes")
    names = [_stem(weights) for weights, _ in found]
    epochs = number_epochs(names)
    points = []
    for place, (weights, one) in enumerate(found):
        logger.info("evolution: checkpoint %d of %d, %s", place + 1, len(found), names[place])
        if one.study.weights_sha256 != own:
            dissect(_with_weights(settings, weights, subject), one)
        ids = make_plan(one.store, one.study, list(subject.layers), [], stages).ids
        points.append(
            Checkpoint(
                name=names[place],
                epoch=epochs[place],
                weights=one.model.weights,
                kept=one.model.copy,
                sha256=one.study.weights_sha256,
                study_id=one.study.study_id,
                exemplars={layer: ids["exemplars", layer] for layer in subject.layers},
                detectors={layer: ids["detectors", layer] for layer in subject.layers},
            )
        )
    return Followed(**stage.model_dump(), points=tuple(points))


def list_checkpoints(stage: Evolution, settings: RunSettings, subject: Subject) -> list[str]:
    """The checkpoints as `model.weights` takes them: globs expanded, numbers in names in their order, some picked.

    Raises:
        SettingsError: none are given, or a glob matches nothing.
        InputError: a place cannot be listed.
    """
    listed: list[str] = []
    for pattern in stage.checkpoints:
        matches = sorted(find_checkpoints(pattern, subject.store), key=_natural) if is_glob(pattern) else [pattern]
        if not matches:
            raise SettingsError(f"checkpoints has {pattern}, which matches no file of weights")
        listed += matches
    if not stage.checkpoints:
        if settings.model.weights != TRAINED:
            raise SettingsError(
                "checkpoints is empty: give files of weights in the order of the training, or a glob such as "
                "checkpoints=checkpoints/epoch-*.safetensors"
            )
        listed = [f"{STORED}{path}" for path in _of_training(subject.store, subject.model.weights)]
    most = stage.most_checkpoints or len(listed)
    return [listed[place] for place in spread_out(len(listed), most)]


def number_epochs(names: list[str]) -> list[int | None]:
    """The number in which names differ; None for all where they differ otherwise, or in several."""
    parts = [re.split(r"(\d+)", name) for name in names]
    if len({len(one) for one in parts}) != 1:
        return [None] * len(names)
    differing = [place for place in range(len(parts[0])) if len({one[place] for one in parts}) > 1]
    if len(differing) != 1 or differing[0] % 2 == 0:
        return [None] * len(names)
    return [int(one[differing[0]]) for one in parts]


def _of_training(store: Store, weights: str) -> list[str]:
    """Weights that were kept after every epoch, of a network that was trained here."""
    described = weights.removeprefix(STORED).rpartition(".")[0] + ".json"
    return list(store.read_json(described)["checkpoints"])


def _open(weights: str, settings: RunSettings, subject: Subject, on_progress: OnProgress | None) -> Subject:
    try:
        found = prepare(_with_weights(settings, weights, subject), on_progress)
    except (ModelError, SettingsError) as error:
        raise type(error)(f"checkpoint {weights}: {error}") from error
    for name, layer in subject.layers.items():
        if found.layers[name] != layer:
            raise ModelError(
                f"checkpoint {weights} is of another network: layer {name} has {found.layers[name].num_units} units, "
                f"those of {settings.model.weights} have {layer.num_units}"
            )
    return found


def _with_weights(settings: RunSettings, weights: str, subject: Subject) -> RunSettings:
    """A run that dissects the same layers of the network with other weights."""
    model = settings.model.model_copy(update={"weights": weights, "sha256": None})
    return settings.model_copy(update={"model": model, "stages": ("dissect",), "layers": tuple(subject.layers)})


def _natural(path: str) -> list[str | int]:
    """Sorts names with the numbers in them as numbers, which are every second part."""
    return [int(part) if place % 2 else part for place, part in enumerate(re.split(r"(\d+)", path))]


def _stem(weights: str) -> str:
    """A file's name without folder, query and suffix."""
    name = weights.partition("?")[0].rpartition("/")[2]
    return name.rpartition(".")[0] or name

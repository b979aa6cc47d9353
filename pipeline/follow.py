"""From a list of checkpoints to what is known of each: all are dissected, each in a study of its own."""

import re
from dataclasses import dataclass

from pipeline.compose import RunSettings
from pipeline.errors import SettingsError
from pipeline.ordering import natural
from pipeline.plan import result_ids
from pipeline.redact import shown
from pipeline.settings import OnProgress
from pipeline.stage import Stage
from pipeline.stages.evolution import Checkpoint, Evolution, Followed, spread_out
from pipeline.store import Store
from pipeline.subject import Subject, prepare
from pipeline.tasks import find_checkpoints, is_glob
from workers.models import ModelError
from workers.weights import is_file

STORED = "store:"
TRAINED = "trained"
RANDOM = "random"
LARGEST = 2**31 - 1  # that the column `epoch` holds


@dataclass(frozen=True)
class Following:
    """What an evolution is made from.

    Attributes:
        stage: the stage, with its checkpoints.
        others: those that are not the run's own weights, each once, and how each is dissected.
    """

    stage: Followed
    others: tuple[tuple[RunSettings, Subject], ...]


def follow(
    settings: RunSettings, subject: Subject, stages: dict[str, Stage], on_progress: OnProgress | None = None
) -> Following:
    """Find the checkpoints of a stage `evolution`, load each once, and name the results that will be read of each.

    Nothing has run yet when a file does not fit. The run's own weights come last; where the list does not end with
    them, they are added.

    Args:
        settings: of the run.
        subject: the run's own network.
        stages: their settings, by name.
        on_progress: told about training.

    Raises:
        SettingsError: there are fewer than two checkpoints, or the run's own weights are one of the earlier ones.
        ModelError: a checkpoint is of another network; the message names it.
    """
    stage = stages[Evolution.name]
    assert isinstance(stage, Evolution)
    found = _open_all(stage, settings, subject, on_progress)
    if len(found) < 2:
        raise SettingsError(
            f"checkpoints has {len(found)} checkpoint, must have 2 at least, so that there is something that changes"
        )
    names = name_checkpoints([weights for weights, _ in found])
    points = []
    for name, epoch, (_, one) in zip(names, number_epochs(names), found, strict=True):
        ids = result_ids(one.study, subject.layers, stages)
        points.append(
            Checkpoint(
                name=name,
                epoch=epoch,
                weights=one.model.weights,
                kept=one.model.copy,
                sha256=one.study.weights_sha256,
                study_id=one.study.study_id,
                exemplars={layer: ids["exemplars", layer] for layer in subject.layers},
                detectors={layer: ids["detectors", layer] for layer in subject.layers},
            )
        )
    others = {one.study.study_id: (_with_weights(settings, weights, subject), one) for weights, one in found}
    others.pop(subject.study.study_id)
    return Following(Followed(**stage.model_dump(), points=tuple(points)), tuple(others.values()))


def list_checkpoints(stage: Evolution, store: Store, weights: str, trained: str) -> list[str]:
    """The checkpoints as `model.weights` takes them: globs expanded, numbers in names in their order.

    Args:
        stage: what is listed.
        store: for `store:`.
        weights: `model.weights` of the run.
        trained: where these lie, if the network was trained here.

    Raises:
        SettingsError: none are given, or a glob matches nothing.
        InputError: a place cannot be listed.
    """
    listed: list[str] = []
    for pattern in stage.checkpoints:
        matches = sorted(find_checkpoints(pattern, store), key=natural) if is_glob(pattern) else [pattern]
        if not matches:
            raise SettingsError(f"checkpoints has {shown(pattern)}, which matches no file of weights")
        listed += matches
    if not stage.checkpoints:
        if weights != TRAINED:
            raise SettingsError(
                "checkpoints is empty: give files of weights in the order of the training, or globs such as "
                "checkpoints=[checkpoints/epoch-*.safetensors]"
            )
        listed = [f"{STORED}{path}" for path in _of_training(store, trained)]
    return listed


def name_checkpoints(listed: list[str]) -> list[str]:
    """Files' names without suffix; with their folders where only these tell them apart."""
    stems = [_stem(weights) for weights in listed]
    if len(set(stems)) == len(set(listed)):
        return stems
    return ["/".join([*_folders(weights)[-1:], stem]) for weights, stem in zip(listed, stems, strict=True)]


def number_epochs(names: list[str]) -> list[int | None]:
    """The number in which names differ, and 0 for `random`; None for all where they differ otherwise, or in several."""
    none: list[int | None] = [None] * len(names)
    parts = [re.split(r"(\d+)", name) for name in names if name != RANDOM]
    if len({len(one) for one in parts}) != 1:
        return none
    differing = [place for place in range(len(parts[0])) if len({one[place] for one in parts}) > 1]
    if len(differing) != 1 or differing[0] % 2 == 0:
        return none
    numbers = [int(one[differing[0]]) for one in parts]
    if max(numbers) > LARGEST:
        return none
    rest = iter(numbers)
    return [0 if name == RANDOM else next(rest) for name in names]


def _open_all(
    stage: Evolution, settings: RunSettings, subject: Subject, on_progress: OnProgress | None
) -> list[tuple[str, Subject]]:
    """Those to look at, the run's own weights last; of too many, only these are loaded."""
    listed = list_checkpoints(stage, subject.store, settings.model.weights, subject.model.weights)
    last = _open(listed[-1], settings, subject, on_progress)
    is_own = last.study.study_id == subject.study.study_id
    whole = listed if is_own else [*listed, settings.model.weights]
    picked = [whole[place] for place in spread_out(len(whole), stage.most_checkpoints or len(whole))]
    opened = {listed[-1]: last, settings.model.weights: subject}
    for weights in picked:
        if weights not in opened:
            opened[weights] = _open(weights, settings, subject, on_progress)
    found = [(weights, opened[weights]) for weights in picked]
    own = [one.study.study_id == subject.study.study_id for _, one in found]
    if not is_own and (settings.model.weights in listed or any(own[:-1])):
        earlier = picked[own.index(True)] if any(own[:-1]) else settings.model.weights
        raise SettingsError(
            f"model.weights are those of checkpoint {shown(earlier)}, must be those of the last, {shown(listed[-1])}: "
            "an evolution belongs to the network that training ended with"
        )
    return found


def _of_training(store: Store, weights: str) -> list[str]:
    """Weights that were kept after every epoch, of a network that was trained here."""
    described = weights.removeprefix(STORED).rpartition(".")[0] + ".json"
    return list(store.read_json(described)["checkpoints"])


def _open(weights: str, settings: RunSettings, subject: Subject, on_progress: OnProgress | None) -> Subject:
    """A checkpoint, once it has proved to be of the run's network.

    Raises:
        SettingsError: it cannot be read.
        ModelError: it is of another network.
    """
    try:
        found = prepare(_with_weights(settings, weights, subject), on_progress)
    except (ModelError, SettingsError) as error:
        reason = shown(str(error).removeprefix("model.weights: "))
        raise type(error)(f"checkpoint {shown(weights)}: {reason}") from error
    for name, layer in subject.layers.items():
        if found.layers[name].num_units != layer.num_units:
            raise ModelError(
                f"checkpoint {shown(weights)} is of another network: layer {name} has "
                f"{found.layers[name].num_units} units, that of {shown(settings.model.weights)} has {layer.num_units}"
            )
    if found.study.preprocessing != subject.study.preprocessing:
        raise ModelError(
            f"checkpoint {shown(weights)} wants images as {found.study.preprocessing}, "
            f"{shown(settings.model.weights)} as {subject.study.preprocessing}: patterns cannot be compared"
        )
    return found


def _with_weights(settings: RunSettings, weights: str, subject: Subject) -> RunSettings:
    """A run that dissects the same layers of the network with other weights."""
    model = settings.model.model_copy(update={"weights": weights, "sha256": None})
    return settings.model_copy(update={"model": model, "stages": ("dissect",), "layers": tuple(subject.layers)})


def _stem(weights: str) -> str:
    """A file's name without folder, query and suffix."""
    name = weights.partition("?")[0].rpartition("/")[2]
    return name.rpartition(".")[0] if is_file(weights) else name


def _folders(weights: str) -> list[str]:
    return [part for part in weights.removeprefix(STORED).partition("?")[0].split("/")[:-1] if part]

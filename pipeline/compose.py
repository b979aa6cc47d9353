"""From command-line overrides to settings: Hydra composes the files of `conf`, pydantic validates.

Nothing is instantiated by name. A bare name of a stage's setting goes to every stage that has it
(`mask_order=threshold_first`); a model or data set without a file of its own in `conf` is taken by name.
"""

import re
from importlib.resources import files
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

from hydra import compose, initialize_config_dir
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import Field, ValidationError, field_validator, model_validator

from pipeline.errors import SettingsError
from pipeline.ingest import DataSettings
from pipeline.settings import Cluster, Settings, nearest
from pipeline.stage import Stage
from pipeline.stages import STAGES
from pipeline.stages.pilot import Pilot
from pipeline.stages.thresholds import Thresholds

GROUPS = ("model", "data", "cluster")
"""Groups of `conf` whose value on the command line is the name of a file."""

BY_NAME = ("model", "data")
"""Groups in which a name without a file stands for itself."""

REACH = 1.5
"""How many times the quantile the pilot's tail must hold, lest too many units be recorded again."""

Convention = Literal["netdissect", "netdissect_lite", "net2vec", "survey"]

CONVENTIONS: dict[str, dict[str, str]] = {
    "netdissect": {"union": "annotated", "mask_order": "upsample_first", "upsampling": "receptive_field"},
    "netdissect_lite": {"union": "under_mask", "mask_order": "upsample_first", "upsampling": "resize"},
    "net2vec": {"union": "concept", "mask_order": "threshold_first", "upsampling": "resize"},
    "survey": {"union": "all", "mask_order": "threshold_first", "upsampling": "resize"},
}
"""What the published codes do: Bau et al. 2017 (Caffe), NetDissect-Lite, Fong & Vedaldi 2018, the survey's Eq. 18, 19."""


class ModelSettings(Settings):
    """Which network, with which weights (`model=...`)."""

    name: str
    weights: str = "DEFAULT"  # a torchvision enum's name, a file or URL, random, or trained (mininet and its variants)
    sha256: str | None = None  # of the weights file; refused if it differs
    seed: int = 0  # of random weights, and of mininet's training
    num_classes: int | None = Field(None, ge=1)
    epochs: int | None = Field(None, ge=1)  # of mininet's training


class RunSettings(Settings):
    """Everything `raydissect run` reads."""

    store: str = Field(min_length=1)
    model: ModelSettings
    data: DataSettings
    cluster: Cluster = Cluster.model_validate({})
    stage: dict[str, dict[str, Any]] = {}
    stages: tuple[str, ...] = Field(("dissect",), min_length=1)
    layers: tuple[str, ...] = Field(("auto",), min_length=1)
    convention: Convention | None = None

    @field_validator("store")
    @classmethod
    def _without_password(cls, store: str) -> str:
        if re.search(r"://[^/@]*:[^/@]*@", store):
            raise ValueError("has a password in its URL, which would be told to everyone: leave it in the environment")
        return store

    @model_validator(mode="before")
    @classmethod
    def _one_or_many(cls, values: dict[str, Any]) -> dict[str, Any]:
        """A single layer or stage need not be written as a list."""
        for name in ("layers", "stages"):
            if isinstance(values.get(name), str):
                values = {**values, name: [values[name]]}
        return values

    def stages_by_name(self) -> dict[str, Stage]:
        """All stages with their settings; a convention fills in what it sets, an explicit setting must agree.

        Raises:
            SettingsError: a stage or a setting is unknown or out of range.
        """
        filled = CONVENTIONS.get(self.convention or "", {})
        stages: dict[str, Stage] = {}
        for name, kind in STAGES.items():
            given = dict(self.stage.get(name) or {})
            for key, value in filled.items():
                if key not in kind.model_fields:
                    continue
                if given.get(key, value) != value:
                    raise SettingsError(
                        f"convention={self.convention} sets {key}={value}, but {key}={given[key]} was asked for; leave one out"
                    )
                given[key] = value
            stages[name] = validate(kind, given, f"stage.{name}.")
        stages[Pilot.name] = _reaching(stages[Pilot.name], stages[Thresholds.name])
        return stages

    def asked_of_stages(self) -> dict[str, dict[str, Any]]:
        """The settings by stage that were given, or that a convention sets; not those left at their defaults."""
        asked = {
            name: stage.model_dump(mode="json", include=stage.model_fields_set)
            for name, stage in self.stages_by_name().items()
        }
        return {name: given for name, given in asked.items() if given}


def _reaching(pilot: Any, thresholds: Any) -> Pilot:
    """The pilot with a tail that reaches well below the quantile, unless its own was asked for."""
    if "tail_quantile" in pilot.model_fields_set or pilot.tail_quantile > REACH * thresholds.quantile:
        return pilot
    return pilot.model_copy(update={"tail_quantile": min(2 * thresholds.quantile, (1 + thresholds.quantile) / 2)})


AnySettings = TypeVar("AnySettings", bound=Settings)


def validate(kind: type[AnySettings], values: dict[str, Any], prefix: str = "") -> AnySettings:
    """Validate settings, with a message that names each bad one and the nearest that exists.

    Raises:
        SettingsError: any setting is unknown, missing, or out of range.
    """
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        lines = [_explain(kind, problem, prefix) for problem in error.errors()]
        raise SettingsError("\n".join(lines)) from error


def compose_settings(overrides: list[str]) -> RunSettings:
    """Compose `conf` with overrides such as `model=alexnet`, `quantile=0.01`, `cluster.workers=2`.

    A value is text as it stands, whatever characters it has, and is read by its setting's type: no quotes are
    needed around paths. `null` is no value, `[a,b]` a list, and a mapping has Hydra's grammar (`{CPU:1}`). Nothing
    is put in for `${...}`, wherever it stands.

    Raises:
        SettingsError: an override cannot be read, or a setting is unknown or out of range.
    """
    composed: dict[str, str] = {}
    assigned: dict[str, Any] = {}
    for name, text in (pair for one in overrides for pair in _rewrite(one)):
        if name in GROUPS:
            composed[name] = text
        elif name in _MAPPINGS or name not in _KINDS:
            composed[f"++{name}"] = text
        else:
            assigned[name] = _read_value(_KINDS[name], text)
    values = _compose_files([f"{name}={text}" for name, text in composed.items()])
    for name, value in assigned.items():
        *groups, last = name.split(".")
        place = values
        for group in groups:
            place[group] = place.get(group) or {}
            place = place[group]
        place[last] = value
    values["stage"] = {name: given or {} for name, given in (values.get("stage") or {}).items()}
    settings = validate(RunSettings, values)
    if unknown := sorted(set(settings.stage) - set(STAGES)):
        raise _unknown_stage(unknown[0])
    settings.stages_by_name()
    return settings


def given_settings(overrides: list[str]) -> dict[str, Any]:
    """The values, by full name and as JSON has them, that overrides set; of a group all that its file sets.

    Raises:
        SettingsError: as `compose_settings`.
    """
    composed = compose_settings(overrides).model_dump(mode="json")
    given: dict[str, Any] = {}
    for name in (name for one in overrides for name, _ in _rewrite(one)):
        name = "cluster.executor" if name == "cluster" else name
        value: Any = composed
        for part in name.split("."):
            value = value[part]
        given |= {f"{name}.{key}": one for key, one in value.items()} if isinstance(value, dict) else {name: value}
    return given


def _compose_files(overrides: list[str]) -> dict[str, Any]:
    """What Hydra makes of the files of `conf`; `${...}` stays text, or it could read the environment."""
    folder = str(Path(str(files("conf"))).resolve())
    try:
        with initialize_config_dir(folder, version_base="1.3"):
            values: Any = OmegaConf.to_container(compose("config", overrides=overrides), resolve=False)
    except (HydraException, OmegaConfBaseException) as error:
        given = " ".join(one.removeprefix("++") for one in overrides)
        raise SettingsError(f"{given} cannot be read as settings: {str(error).splitlines()[0]}") from error
    return values


def _rewrite(override: str) -> list[tuple[str, str]]:
    """Full names and values of what one override sets; a group's name stands for a file of it.

    Raises:
        SettingsError: it is not `name=value`, or the name is that of no setting.
    """
    name, equals, value = override.partition("=")
    name = name.removeprefix("+").removeprefix("+")
    if not equals or not name or name.startswith("~"):
        raise SettingsError(f"{override!r} is no setting, must be name=value (name=null for no value)")
    if name in GROUPS:
        options = _options(name)
        if value in options:
            return [(name, value)]
        if name in BY_NAME:
            return [(name, "any"), (f"{name}.name", value)]
        raise SettingsError(f"{name} is {value!r}, must be among {options}{nearest(value, options)}")
    if name in _KINDS or any(name.startswith(f"{open_ended}.") for open_ended in _MAPPINGS):
        return [(name, value)]
    if owners := [stage for stage, kind in STAGES.items() if name in kind.model_fields]:
        return [(f"stage.{owner}.{name}", value) for owner in owners]
    stage = name.split(".")[1] if name.startswith("stage.") else ""
    if stage and stage not in STAGES:
        raise _unknown_stage(stage)
    known = sorted({*_KINDS, *GROUPS, *(field for kind in STAGES.values() for field in kind.model_fields)})
    raise SettingsError(f"unknown setting {name!r}{nearest(name, known)}; `raydissect run --settings` prints all")


def _unknown_stage(name: str) -> SettingsError:
    return SettingsError(f"unknown stage {name!r}, there is {list(STAGES)}{nearest(name, list(STAGES))}")


def _flatten(kind: type[Settings], prefix: str = "") -> dict[str, Any]:
    """The types of single settings by their full names."""
    kinds: dict[str, Any] = {}
    for name, field in kind.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, Settings):
            kinds |= _flatten(field.annotation, f"{prefix}{name}.")
        else:
            kinds[f"{prefix}{name}"] = field.annotation
    return kinds


def _kinds_in(kind: Any) -> set[Any]:
    """The classes of a type such as `tuple[str, ...] | None`, without what is inside them."""
    if get_origin(kind) in (Union, UnionType):
        return {one for part in get_args(kind) for one in _kinds_in(part)}
    return {get_origin(kind) or kind}


_KINDS = {name: kind for name, kind in _flatten(RunSettings).items() if name != "stage"} | {
    full: kind for stage, owner in STAGES.items() for full, kind in _flatten(owner, f"stage.{stage}.").items()
}
_MAPPINGS = [name for name, kind in _KINDS.items() if dict in _kinds_in(kind)]


def _read_value(kind: Any, text: str) -> Any:
    """A value as pydantic takes it; a list may leave out its brackets."""
    kinds = _kinds_in(kind)
    if text == "null" and NoneType in kinds:
        return None
    if tuple not in kinds:
        return _unquote(text)
    bracketed = text.endswith("]") and all(_depth(text[:end]) > 0 for end in range(1, len(text)))
    inside = text[1:-1] if bracketed else text
    parts = [""]
    for character in inside:
        if character == "," and _depth(parts[-1]) == 0:
            parts.append("")
        else:
            parts[-1] += character
    return [_unquote(part.strip()) for part in parts] if inside.strip() else []


def _depth(text: str) -> int:
    """How many brackets are open at the end of a text: a glob such as `conv[1,3]` has commas of its own."""
    return text.count("[") - text.count("]")


def _unquote(text: str) -> str:
    return text[1:-1] if len(text) > 1 and text[0] == text[-1] and text[0] in "'\"" else text


def _options(group: str) -> list[str]:
    names = [
        entry.name.removesuffix(".yaml") for entry in (files("conf") / group).iterdir() if entry.name.endswith(".yaml")
    ]
    return sorted(set(names) - {"any"})


def _explain(kind: type[Settings], problem: Any, prefix: str) -> str:
    """One validation error, for a person."""
    place = [str(part) for part in problem["loc"]]
    name = (prefix + ".".join(place)).rstrip(".")
    if problem["type"] == "extra_forbidden":
        known = _fields_at(kind, place[:-1])
        return f"unknown setting {name!r}{nearest(place[-1], known)}; there is {known}"
    if problem["type"] == "missing":
        return f"{name} is not set"
    if problem["type"] == "value_error":
        return f"{name or 'settings'}: {problem['ctx']['error']}"
    if problem["type"] == "literal_error" and isinstance(problem["input"], str):
        allowed = [one.strip("'") for one in re.split(", | or ", problem["ctx"]["expected"])]
        return f"{name} is {problem['input']!r}, must be among {allowed}{nearest(problem['input'], allowed)}"
    return f"{name or 'settings'} is {problem['input']!r}: {problem['msg']}"


def _fields_at(kind: Any, place: list[str]) -> list[str]:
    """Names of the settings below a place."""
    for part in place:
        field = getattr(kind, "model_fields", {}).get(part)
        kind = field.annotation if field else None
    return sorted(getattr(kind, "model_fields", {}))

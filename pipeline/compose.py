"""From command-line overrides to settings: Hydra composes the files of `conf`, pydantic validates.

Nothing is instantiated by name. A bare name of a stage's setting goes to every stage that has it
(`mask_order=threshold_first`); a model or data set without a file of its own in `conf` is taken by name.
"""

from importlib.resources import files
from pathlib import Path
from typing import Any, Literal, TypeVar

from hydra import compose, initialize_config_dir
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import Field, ValidationError, model_validator

from pipeline.errors import SettingsError
from pipeline.ingest import DataSettings
from pipeline.settings import Cluster, Settings, nearest
from pipeline.stage import Stage
from pipeline.stages import STAGES

GROUPS = ("model", "data", "cluster")
"""Groups of `conf` whose value on the command line is the name of a file."""

BY_NAME = ("model", "data")
"""Groups in which a name without a file stands for itself."""

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
    weights: str = "DEFAULT"  # a torchvision enum's name, a file or URL, random, or trained (mininet)
    sha256: str | None = None  # of the weights file; refused if it differs
    seed: int = 0  # of random weights, and of mininet's training
    num_classes: int | None = Field(None, ge=1)
    epochs: int | None = Field(None, ge=1)  # of mininet's training


class RunSettings(Settings):
    """Everything `raydissect run` reads."""

    store: str
    model: ModelSettings
    data: DataSettings
    cluster: Cluster = Cluster()
    stage: dict[str, dict[str, Any]] = {}
    stages: tuple[str, ...] = ("dissect",)
    layers: tuple[str, ...] = ("auto",)
    convention: Convention | None = None

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
        stages = {}
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
        return stages


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

    Raises:
        SettingsError: an override cannot be read, or a setting is unknown or out of range.
    """
    folder = str(Path(str(files("conf"))).resolve())
    try:
        with initialize_config_dir(folder, version_base="1.3"):
            config = compose("config", overrides=[part for one in overrides for part in _rewrite(one)])
        values: Any = OmegaConf.to_container(config, resolve=True)
    except (HydraException, OmegaConfBaseException) as error:
        raise SettingsError(f"the settings cannot be read: {str(error).splitlines()[0]}") from error
    values["stage"] = {name: chosen or {} for name, chosen in (values.get("stage") or {}).items()}
    settings = validate(RunSettings, values)
    if unknown := sorted(set(settings.stage) - set(STAGES)):
        raise SettingsError(f"unknown stage {unknown[0]!r}, there is {list(STAGES)}{nearest(unknown[0], list(STAGES))}")
    settings.stages_by_name()
    return settings


def _rewrite(override: str) -> list[str]:
    """Hydra's form of one override.

    Raises:
        SettingsError: it is not `name=value`, or the name is that of no setting.
    """
    name, equals, value = override.partition("=")
    if not equals or not name:
        raise SettingsError(f"{override!r} is no setting, must be name=value")
    if name in GROUPS:
        options = _options(name)
        if value in options:
            return [override]
        if name in BY_NAME:
            return [f"{name}=any", f"++{name}.name={value}"]
        raise SettingsError(f"{name} is {value!r}, must be among {options}{nearest(value, options)}")
    if "." in name or name in RunSettings.model_fields:
        return [f"++{name}={value}"]
    if owners := [stage for stage, kind in STAGES.items() if name in kind.model_fields]:
        return [f"++stage.{owner}.{name}={value}" for owner in owners]
    known = sorted({*RunSettings.model_fields, *(field for kind in STAGES.values() for field in kind.model_fields)})
    raise SettingsError(f"unknown setting {name!r}{nearest(name, known)}; top-level settings are {known}")


def _options(group: str) -> list[str]:
    names = [
        entry.name.removesuffix(".yaml") for entry in (files("conf") / group).iterdir() if entry.name.endswith(".yaml")
    ]
    return sorted(set(names) - {"any"})


def _explain(kind: type[Settings], problem: Any, prefix: str) -> str:
    """One validation error, for a person."""
    place = [str(part) for part in problem["loc"]]
    name = prefix + ".".join(place)
    if problem["type"] == "extra_forbidden":
        known = _fields_at(kind, place[:-1])
        return f"unknown setting {name!r}{nearest(place[-1], known)}; there is {known}"
    if problem["type"] == "missing":
        return f"{name} is not set"
    return f"{name or 'settings'} is {problem['input']!r}: {problem['msg']}"


def _fields_at(kind: Any, place: list[str]) -> list[str]:
    """Names of the settings below a place."""
    for part in place:
        field = getattr(kind, "model_fields", {}).get(part)
        kind = field.annotation if field else None
    return sorted(getattr(kind, "model_fields", {}))

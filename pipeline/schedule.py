"""A schedule file: which networks and checkpoints are dissected on which data sets, when, and what stays of it."""

import re
from pathlib import Path
from typing import Any, Self

import yaml
from pydantic import Field, field_validator, model_validator

from pipeline.compose import validate
from pipeline.datasets import NAME
from pipeline.errors import SettingsError
from pipeline.settings import Settings, flatten

OF_JOBS = {
    "store": "store",
    "model": "models of a job",
    "model.name": "models of a job",
    "model.weights": "checkpoints of a job",
    "data": "data of a job",
    "data.name": "data of a job",
    "layers": "layers of a job",
    "stages": "stages of a job",
}
"""Settings of a run that the schedule gives by other names."""


class OnFailure(Settings):
    """Who is told, as JSON, of every task that failed."""

    command: tuple[str, ...] = ()  # a program and its arguments, run without a shell; the JSON is its input
    url: str | None = None  # the JSON is POSTed there

    @field_validator("url")
    @classmethod
    def _web(cls, url: str | None) -> str | None:
        if url is not None and not re.match(r"https?://[^/]", url):
            raise ValueError(f"is {url!r}, must begin with http:// or https://")
        return url


class Retention(Settings):
    """What is removed after the tasks; nothing, unless one of the first three is set."""

    older_than_days: float | None = Field(None, gt=0)  # results published longer ago
    keep_newest: int | None = Field(None, ge=1)  # results beyond these, of a stage on a layer of a study
    staging: bool = False  # what published results left in staging
    grace_hours: float = Field(168, ge=0)  # files that no manifest names stay this long: an unfinished run's, say

    @property
    def wanted(self) -> bool:
        return self.older_than_days is not None or self.keep_newest is not None or self.staging


class Entry(Settings):
    """One of `jobs`: every model with every checkpoint on every data set; layers and stages are one run."""

    models: tuple[str, ...] = Field(min_length=1)
    data: tuple[str, ...] = Field(min_length=1)
    checkpoints: tuple[str, ...] = ()  # names, files, URLs, globs of these; none: what the model has by itself
    layers: tuple[str, ...] = Field(("auto",), min_length=1)
    stages: tuple[str, ...] = Field(("dissect",), min_length=1)
    settings: dict[str, Any] = {}  # over those of the schedule

    @model_validator(mode="before")
    @classmethod
    def _one_or_many(cls, values: Any) -> Any:
        """A single name need not be written as a list."""
        if not isinstance(values, dict):
            return values
        lists = ("models", "checkpoints", "data", "layers", "stages")
        return {name: [one] if name in lists and isinstance(one, str) else one for name, one in values.items()}

    @field_validator("settings")
    @classmethod
    def _of_runs(cls, settings: dict[str, Any]) -> dict[str, Any]:
        return _flat(settings)


class Schedule(Settings):
    """A schedule file."""

    name: str = Field(pattern=NAME)  # the file's, unless it gives one
    store: str = Field(min_length=1)
    cron: str | None = None  # minute hour day month weekday: when `--serve` runs it
    timezone: str = "UTC"
    concurrency: int = Field(1, ge=1)  # tasks at once
    lease_seconds: float = Field(120, ge=1)  # after which a reprocess that was killed no longer keeps others out
    on_failure: OnFailure = OnFailure()
    retention: Retention = Retention.model_validate({})
    settings: dict[str, Any] = {}  # of every run, as `cluster.workers: 4`
    jobs: tuple[Entry, ...] = Field(min_length=1)

    @field_validator("settings")
    @classmethod
    def _of_runs(cls, settings: dict[str, Any]) -> dict[str, Any]:
        return _flat(settings)

    @model_validator(mode="after")
    def _times(self) -> Self:
        from pipeline.cron import cron_trigger, time_zone

        time_zone(self.timezone)
        if self.cron is not None:
            cron_trigger(self.cron, self.timezone)
        return self


def read_schedule(path: Path) -> Schedule:
    """Read a schedule file.

    Raises:
        SettingsError: it cannot be read, or something in it is unknown, missing or out of range.
    """
    try:
        values = yaml.load(path.read_bytes(), _Loader)
    except OSError as error:
        raise SettingsError(f"cannot read schedule {path}: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise SettingsError(f"schedule {path} is no YAML: {error}") from error
    if not isinstance(values, dict):
        raise SettingsError(f"schedule {path} is a {type(values).__name__}, must be a mapping with store and jobs")
    try:
        return validate(Schedule, {"name": path.stem, **values, "jobs": _entries(values.get("jobs"))})
    except SettingsError as error:
        raise SettingsError(f"schedule {path}: {error}") from error


def to_words(settings: dict[str, Any]) -> list[str]:
    """Settings as the command line has them: `name=value`."""
    return [f"{name}={_to_text(value)}" for name, value in settings.items()]


def _entries(jobs: Any) -> list[Entry]:
    """Each job by itself, so that a message names the one that is wrong."""
    if not isinstance(jobs, list):
        raise SettingsError(f"jobs is {jobs!r}, must be a list of jobs with models and data")
    for place, job in enumerate(jobs):
        if not isinstance(job, dict):
            raise SettingsError(f"jobs.{place} is {job!r}, must be a mapping with models and data")
    return [validate(Entry, job, f"jobs.{place}.") for place, job in enumerate(jobs)]


def _flat(settings: dict[str, Any]) -> dict[str, Any]:
    """`cluster: {workers: 4}` is `cluster.workers: 4`."""
    flat = flatten(settings)
    for name in flat:
        if name in OF_JOBS:
            raise ValueError(f"has {name}, which a schedule gives as {OF_JOBS[name]}")
    return flat


def _to_text(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return f"[{','.join(map(_to_text, value))}]"
    return str(value)


class _Loader(yaml.SafeLoader):
    """Refuses a name that is given twice: plain YAML takes the last, and half of the jobs would be gone unseen."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        names = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode) and key.value != "<<"]
        for name in names:
            if names.count(name) > 1:
                raise yaml.constructor.ConstructorError(None, None, f"{name!r} is given twice", node.start_mark)
        return super().construct_mapping(node, deep)

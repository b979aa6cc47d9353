"""From a schedule to its tasks: one network with one checkpoint on one data set, its layers and stages in one run."""

import platform
import re
from collections import Counter
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from pipeline.compose import RunSettings, compose_settings
from pipeline.errors import InputError, SettingsError
from pipeline.plan import expand_stages
from pipeline.redact import shown
from pipeline.schedule import Entry, Schedule, to_words
from pipeline.settings import nearest
from pipeline.stages import STAGES
from pipeline.store import Store, digest
from pipeline.subject import resolve_device
from workers.models import TIMM, available
from workers.weights import is_file

NUMERICS = ("threads", "device", "precision", "memory_format")
"""Settings of the cluster that results depend on."""


@dataclass(frozen=True)
class Task:
    """One run of a schedule.

    Attributes:
        settings: what the run is to do.
        words: the same, as the command line has it.
        problem: why it cannot even be begun.
        mark: the beginning of its id, where another task would have the same name.
    """

    settings: RunSettings
    words: tuple[str, ...]
    problem: str | None = None
    mark: str = ""

    @property
    def model(self) -> str:
        return self.settings.model.name

    @property
    def checkpoint(self) -> str:
        return self.settings.model.weights

    @property
    def data(self) -> str:
        return self.settings.data.dataset_name

    @property
    def name(self) -> str:
        """For people: the model, the checkpoint without its folder, the data set."""
        return f"{self.model} {shown(self.checkpoint).rpartition('/')[2]} {self.data} {self.mark}".rstrip()

    @cached_property
    def place(self) -> str:
        """What tasks have in common that differ only in layers, stages or settings."""
        return digest([self.model, self.checkpoint, self.data])

    @cached_property
    def stages(self) -> list[str]:
        """The stages asked for."""
        return expand_stages(list(self.settings.stages))

    @cached_property
    def read_stages(self) -> list[str]:
        """These, and all that they read."""
        needed, stages = set(self.stages), self.settings.stages_by_name()
        for name in reversed(STAGES):
            if name in needed:
                needed |= set(stages[name].reads())
        return [name for name in STAGES if name in needed]

    @cached_property
    def task_id(self) -> str:
        """Hash of all that is asked for and that results depend on; not how many workers do it."""
        stages = self.settings.stages_by_name()
        return digest(
            [
                self.settings.model.model_dump(),
                self.data,
                self.settings.layers,
                sorted(self.stages),
                {name: stages[name].model_dump(mode="json") for name in self.read_stages},
                self.settings.cluster.model_dump(include=set(NUMERICS)),
            ]
        )

    @cached_property
    def environment(self) -> str:
        """Hash of what results depend on beyond weights, data and settings: versions, the kind of machine."""
        return digest(
            [
                torch.__version__,
                platform.machine(),
                torch.backends.cpu.get_cpu_capability(),
                resolve_device(self.settings.cluster),
                {name: STAGES[name].version for name in self.read_stages},
            ]
        )


@dataclass
class Expansion:
    """The tasks of a schedule, and what there is to say of how they came about."""

    tasks: list[Task] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)


def expand(schedule: Schedule) -> Expansion:
    """Find the checkpoints and make the tasks, each once, in the schedule's order.

    Raises:
        SettingsError: a model, a stage or a setting is unknown or out of range.
    """
    store, expansion = Store(schedule.store), Expansion()
    found: dict[str, Task] = {}
    for place, entry in enumerate(schedule.jobs):
        for model in entry.models:
            if not model.startswith(TIMM) and model not in available():
                raise SettingsError(f"jobs.{place}.models has unknown {model!r}{nearest(model, available())}")
        checkpoints, problems = _checkpoints(entry, store)
        empty = [pattern for pattern in entry.checkpoints if is_glob(pattern) and not checkpoints[pattern]]
        expansion.remarks += [
            f"jobs.{place}: {shown(pattern)} matches no weights file" for pattern in empty if pattern not in problems
        ]
        for model in entry.models:
            for data in entry.data:
                words = _words(schedule, entry, model, data)
                try:
                    settings = compose_settings(words)
                    expand_stages(list(settings.stages))
                except SettingsError as error:
                    raise SettingsError(f"jobs.{place}: {error}") from error
                for pattern in entry.checkpoints or (settings.model.weights,):
                    problem = problems.get(pattern)
                    for checkpoint in [pattern] if problem else checkpoints.get(pattern, [pattern]):
                        task = _task(settings, words, checkpoint, problem)
                        found.setdefault(task.task_id, task)
    names = Counter(task.name for task in found.values())
    expansion.tasks = [
        replace(task, mark=task.task_id[:6]) if names[task.name] > 1 else task for task in found.values()
    ]
    return expansion


def is_glob(checkpoint: str) -> bool:
    """Whether a checkpoint stands for many; in a web address, a `?` begins its query."""
    return bool(re.search(r"\*" if checkpoint.startswith(("http://", "https://")) else r"[*?[]", checkpoint))


def find_checkpoints(pattern: str, store: Store) -> list[str]:
    """The weights files that a glob matches, sorted, as `model.weights` takes them.

    Args:
        pattern: a path or URL with `*`, `?`, `[...]` or `**`; `store:...` looks into the store.
        store: for `store:`.

    Raises:
        InputError: the place cannot be listed.
    """
    inside = pattern.startswith("store:")
    if "::" in pattern:
        raise InputError(f"checkpoints has {shown(pattern)}: chained URLs cannot be matched; name the files")
    try:
        filesystem, path = Store(pattern).filesystem
        root = ""
        if inside:
            filesystem, root = store.filesystem
            path = f"{root}/{pattern.removeprefix('store:')}"
        filesystem.invalidate_cache()
        matches: Any = filesystem.glob(path, detail=True)
    except SettingsError as error:
        raise InputError(f"checkpoints has {shown(pattern)}: {error}") from error
    except Exception as error:  # of file systems, many kinds
        raise InputError(f"cannot list checkpoints {shown(pattern)}: {error}") from error
    files = [name for name, info in matches.items() if info["type"] == "file" and is_file(name)]
    if inside:
        return sorted(f"store:{name[len(root) + 1 :]}" for name in files)
    return sorted(name if "://" not in pattern else filesystem.unstrip_protocol(name) for name in files)


def checkpoint_key(checkpoint: str, store: Store) -> str | None:
    """What changes when a checkpoint's file does, without reading it; None where only reading can tell.

    Weights that have a name do not change.

    Raises:
        InputError: there is no such file.
    """
    if not is_file(checkpoint):
        return "named"
    try:
        if checkpoint.startswith("store:"):
            filesystem, root = store.filesystem
            path = f"{root}/{checkpoint.removeprefix('store:')}"
        else:
            filesystem, path = Store(checkpoint).filesystem
        filesystem.invalidate_cache()
        info = filesystem.info(path)
    except FileNotFoundError as error:
        raise InputError(f"there is no checkpoint {shown(checkpoint)}") from error
    except Exception as error:  # of file systems, many kinds
        raise InputError(f"cannot look at checkpoint {shown(checkpoint)}: {error}") from error
    tells = {"ETag", "Content-MD5", "Digest", "Last-Modified"}
    if checkpoint.startswith(("http://", "https://")) and not tells & set(info):
        return None
    return digest(str(sorted(info.items())))


def _checkpoints(entry: Entry, store: Store) -> tuple[dict[str, list[str]], dict[str, str]]:
    """What each glob of an entry matches, and why others could not be listed; paths are made absolute."""
    found: dict[str, list[str]] = {}
    problems: dict[str, str] = {}
    for pattern in entry.checkpoints:
        if is_glob(pattern):
            try:
                found[pattern] = find_checkpoints(pattern, store)
            except InputError as error:
                found[pattern], problems[pattern] = [], str(error)
        elif is_file(pattern) and "://" not in pattern and not pattern.startswith("store:"):
            found[pattern] = [str(Path(pattern).absolute())]
        else:
            found[pattern] = [pattern]
    return found, problems


def _words(schedule: Schedule, entry: Entry, model: str, data: str) -> list[str]:
    return [
        f"store={schedule.store}",
        f"model={model}",
        f"data={data}",
        f"layers=[{','.join(entry.layers)}]",
        f"stages=[{','.join(entry.stages)}]",
        *to_words({**schedule.settings, **entry.settings}),
    ]


def _task(settings: RunSettings, words: list[str], checkpoint: str, problem: str | None) -> Task:
    model = settings.model.model_copy(update={"weights": checkpoint})
    return Task(settings.model_copy(update={"model": model}), (*words, f"model.weights={checkpoint}"), problem)

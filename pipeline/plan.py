"""What a run has to do: which results there are, which are missing, and what must be read again."""

from collections.abc import Collection
from dataclasses import dataclass

from pipeline.errors import SettingsError
from pipeline.results import Result, find_result
from pipeline.settings import nearest
from pipeline.stage import Stage
from pipeline.stages import GROUPS, STAGES
from pipeline.store import Store
from pipeline.study import Study

Key = tuple[str, str]
"""A stage's name and a layer."""


@dataclass(frozen=True)
class Plan:
    """Results by stage and layer: their ids, those that are published, those to work on.

    Attributes:
        stages: in an order in which each comes after what it reads.
        ids: the result ids.
        published: what was found.
        todo: what must be made, or made again because staging that is needed is gone.
    """

    stages: tuple[Stage, ...]
    layers: tuple[str, ...]
    ids: dict[Key, str]
    published: dict[Key, Result]
    todo: frozenset[Key]


def expand_stages(names: list[str]) -> list[str]:
    """Stage names, groups like `dissect` replaced by what they stand for.

    Raises:
        SettingsError: there is no such stage; the message names the nearest.
    """
    expanded: list[str] = []
    for name in names:
        if name not in GROUPS and name not in STAGES:
            known = [*GROUPS, *STAGES]
            raise SettingsError(f"stages has {name!r}, must be among {known}{nearest(name, known)}")
        expanded += GROUPS.get(name, (name,))
    return expanded


def make_plan(
    store: Store,
    study: Study,
    layers: list[str],
    wanted: list[str],
    stages: dict[str, Stage],
    again: Collection[Key] = (),
) -> Plan:
    """Plan the wanted stages, those to make `again`, and whatever they need.

    A stage that is not wanted runs only where its result is missing and something that runs reads it, or
    where its staging is gone and something that runs reads that.
    """
    ids = result_ids(study, layers, stages)
    published = {
        key: result
        for key, identity in ids.items()
        if (result := find_result(store, study.study_id, *key, identity)) is not None
    }
    todo: set[Key] = set()
    needed: set[Key] = {(name, layer) for name in wanted for layer in layers} | set(again)
    reread: set[Key] = set()
    for name in reversed(STAGES):
        for layer in layers:
            key = (name, layer)
            found = published.get(key)
            if (found is None and key in needed) or (key in reread and not (found and is_staged(store, found))):
                todo.add(key)
                for read in stages[name].reads():
                    needed.add((read, layer))
                    reread.add((read, layer))
    ordered = tuple(stages[name] for name in STAGES)
    return Plan(ordered, tuple(layers), ids, published, frozenset(todo))


def result_ids(study: Study, layers: Collection[str], stages: dict[str, Stage]) -> dict[Key, str]:
    """The ids of all results that a study's layers could have, without a look at which of them are there."""
    ids: dict[Key, str] = {}
    for name in STAGES:
        for layer in layers:
            inputs = {read: ids[read, layer] for read in stages[name].reads()}
            ids[name, layer] = stages[name].result_id(layer, study, inputs)
    return ids


def is_staged(store: Store, result: Result) -> bool:
    """Whether everything a result left in staging is there still."""
    there = set(store.list(f"staging/{result.result_id}"))
    return all(file.path in there for file in result.staging)

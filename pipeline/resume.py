"""`run --resume RUN`: go on with a run that was announced, on other workers perhaps, but never with other work.

The same command goes on by itself, since results are named by what they depend on; but if a setting, the weights or the
data have changed since, it begins another study, silently. A resumed run refuses that, and says what has changed.
"""

from dataclasses import dataclass
from typing import Any

from pipeline.compose import RunSettings, given_settings, validate
from pipeline.errors import InputError, SettingsError
from pipeline.redact import shown_settings
from pipeline.settings import NUMERICS, flatten
from pipeline.store import Store
from pipeline.study import LAST, Study

_MAY_DIFFER = ("store",)


@dataclass(frozen=True)
class Resumed:
    """What to go on with.

    Attributes:
        run_id: of the run that was announced.
        settings: its own, with what a resumed run may change.
        study: what it looked at.
    """

    run_id: str
    settings: RunSettings
    study: Study

    def check(self, study: Study) -> None:
        """Compare with what is found now.

        Raises:
            SettingsError: weights, data or numerics have changed; the message lists how.
        """
        before, now = flatten(self.study.model_dump(mode="json")), flatten(study.model_dump(mode="json"))
        _refuse(self.run_id, _diff(before, now), "What it looked at has changed")


def read_run(store: Store, run_id: str, overrides: list[str]) -> Resumed:
    """The announced run, and what the command says beyond it.

    Args:
        run_id: or `last`.
        overrides: may name another `store` (the same one, seen from elsewhere), and under `cluster` whatever has no
            say in the numbers, such as `cluster.workers`. Must name again what was withheld from the announcement:
            queries of URLs, which may hold a signature, and values of environment variables.

    Raises:
        InputError: there is no such run.
        SettingsError: the command asks for other work than the run did.
    """
    known = sorted(path.split("/")[-1].removesuffix(".json") for path in store.list("runs") if path.endswith(".json"))
    run_id = known[-1] if run_id == LAST and known else run_id
    if run_id not in known:
        raise InputError(f"no run {run_id!r} in {store.url}; the last are {', '.join(known[-5:]) or 'none'}")
    word = store.read_json(f"runs/{run_id}.json")
    if "settings" not in word:
        raise InputError(f"run {run_id} was announced by an older version, which kept no settings; give them again")
    before = flatten(word["settings"])
    given = given_settings(overrides)
    now = {**before, **given}
    _refuse(run_id, _diff(before, flatten(shown_settings(_nest(now))[0])), "The command asks for other settings")
    lacking = [name for name in word.get("withheld", ()) if not any(f"{name}.".startswith(f"{one}.") for one in given)]
    if lacking:
        names = ", ".join(lacking)
        raise SettingsError(
            f"run {run_id} kept no secrets: give {names} again, with the same value or a newer signature"
        )
    settings = validate(RunSettings, _nest(now))
    return Resumed(run_id, settings, Study.model_validate(word["study"]))


def _refuse(run_id: str, changes: list[str], what: str) -> None:
    if changes:
        lines = "\n".join(f"  {change}" for change in changes)
        raise SettingsError(
            f"run {run_id} cannot go on. {what}:\n{lines}\nWithout --resume this is another piece of work, and is done beside it."
        )


def _diff(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    names = [name for name in sorted(before | now) if before.get(name) != now.get(name) and not _is_free(name)]
    return [f"{name}: {before.get(name)} -> {now.get(name)}" for name in names]


def _is_free(name: str) -> bool:
    group, _, setting = name.partition(".")
    return name in _MAY_DIFFER or (group == "cluster" and setting.partition(".")[0] not in NUMERICS)


def _nest(flat: dict[str, Any]) -> dict[str, Any]:
    nested: dict[str, Any] = {}
    for name, value in flat.items():
        *groups, last = name.split(".")
        place = nested
        for group in groups:
            place = place.setdefault(group, {}) or place[group]
        place[last] = value
    return nested

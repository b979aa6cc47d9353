"""`raydissect gc`: remove what no manifest names, old results on request, and staging on request."""

import re
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from pipeline.datasets import list_datasets
from pipeline.results import Result, list_results
from pipeline.store import Store


@dataclass
class Removed:
    """What a collection removed, or would remove."""

    files: list[str] = field(default_factory=list)
    bytes: int = 0
    results: list[str] = field(default_factory=list)


def collect(
    store: Store,
    *,
    staging: bool = False,
    older_than_days: float | None = None,
    keep_newest: int | None = None,
    grace_hours: float = 24,
    dry_run: bool = False,
) -> Removed:
    """Remove files of no use.

    Args:
        store: where.
        staging: also what published results left in staging: tail maps and partial counts. A new label set
            or quantile then needs another forward pass.
        older_than_days: also results published longer ago, unless one that stays was made from them, and the
            events of runs begun longer ago.
        keep_newest: also results beyond the newest so many of a stage and layer of a study, unless one that
            stays was made from them.
        grace_hours: files that no manifest names are kept while younger, since a run may be writing them; in
            staging, while any file beside them is younger.
        dry_run: say what would go, remove nothing.
    """
    results = list_results(store)
    doomed = _doomed(results, older_than_days, keep_newest)
    gone = {result.path for result in doomed}
    kept = [result for result in results if result.path not in gone]
    published = {f"staging/{result.result_id}" for result in kept}
    unpublished = {f"staging/{result.result_id}" for result in doomed} - published
    removed = Removed(results=sorted({result.result_id for result in doomed}))
    _remove(store, [result.path for result in doomed], removed, dry_run)  # first: readers go by manifests
    _remove(store, _table_paths(doomed), removed, dry_run)
    limit = (datetime.now(UTC) - timedelta(hours=grace_hours)).timestamp()
    live: set[str] = set()  # shards that an ingest under way has finished
    for folder, paths in _staging(store).items():
        if folder in published:
            useless = staging
        elif folder in unpublished:
            useless = True
        else:
            useless = all(store.modified(path) <= limit for path in paths)
            live |= set() if useless else _shards_of_ingest(store, folder, paths)
        if useless:
            _remove(store, paths, removed, dry_run)
    kept_paths = {*_table_paths(kept), *_table_paths(doomed), *live}
    for path in _tables_and_shards(store):
        if path not in kept_paths and store.modified(path) <= limit:
            _remove(store, [path], removed, dry_run)
    if older_than_days is not None:
        _remove(store, _old_events(store, older_than_days), removed, dry_run)
    _remove(store, [path for path in store.partials() if store.modified(path) <= limit], removed, dry_run)
    return removed


def _table_paths(results: list[Result]) -> list[str]:
    return [file.path for result in results for file in result.tables.values()]


def _staging(store: Store) -> dict[str, list[str]]:
    """The files under `staging`, by folder: that of a result, or of an ingest."""
    folders = defaultdict(list)
    for path in store.list("staging"):
        folders["/".join(path.split("/")[:2])].append(path)
    return folders


def _shards_of_ingest(store: Store, folder: str, paths: list[str]) -> set[str]:
    """The shards that the markers of an ingest name; none where the folder is that of a result."""
    if not folder.startswith("staging/ingest-"):
        return set()
    return {store.read_json(path)["entry"]["path"] for path in paths if path.endswith(".json")}


def _tables_and_shards(store: Store) -> list[str]:
    """Files that a manifest must name to stay; studies, runs, data sets and weights stay by themselves."""
    tables = [path for path in store.list("tables") if not re.match(r"tables/(studies|runs)/", path)]
    named = {entry.path for manifest in list_datasets(store) for entry in manifest.shards}
    return tables + [path for path in store.list("datasets/shards") if path not in named]


def _doomed(results: list[Result], older_than_days: float | None, keep_newest: int | None) -> list[Result]:
    """Results that are too old or too many, but for those that one which stays was made from."""
    newest_first = sorted(results, key=lambda result: result.finished, reverse=True)
    limit = None if older_than_days is None else datetime.now(UTC) - timedelta(days=older_than_days)
    seen: Counter[tuple[str, str, str]] = Counter()
    stay = []
    for result in newest_first:
        place = (result.study_id, result.stage, result.layer)
        seen[place] += 1
        too_old = limit is not None and result.finished < limit
        too_many = keep_newest is not None and seen[place] > keep_newest
        if not (too_old or too_many):
            stay.append(result)
    by_id = {(result.study_id, result.result_id): result for result in results}
    needed: set[str] = set()
    while stay:
        result = stay.pop()
        if result.path not in needed:
            needed.add(result.path)
            stay += [by_id[key] for read in result.inputs.values() if (key := (result.study_id, read)) in by_id]
    return [result for result in newest_first if result.path not in needed]


def _old_events(store: Store, days: float) -> list[str]:
    """Events of runs begun so long ago; a run's id begins with its moment."""
    limit = f"{datetime.now(UTC) - timedelta(days=days):%Y%m%dT%H%M%S}"
    return [path for path in store.list("events") if path.split("/")[1] < limit]


def _remove(store: Store, paths: list[str], removed: Removed, dry_run: bool) -> None:
    for path in paths:
        removed.files.append(path)
        removed.bytes += store.size(path)
        if not dry_run:
            store.remove(path)

"""`raydissect gc`: remove what no manifest names, old results on request, and staging on request."""

import re
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
        older_than_days: also results published longer ago.
        keep_newest: also results beyond the newest so many of a stage and layer of a study.
        grace_hours: files that no manifest names are kept while younger, since a run may be writing them.
        dry_run: say what would go, remove nothing.
    """
    results = list_results(store)
    doomed = _doomed(results, older_than_days, keep_newest)
    doomed_ids = {result.result_id for result in doomed}
    kept = [result for result in results if result.result_id not in doomed_ids]
    named = {file.path for result in kept for file in result.tables.values()}
    staged = {f"staging/{result.result_id}" for result in kept}
    removed = Removed(results=sorted(doomed_ids))
    _remove(store, [result.path for result in doomed], removed, dry_run)  # first: readers go by manifests
    old = datetime.now(UTC) - timedelta(hours=grace_hours)
    for path in _candidates(store):
        folder = "/".join(path.split("/")[:2])
        if path.startswith("staging/"):
            published = folder in staged
            unnamed = not published
            wanted = published and not staging
        else:
            unnamed = path not in named
            wanted = not unnamed
        of_doomed = any(identity in path for identity in doomed_ids)
        if wanted or (unnamed and not of_doomed and store.modified(path) > old.timestamp()):
            continue
        _remove(store, [path], removed, dry_run)
    return removed


def _candidates(store: Store) -> list[str]:
    """Files that a manifest must name to stay; studies, runs, data sets and weights stay by themselves."""
    tables = [p for p in store.list("tables") if not re.match(r"tables/(studies|runs)/", p)]
    named = {entry.path for manifest in list_datasets(store) for entry in manifest.shards}
    shards = [path for path in store.list("datasets/shards") if path not in named]
    return tables + store.list("staging") + shards


def _doomed(results: list[Result], older_than_days: float | None, keep_newest: int | None) -> list[Result]:
    newest_first = sorted(results, key=lambda result: result.finished, reverse=True)
    limit = None if older_than_days is None else datetime.now(UTC) - timedelta(days=older_than_days)
    seen: dict[tuple[str, str, str], int] = {}
    doomed = []
    for result in newest_first:
        place = (result.study_id, result.stage, result.layer)
        seen[place] = seen.get(place, 0) + 1
        too_old = limit is not None and result.finished < limit
        too_many = keep_newest is not None and seen[place] > keep_newest
        if too_old or too_many:
            doomed.append(result)
    return doomed


def _remove(store: Store, paths: list[str], removed: Removed, dry_run: bool) -> None:
    for path in paths:
        removed.files.append(path)
        removed.bytes += store.size(path)
        if not dry_run:
            store.remove(path)

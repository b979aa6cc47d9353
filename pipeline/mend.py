"""What becomes of stored files that are gone or altered: they are forgotten, so that the next plan makes them again.

Staging carries its own hash (`pipeline.sealed`), tables have theirs in the manifest. Whoever finds one wrong says so by
an `AlteredError`; only a run removes anything.
"""

import hashlib
import logging
from collections.abc import Iterable

from pipeline.errors import RaydissectError, StoreError
from pipeline.plan import Key
from pipeline.results import Result, list_results
from pipeline.store import Store, StoredFile
from pipeline.threads import at_once

logger = logging.getLogger("raydissect")


def altered_paths(error: BaseException) -> list[str]:
    """The stored files that an error is about, if it is about nothing else and a run can make them again."""
    if not isinstance(error, RaydissectError):
        return []
    failures = getattr(error, "failures", ()) or (error,)
    paths = [getattr(one, "altered", "") for one in failures]
    return sorted(set(paths)) if all(path.startswith(("staging/", "tables/")) for path in paths) else []


def forget(store: Store, study_id: str, paths: Iterable[str]) -> set[Key]:
    """Remove altered files, and before a table the manifests that name it; stage and layer of these."""
    paths, withdrawn = set(paths), set()
    for result in list_results(store, study_id) if any(path.startswith("tables/") for path in paths) else []:
        if any(file.path in paths for file in result.tables.values()):
            logger.warning("result %s of %s on %s is withdrawn", result.result_id, result.stage, result.layer)
            store.remove(result.path)
            withdrawn.add((result.stage, result.layer))
    for path in sorted(paths):
        logger.warning("%s is removed, to be made again", store.location(path))
        store.remove(path)
    return withdrawn


def find_missing(store: Store, results: Iterable[Result]) -> list[str]:
    """Tables that manifests name and the store does not have: by listings, so without reading any."""
    named = [file.path for result in results for file in result.tables.values()]
    folders = sorted({path.partition("/layer=")[0] for path in named})
    there = {path for found in at_once(store.list, folders) for path in found}
    return sorted(set(named) - there)


def find_altered(store: Store, results: Iterable[Result]) -> list[str]:
    """Tables, and staging that is there, whose bytes do not hash to what the manifests say; reads all of them."""

    def check(file: StoredFile) -> str:
        try:
            same = hashlib.sha256(store.read(file.path)).hexdigest() == file.sha256
        except StoreError as error:
            if not isinstance(error.__cause__, FileNotFoundError):
                raise
            same = file.path.startswith("staging/")  # gone with `gc --staging`, as it may be
        return "" if same else file.path

    files = [file for result in results for file in (*result.tables.values(), *result.staging)]
    return sorted({path for path in at_once(check, files) if path})

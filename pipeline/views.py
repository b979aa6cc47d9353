"""Views over the published results: which files each table has, as SQL for any reader and as data for ours."""

import pyarrow as pa
import pyarrow.dataset as ds
from fsspec.implementations.local import LocalFileSystem

from pipeline.datasets import list_datasets
from pipeline.errors import StoreError
from pipeline.results import list_results, results_table
from pipeline.store import Store, leaves
from schemas import CONCEPTS, LABEL_AREAS, RESULTS, TABLES


def table_files(store: Store) -> dict[str, list[str]]:
    """The files of every table, as manifests name them; a file no manifest names is no part of a table."""
    files: dict[str, list[str]] = {name: [] for name in TABLES if name != RESULTS.name}
    for result in list_results(store):
        for name, file in result.tables.items():
            files[name].append(file.path)
    for name in ("studies", "runs"):
        files[name] = [path for path in store.list(f"tables/{name}") if path.endswith(".parquet")]
    manifests = {manifest.dataset_id: manifest for manifest in list_datasets(store)}
    for name in (CONCEPTS.name, LABEL_AREAS.name):
        files[name] = [manifest.files[name] for manifest in manifests.values()]
    return files


def open_tables(store: Store) -> dict[str, ds.Dataset | pa.Table]:
    """Every table of the contract, lazily where it has files; empty with its schema where it has none."""
    filesystem, root = store.filesystem
    tables: dict[str, ds.Dataset | pa.Table] = {RESULTS.name: results_table(list_results(store))}
    for name, files in table_files(store).items():
        schema = TABLES[name].schema
        if outside := list(filter(leaves, files)):
            raise StoreError(f"a manifest in {store.url} names {outside[0]}: it is outside of the store")
        if files:
            paths = [f"{root}/{path}" for path in files]
            tables[name] = ds.dataset(paths, schema=schema, format="parquet", filesystem=filesystem)
        else:
            tables[name] = schema.empty_table()
    return tables


def write_views(store: Store) -> None:
    """Write `views.sql`: one DuckDB view a table that has files; readers start from it, not from folders."""
    statements = [
        "-- One view a table over the files that published results name. Written at the end of every run.",
        "-- In DuckDB: .read views.sql",
    ]
    for name, files in sorted(table_files(store).items()):
        if files:
            listed = ",\n  ".join(_quote(_address(store, path)) for path in files)
            source = f"read_parquet([\n  {listed}\n], hive_partitioning = false, union_by_name = true)"
            statements.append(f"CREATE OR REPLACE VIEW {name} AS SELECT * FROM {source};")
    store.write("views.sql", "\n".join(statements).encode() + b"\n")


def _address(store: Store, path: str) -> str:
    """Where a reader in any folder finds a file."""
    filesystem, root = store.filesystem
    return f"{root}/{path}" if isinstance(filesystem, LocalFileSystem) else store.location(path)


def _quote(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"

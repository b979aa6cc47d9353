import os
import shutil

import duckdb
import pytest

from pipeline.query import query
from pipeline.store import Store
from pipeline.views import open_tables, table_files, write_views
from schemas import TABLES
from tests import dissect, small


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    folder = tmp_path_factory.mktemp("views")
    source = small.write_source(folder / "source", number=6)
    dissect.ingest_and_run(folder / "store", *small.overrides(source, layers=("features.6", "classifier.2")))
    return folder / "store"


def test_every_table_opens_with_its_schema(done, tmp_path):
    for store in (Store(str(done)), Store(str(tmp_path / "empty"))):
        tables = open_tables(store)
        assert set(tables) == set(TABLES)
        for name, table in tables.items():
            assert table.schema.names == TABLES[name].schema.names
            assert table.schema.types == TABLES[name].schema.types


def test_rows_are_those_of_published_results_only(done, tmp_path):
    store = Store(str(shutil.copytree(done, tmp_path / "store")))
    (path, *_) = table_files(store)["thresholds"]
    store.write(path.replace(".parquet", "-more.parquet"), store.read(path))
    before = query(store, "select count(*) as n from thresholds").to_pylist()
    assert before == [{"n": 64 + 128}]
    manifest = next(p for p in store.list("results") if "/thresholds/features.6/" in p)
    store.remove(manifest)
    assert query(store, "select count(*) as n from thresholds").to_pylist() == [{"n": 128}]


def test_views_are_read_from_any_folder_whatever_the_store_was_called(done, tmp_path, monkeypatch):
    store = shutil.copytree(done, tmp_path / "it's a store")
    monkeypatch.chdir(tmp_path)
    write_views(Store("it's a store"))
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    os.chdir(elsewhere)
    with duckdb.connect() as connection:
        connection.execute((store / "views.sql").read_text())
        found = dict(connection.sql("select layer, count(*) from thresholds group by layer").fetchall())
        names = {
            name for (name,) in connection.sql("select view_name from duckdb_views() where not internal").fetchall()
        }
    assert found == {"features.6": 64, "classifier.2": 128}
    assert names == set(dissect.DISSECTED) - {"results"}

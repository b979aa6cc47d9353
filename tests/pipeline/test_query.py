import csv
import io
import json
import math

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipeline.errors import InputError, StoreError
from pipeline.query import query, write_answer
from pipeline.store import Store
from schemas import TABLES
from tests.command import raydissect
from tests.dissect import DISSECTED, read_table
from tests.pipeline.conftest import LAYER, Small


@pytest.fixture
def store(small: Small) -> Store:
    return Store(str(small.store))


@pytest.mark.parametrize("name", DISSECTED)
def test_every_table_of_the_contract_can_be_asked(store: Store, name):
    answer = query(store, f"select * from {name}")
    assert answer.column_names == TABLES[name].schema.names
    assert answer.num_rows == len(read_table(store.url, name)) > 0


@pytest.mark.parametrize("name", TABLES)
def test_every_table_is_there_and_empty_in_a_new_store(tmp_path, name):
    answer = query(Store(str(tmp_path)), f"select * from {name}")
    assert (answer.num_rows, answer.column_names) == (0, TABLES[name].schema.names)


def test_tables_join_on_their_keys(store: Store):
    joined = """
        select s.model, s.dataset, l.num_units, l.layer, t.unit, t.threshold, c.name, c.category,
               sum(y.intersection) as intersection, any_value(g.pixels) as pixels
        from studies s
        join layers l using (study_id)
        join thresholds t using (study_id, layer)
        join tally y using (study_id, layer, unit)
        join concepts c using (dataset_id, concept_id)
        join (select dataset_id, concept_id, sum(label_pixels) as pixels from label_areas group by all) g
          using (dataset_id, concept_id)
        group by all
    """
    answer = query(store, joined).to_pandas()
    tally = read_table(store.url, "tally")
    assert len(answer) == len(tally.groupby(["unit", "concept_id"]))
    assert answer["intersection"].astype(int).sum() == tally["intersection"].sum()
    assert set(answer["layer"]) == {LAYER}
    assert (answer["intersection"].astype(int) <= answer["pixels"].astype(int)).all()


def test_any_iou_is_a_query_away(store: Store):
    """The README's promise: the counts alone give what `detectors` holds."""
    recomputed = """
        select t.unit, t.concept_id, sum(t.intersection) as i,
               any_value(a.area) + any_value(g.pixels) - sum(t.intersection) as u
        from tally t
        join studies s using (study_id)
        join concepts c using (dataset_id, concept_id)
        join (select study_id, unit, category, sum(mask_pixels_annotated) as area from areas group by all) a
          using (study_id, unit, category)
        join (select dataset_id, concept_id, sum(label_pixels) as pixels from label_areas group by all) g
          using (dataset_id, concept_id)
        group by all
    """
    checked = query(
        store,
        f"""select count(*) as n, count(*) filter (where d.intersection = r.i and d."union" = r.u) as same
            from detectors d join ({recomputed}) r using (unit, concept_id) where d.intersection > 0""",
    ).to_pylist()
    assert checked[0]["n"] == checked[0]["same"] > 50


@pytest.mark.parametrize(
    "sql",
    [
        "select * from '/etc/passwd'",
        "select * from read_csv('/etc/passwd')",
        "select * from read_text('/etc/hostname')",
        "select * from read_parquet('s3://bucket/x.parquet')",
        "from glob('/*')",
        "copy tally to 'out.csv'",
        "attach '/tmp/other.db'",
        "install httpfs",
        "load httpfs",
        "set enable_external_access = true",
        "select * from store",
        "select * from connection",
        "select * frm tally",
        "select nothing from tally",
        "delete from tally",
        "",
    ],
)
def test_nothing_but_the_tables_can_be_read_or_written(store: Store, sql):
    with pytest.raises(InputError, match=r"the query (failed: .* Error|has no answer)"):
        query(store, sql)


def test_a_data_file_that_is_gone_is_a_named_error(small: Small, tmp_path):
    assert raydissect(*small.ingest(tmp_path)).code == 0
    gone = next(tmp_path.glob("datasets/*/concepts.parquet"))
    gone.unlink()
    with pytest.raises((StoreError, InputError), match=r"concepts\.parquet"):
        query(Store(str(tmp_path)), "select * from concepts")


def test_columns_of_one_name_are_told_apart(store: Store):
    answer = query(store, "select 1 as a, 2 as a, 3 as a_1, 4 as b")
    assert answer.to_pylist() == [{"a": 1, "a_1": 2, "a_1_1": 3, "b": 4}]


def test_csv_has_no_formulas_and_no_bytes(store: Store, tmp_path):
    answer = query(
        store,
        """select '=cmd|calc' as "=name", '+1' as plus, '-1' as minus, '@x' as at, -1 as number, null as nothing,
                  '\x01'::blob as bytes, [1, 2] as list, picture from exemplars limit 1""",
    )
    write_answer(answer, tmp_path / "answer.csv", "csv")
    header, row = csv.reader(io.StringIO((tmp_path / "answer.csv").read_bytes().decode(), newline=""))
    assert header[0] == "'=name"
    assert row[:7] == ["'=cmd|calc", "'+1", "'-1", "'@x", "-1", "", "<1 bytes>"]
    assert json.loads(row[7]) == [1, 2]
    assert json.loads(row[8])["bytes"].endswith(" bytes>")


def test_json_has_numbers_text_and_null(store: Store, tmp_path):
    sql = """select sum(intersection) as total, 'nan'::double as nan, '-inf'::float as inf, 0.1 as tenth,
             1::decimal(4, 1) as one, true as yes, 'é"' as text, timestamp '2020-01-02 03:04:05' as time,
             {'a': [null, 1]} as nested, null as nothing from tally"""
    write_answer(query(store, sql), tmp_path / "answer.json", "json")
    (row,) = json.loads((tmp_path / "answer.json").read_text("utf-8"), parse_constant=lambda name: 1 / 0)
    assert row == {
        "total": int(read_table(store.url, "tally")["intersection"].sum()),
        "nan": None,
        "inf": None,
        "tenth": 0.1,
        "one": 1,
        "yes": True,
        "text": 'é"',
        "time": "2020-01-02T03:04:05",
        "nested": {"a": [None, 1]},
        "nothing": None,
    }


def test_parquet_keeps_everything(store: Store, tmp_path):
    answer = query(store, "select unit, threshold, picture from exemplars join thresholds using (unit) limit 3")
    write_answer(answer, tmp_path / "answer.parquet", "parquet")
    again = pq.read_table(tmp_path / "answer.parquet")
    assert again.equals(answer)
    assert Image.open(io.BytesIO(again["picture"][0]["bytes"].as_py())).format == "JPEG"


@pytest.mark.parametrize("kind", ["csv", "json", "parquet"])
def test_a_file_that_cannot_be_written_is_said(tmp_path, kind):
    with pytest.raises(InputError, match="cannot write the answer to"):
        write_answer(pa.table({"a": [1]}), tmp_path / "nowhere" / "file", kind)


def test_the_command_prints_or_writes(small: Small, tmp_path):
    sql, store = "select unit, threshold from thresholds order by unit", f"store={small.store}"
    printed = raydissect("query", sql, store)
    assert printed.code == 0
    header, *lines = printed.out.splitlines()
    assert header.split() == ["unit", "threshold"]
    assert [int(line.split()[0]) for line in lines] == list(range(96))
    written = raydissect("query", sql, store, "--csv", tmp_path / "a.csv", "--json", tmp_path / "a.json")
    assert (written.code, written.out) == (0, "")
    rows = json.loads((tmp_path / "a.json").read_text())
    assert len(rows) == 96
    thresholds = read_table(small.store, "thresholds")["threshold"]
    assert all(math.isclose(row["threshold"], value) for row, value in zip(rows, thresholds, strict=True))
    assert len((tmp_path / "a.csv").read_text().splitlines()) == 97


def test_the_command_says_when_it_does_not_print_all(small: Small):
    ended = raydissect("query", "select unit from tally", f"store={small.store}")
    assert len(ended.out.splitlines()) == 201
    assert "rows, 200 shown: write them with --csv, --json or --parquet FILE" in ended.err

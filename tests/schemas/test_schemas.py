from dataclasses import replace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.stages import STAGES
from schemas import REJECTS, SHARD, SHARD_LABEL_AREAS, TABLES, TALLY, THRESHOLDS, staging
from schemas.table import Table, column

INTERNAL = [
    SHARD, SHARD_LABEL_AREAS, REJECTS, staging.PILOT_CELLS, staging.BOUNDS, staging.UNIT_STATISTICS,
    staging.TOP_IMAGES, staging.TAIL_CELLS, staging.PARTIAL_TALLY, staging.tail_maps(9),
]  # fmt: skip
EVERY = [*TABLES.values(), *INTERNAL]
IDS = ("study_id", "result_id", "run_id", "dataset_id", "image_id", "concept_id", "unit", "rank", "permutation")
COUNTS = ("num_", "mask_pixels", "label_pixels", "intersection", "union", "rows", "bytes")

EXAMPLE = Table(
    "example",
    3,
    pa.schema(
        [
            column("unit", pa.int32(), "a unit"),
            column("name", pa.string(), "a name"),
            column("value", pa.float32(), "a value", nullable=True),
        ]
    ),
    sort=("unit",),
)


def rows(**changes):
    return pa.table({"unit": [2, 1], "name": ["b", "a"], "value": [0.5, None], **changes})


@pytest.mark.parametrize("table", EVERY, ids=lambda table: table.name)
def test_documents_every_column(table):
    for field in table.schema:
        assert len(field.metadata[b"description"].decode()) > 3, field.name
    assert set(table.sort) <= set(table.schema.names)


@pytest.mark.parametrize("table", EVERY, ids=lambda table: table.name)
def test_ids_and_counts_are_whole_and_never_null(table):
    for field in table.schema:
        if field.name in IDS and table.name != "partial_tally":
            assert not field.nullable, field.name
        if field.name in IDS and not field.name.startswith(("study", "result", "run", "dataset")):
            assert field.type in (pa.int32(), pa.int64()), field.name
        if field.name.startswith(COUNTS) or field.name in ("images", "pixels"):
            assert field.type in (pa.int32(), pa.int64()), field.name
            assert not field.nullable or table.name == "partial_tally", field.name


def test_every_published_table_of_a_stage_is_registered_under_its_own_name():
    assert all(name == table.name for name, table in TABLES.items())
    assert {"thresholds", "tally", "detectors", "layer_summary", "exemplars"} <= set(TABLES) & set(STAGES)


def test_pixel_counts_beyond_int32_fit():
    big = 2**40
    table = TALLY.cast(
        pa.table(
            {
                "study_id": ["s"], "result_id": ["r"], "layer": ["l"], "unit": [0], "concept_id": [1],
                "split": ["train"], "intersection": [big], "mask_pixels_concept": [big],
            }
        )
    )  # fmt: skip
    assert table["intersection"].to_pylist() == [big]


def test_cast_orders_types_and_sorts(tmp_path):
    cast = EXAMPLE.cast(rows().select(["value", "name", "unit"]), result_id="r")
    assert cast.schema.names == ["unit", "name", "value"]
    assert cast.schema.types == EXAMPLE.schema.types
    assert cast["unit"].to_pylist() == [1, 2]
    pq.write_table(cast, tmp_path / "table.parquet")
    metadata = pq.read_schema(tmp_path / "table.parquet").metadata
    assert (metadata[b"table"], metadata[b"schema_version"], metadata[b"result_id"]) == (b"example", b"3", b"r")


ROWS = st.lists(st.tuples(st.integers(-3, 3), st.sampled_from(["", "a", "b", "B", "é", "\U0001f600", "\uffee"])))


@given(ROWS)
def test_rows_are_sorted_by_numbers_and_text_ties_as_they_came(drawn):
    units, names = ([row[place] for row in drawn] for place in (0, 1))
    table = pa.table({"unit": pa.array(units, pa.int64()), "name": pa.array(names, pa.string())})
    table = table.append_column("value", pa.array(range(len(drawn)), pa.int64()))
    cast = replace(EXAMPLE, sort=("name", "unit")).cast(table)
    expected = sorted(range(len(drawn)), key=lambda place: (names[place].encode(), units[place]))
    assert cast["value"].to_pylist() == expected
    assert replace(EXAMPLE, sort=("name", "unit")).cast(cast).equals(cast)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"unit": [1, None]}, "unit"),
        ({"name": pa.nulls(2, pa.string())}, "name"),
        ({"more": [1, 2]}, r"unknown columns \['more'\]"),
        ({"unit": [1, 2**31]}, "does not fit"),
        ({"unit": [1.0, 1.5]}, "does not fit"),
        ({"unit": [[1], [2]]}, "does not fit"),
        ({"unit": ["1", "2"]}, "unit is string"),
        ({"name": [1, 2]}, "name is int64"),
        ({"value": [1.0, 1e300]}, "too large for float"),
        ({"value": [b"x", b"y"]}, "does not fit"),
    ],
)
def test_cast_refuses(changes, message):
    with pytest.raises(ValueError, match=message):
        EXAMPLE.cast(rows(**changes))


def test_cast_refuses_a_missing_column():
    with pytest.raises(ValueError, match=r"missing columns \['name'\]"):
        EXAMPLE.cast(rows().drop_columns(["name"]))


def test_cast_keeps_infinities_and_lets_a_nullable_column_be_all_null():
    assert EXAMPLE.cast(rows(value=[float("inf"), 1.0]))["value"].to_pylist() == [1.0, float("inf")]
    assert EXAMPLE.cast(rows(value=pa.nulls(2)))["value"].to_pylist() == [None, None]
    assert THRESHOLDS.schema.field("threshold").type == pa.float32()

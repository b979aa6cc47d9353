import hashlib

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import AlteredError
from pipeline.sealed import read_sealed, read_some, seal
from pipeline.store import Store

TABLE = pa.table({"a": pa.array(range(500), pa.int64()), "b": [str(n) for n in range(500)], "c": [1.5] * 500})


@pytest.fixture
def store(tmp_path) -> Store:
    return Store(str(tmp_path))


def test_what_is_read_is_what_was_sealed(store):
    written = seal(TABLE).write(store, "x.arrow")
    data = store.read("x.arrow")
    assert (written.rows, written.bytes, written.sha256) == (500, len(data), hashlib.sha256(data).hexdigest())
    assert read_sealed(store, "x.arrow") == (written, TABLE)
    assert read_sealed(store, "x.arrow", ["c", "a"])[1].equals(TABLE.select(["a", "c"]))
    assert read_some(store, "x.arrow", ["c", "a"]).equals(TABLE.select(["c", "a"]))
    assert seal(TABLE).data == data


@given(st.data())
def test_any_other_byte_is_noticed(data):
    store = Store("memory://sealed")
    sealed = bytearray(seal(TABLE).data)
    where, other = data.draw(st.integers(0, len(sealed) - 1)), data.draw(st.integers(1, 255))
    sealed[where] ^= other
    store.write("x.arrow", bytes(sealed))
    with pytest.raises(
        AlteredError, match=r"memory://sealed/x\.arrow is not what was written there: its hash"
    ) as raised:
        read_sealed(store, "x.arrow")
    assert raised.value.altered == "x.arrow"


@pytest.mark.parametrize("size", [0, 1, 31, 32, 33, 1000])
def test_a_file_cut_short_is_noticed(store, size: int):
    store.write("x.arrow", seal(TABLE).data[:size])
    for read in (lambda: read_sealed(store, "x.arrow"), lambda: read_some(store, "x.arrow", ["a"])):
        with pytest.raises(AlteredError):
            read()


def test_a_file_that_is_gone(store):
    for read in (lambda: read_sealed(store, "x.arrow"), lambda: read_some(store, "x.arrow", ["a"])):
        with pytest.raises(AlteredError, match="it is gone"):
            read()

"""Sealed files: an Arrow file, then its SHA-256, so that whoever reads one knows that it is what was written.

Staging is written by one worker and read by another, perhaps days later after a kill. Arrow's own format has no
checksum: a flipped bit in it is a wrong number, not an error.
"""

import hashlib
import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from pipeline.errors import AlteredError, StoreError
from pipeline.store import Store, StoredFile

SEAL = 32  # bytes of SHA-256 after Arrow's own, which readers are told to stop before


@dataclass(frozen=True)
class Sealed:
    """A sealed file's bytes, and the SHA-256 of all of them, seal and all."""

    data: bytes
    sha256: str
    rows: int

    def write(self, store: Store, path: str) -> StoredFile:
        store.write(path, self.data)
        return StoredFile(path, self.sha256, self.rows, len(self.data))


def seal(table: pa.Table) -> Sealed:
    """A table as a sealed file, lz4 inside; the same table gives the same bytes."""
    buffer = io.BytesIO()
    with pa.ipc.new_file(buffer, table.schema, options=pa.ipc.IpcWriteOptions(compression="lz4")) as writer:
        writer.write_table(table)
    total = hashlib.sha256(buffer.getbuffer())
    mark = total.digest()
    buffer.write(mark)
    total.update(mark)
    return Sealed(buffer.getvalue(), total.hexdigest(), len(table))


def read_sealed(store: Store, path: str, columns: list[str] | None = None) -> tuple[StoredFile, pa.Table]:
    """A sealed file as it is named in manifests, and its table.

    Args:
        columns: those to decode, in the file's order; all without it. All bytes are read and checked either way.

    Raises:
        AlteredError: it is gone, cut short, or otherwise not what was written.
    """
    with gone_is_altered(store, path):
        data = store.read(path)
    total = hashlib.sha256(memoryview(data)[:-SEAL])
    if total.digest() != data[-SEAL:]:
        raise AlteredError(path, store.location(path), "its hash is not the one at its end")
    total.update(data[-SEAL:])
    table = _parse(data, columns, path, store)
    return StoredFile(path, total.hexdigest(), len(table), len(data)), table


def read_some(store: Store, path: str, columns: list[str]) -> pa.Table:
    """Some columns of a sealed file without the bytes of the others, so unchecked: the caller knows a hash of these.

    Raises:
        AlteredError: it is gone, or cannot be read as what was written.
    """
    with gone_is_altered(store, path):
        return store.parse(path, lambda file: _parse(pa.PythonFile(file, "r"), columns, path, store).select(columns))


@contextmanager
def gone_is_altered(store: Store, path: str) -> Iterator[None]:
    """A file that is not there was removed: no reader asks for one that was not written."""
    try:
        yield
    except StoreError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            raise AlteredError(path, store.location(path), "it is gone") from error
        raise


def _parse(source: Any, columns: list[str] | None, path: str, store: Store) -> pa.Table:
    end = (source.size() if isinstance(source, pa.NativeFile) else len(source)) - SEAL
    try:
        fields = None
        if columns is not None:
            names = pa.ipc.open_file(source, footer_offset=end).schema.names
            fields = [place for place, name in enumerate(names) if name in columns] or None  # None: all
        options = pa.ipc.IpcReadOptions(included_fields=fields, use_threads=False)
        return pa.ipc.open_file(source, footer_offset=end, options=options).read_all()
    except (pa.ArrowException, ValueError) as error:
        raise AlteredError(path, store.location(path), str(error)) from error

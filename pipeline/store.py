"""The store: any fsspec URL, files that appear whole or not at all.

Locally a file is written beside its place and renamed; on an object store it is one PUT. `create`
publishes only where nothing is yet, so that of two writers one wins and the other learns of it.
"""

from __future__ import annotations  # the method `list` hides the built-in type

import hashlib
import io
import json
import os
import tempfile
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
from fsspec.implementations.local import LocalFileSystem

from pipeline.errors import SettingsError, StoreError


@dataclass(frozen=True)
class StoredFile:
    """A file as a manifest names it."""

    path: str
    sha256: str
    rows: int
    bytes: int


@dataclass(frozen=True)
class Store:
    """Files under one fsspec URL; paths are relative to it, with forward slashes.

    Args:
        url: a local folder or any fsspec URL (`s3://bucket/prefix`, `memory://name`).
        options: fsspec storage options; credentials belong in the environment, not here.

    Raises:
        StoreError: by every method that cannot read or write; the message names the path.
    """

    url: str
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def filesystem(self) -> tuple[fsspec.AbstractFileSystem, str]:
        """The fsspec file system, and the store's root in it.

        Without its cache of listings: others write beside this process.
        """
        try:
            filesystem, root = fsspec.core.url_to_fs(self.url, **{"use_listings_cache": False, **self.options})
        except (ValueError, ImportError) as error:
            raise SettingsError(f"cannot open {self.url}: {error}") from error
        return filesystem, root.rstrip("/")

    def location(self, path: str) -> str:
        """The full path or URL of a file, for messages and for other readers."""
        return f"{self.url.rstrip('/')}/{path}"

    def exists(self, path: str) -> bool:
        filesystem, root = self.filesystem
        with self._errors("look for", path):
            filesystem.invalidate_cache()  # another process may have written it since a listing was kept
            return filesystem.exists(f"{root}/{path}")

    def read(self, path: str) -> bytes:
        filesystem, root = self.filesystem
        with self._errors("read", path):
            return cast(bytes, filesystem.cat_file(f"{root}/{path}"))

    def write(self, path: str, data: bytes) -> None:
        """Write a file whole, over an older one if there is one."""
        filesystem, root = self.filesystem
        with self._errors("write", path):
            if isinstance(filesystem, LocalFileSystem):
                _write_local(Path(root, path), data, overwrite=True)
            else:
                filesystem.pipe_file(f"{root}/{path}", data)

    def create(self, path: str, data: bytes) -> bool:
        """Write a file whole unless there is one; whether this call wrote it."""
        filesystem, root = self.filesystem
        with self._errors("write", path):
            try:
                if isinstance(filesystem, LocalFileSystem):
                    _write_local(Path(root, path), data, overwrite=False)
                else:
                    filesystem.pipe_file(f"{root}/{path}", data, mode="create")
            except FileExistsError:
                return False
            return True

    def partials(self) -> list[str]:
        """What writers that were killed left of local files; no reader sees these."""
        filesystem, root = self.filesystem
        if not isinstance(filesystem, LocalFileSystem):
            return []
        with self._errors("list", ""):
            return sorted(path[len(root) + 1 :] for path in filesystem.find(root) if path.endswith(".partial"))

    def remove(self, path: str) -> None:
        """Remove a file, unless it is gone already or another process removes it just now."""
        filesystem, root = self.filesystem
        with self._errors("remove", path):
            if filesystem.exists(f"{root}/{path}"):
                with suppress(FileNotFoundError):
                    filesystem.rm_file(f"{root}/{path}")

    def list(self, folder: str) -> list[str]:
        """All files under a folder, sorted, relative to the store; none if it does not exist."""
        filesystem, root = self.filesystem
        with self._errors("list", folder):
            filesystem.invalidate_cache()
            found = filesystem.find(f"{root}/{folder}")
        start = len(filesystem._strip_protocol(f"{root}/")) if not root else len(root) + 1
        return sorted(path[start:] for path in found if not path.endswith(".partial"))

    def modified(self, path: str) -> float:
        """When a file was last written, in seconds since 1970."""
        filesystem, root = self.filesystem
        with self._errors("look at", path):
            return filesystem.modified(f"{root}/{path}").timestamp()

    def size(self, path: str) -> int:
        filesystem, root = self.filesystem
        with self._errors("look at", path):
            return int(filesystem.info(f"{root}/{path}")["size"])

    def read_json(self, path: str) -> Any:
        return json.loads(self.read(path))

    def write_json(self, path: str, value: Any) -> None:
        self.write(path, to_json(value))

    def write_table(self, path: str, table: pa.Table) -> StoredFile:
        """Write a table as Parquet (zstd), or as an Arrow file (lz4) where the path ends in `.arrow`."""
        data = _serialize(table, path)
        self.write(path, data)
        return StoredFile(path, hashlib.sha256(data).hexdigest(), table.num_rows, len(data))

    def create_table(self, path: str, table: pa.Table) -> StoredFile:
        """Write a table unless there is one: then that one stays, and is what is returned.

        So of two writers of one path, both name the same bytes.
        """
        data = _serialize(table, path)
        if not self.create(path, data):
            data = self.read(path)
            self.write(path, data)  # young again: gc takes an old file that no manifest names for a leftover
            table = self.read_table(path)
        return StoredFile(path, hashlib.sha256(data).hexdigest(), table.num_rows, len(data))

    def read_table(self, path: str, columns: list[str] | None = None) -> pa.Table:
        """Read a Parquet or Arrow file, or some of its columns."""
        filesystem, root = self.filesystem
        with self._errors("read", path), filesystem.open(f"{root}/{path}", "rb") as file:
            if path.endswith(".arrow"):
                reader = pa.ipc.open_file(file)
                if columns is not None:
                    indices = [reader.schema.get_field_index(name) for name in columns]
                    file.seek(0)
                    reader = pa.ipc.open_file(file, options=pa.ipc.IpcReadOptions(included_fields=indices))
                    return reader.read_all().select(columns)
                return reader.read_all()
            return pq.ParquetFile(file).read(columns=columns)

    def _errors(self, verb: str, path: str) -> _StoreErrors:
        return _StoreErrors(f"cannot {verb} {self.location(path)}")


@dataclass(frozen=True)
class _StoreErrors:
    """Turns the many errors of file systems into one that names the path."""

    what: str

    def __enter__(self) -> None: ...

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, StoreError):
            return
        if isinstance(error, FileNotFoundError):
            raise StoreError(f"{self.what}: there is no such file") from error
        of_client = isinstance(error, Exception) and type(error).__module__ != "builtins"  # botocore's are no OSErrors
        if isinstance(error, (OSError, pa.ArrowException)) or of_client:
            raise StoreError(f"{self.what}: {error}") from error


def _serialize(table: pa.Table, path: str) -> bytes:
    buffer = io.BytesIO()
    if path.endswith(".arrow"):
        options = pa.ipc.IpcWriteOptions(compression="lz4")
        with pa.ipc.new_file(buffer, table.schema, options=options) as writer:
            writer.write_table(table)
    else:
        pq.write_table(table, buffer, compression="zstd")
    return buffer.getvalue()


def to_json(value: Any) -> bytes:
    """Canonical JSON: sorted keys, readable, the same bytes for the same value."""
    return json.dumps(value, sort_keys=True, indent=1, ensure_ascii=False).encode() + b"\n"


def digest(value: Any, length: int = 16) -> str:
    """A short content hash of a JSON value."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:length]


def _write_local(path: Path, data: bytes, overwrite: bool) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, partial = tempfile.mkstemp(prefix=f"{path.name}.", suffix=".partial", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(partial, 0o644)
        if overwrite:
            os.replace(partial, path)
        else:
            os.link(partial, path)  # unlike rename, fails where the file exists
    finally:
        Path(partial).unlink(missing_ok=True)

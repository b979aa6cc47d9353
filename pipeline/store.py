"""The store: any fsspec URL, files that appear whole or not at all.

Locally a file is written beside its place and renamed; on an object store it is one PUT. `create`
publishes only where nothing is yet, so that of two writers one wins and the other learns of it.

A store that is not a disk may refuse, hang or answer too late: every operation is tried again for a while.
"""

from __future__ import annotations  # the method `list` hides the built-in type

import hashlib
import io
import json
import os
import secrets
import tempfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar, cast

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
from fsspec.asyn import AsyncFileSystem
from fsspec.implementations.local import LocalFileSystem
from fsspec.implementations.memory import MemoryFileSystem
from fsspec.utils import get_protocol

from pipeline.errors import SettingsError, StoreError
from pipeline.retries import explain, http_status, is_taken, is_transient, retry, retry_seconds

PROBE = "create-only.txt"
"""The file by which a store proves that it refuses to write over another."""

SILENCE = 30.0
"""Seconds without a byte after which a server counts as hung."""

_BIGGEST_PUT = 5 * 2**30
"""Bytes that S3 takes in one PUT. So no upload has parts that a killed writer would leave behind, unseen and paid for."""

_MARK = "created-by"
"""The metadata by which an S3 object says which call of `create` wrote it."""

_proved: set[str] = set()
"""URLs of the stores that this process has seen refuse."""

Made = TypeVar("Made")


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
        options: fsspec storage options; credentials belong in the environment, not here. `retry_seconds` is none
            of fsspec's: for how long an operation is tried again, else what the environment says.

    Raises:
        StoreError: by every method that cannot read or write; the message names the path.
    """

    url: str
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def filesystem(self) -> tuple[fsspec.AbstractFileSystem, str]:
        """The fsspec file system, and the store's root in it, for readers that go by themselves.

        Without its cache of listings: others write beside this process. On S3, each request is tried three times.
        """
        return self._open(attempts=3, silence=SILENCE / 2)

    def _open(self, attempts: int, silence: float) -> tuple[fsspec.AbstractFileSystem, str]:
        """The file system with so many attempts a request inside it, and seconds until silence counts as an error."""
        options = {"use_listings_cache": False, **self.options}
        options.pop("retry_seconds", None)
        if get_protocol(self.url) in ("s3", "s3a"):
            options["config_kwargs"] = {
                "retries": {"total_max_attempts": attempts, "mode": "standard"},
                "connect_timeout": 10,
                "read_timeout": silence,
                **options.get("config_kwargs", {}),
            }
        try:
            filesystem, root = fsspec.core.url_to_fs(self.url, **options)
        except (ValueError, ImportError) as error:
            raise SettingsError(f"cannot open {self.url}: {error}") from error
        if is_s3(filesystem):
            filesystem.retries = min(attempts, 2)  # s3fs's own attempts at a body, around botocore's at a request
        return filesystem, root.rstrip("/")

    @property
    def _once(self) -> tuple[fsspec.AbstractFileSystem, str]:
        """The file system that tries nothing again: what it did, and what it did not, is known."""
        return self._open(attempts=1, silence=SILENCE)

    def location(self, path: str) -> str:
        """The full path or URL of a file, for messages and for other readers."""
        return f"{self.url.rstrip('/')}/{path}"

    def exists(self, path: str) -> bool:
        filesystem, root = self._once

        def look() -> bool:
            filesystem.invalidate_cache()  # another process may have written it since a listing was kept
            return filesystem.exists(f"{root}/{path}")

        return self._try("look for", path, look)

    def read(self, path: str) -> bytes:
        """The bytes of a file: all of them, or an error."""
        filesystem, root = self._once
        return self._try("read", path, lambda: _read_whole(filesystem, f"{root}/{path}"))

    def write(self, path: str, data: bytes) -> None:
        """Write a file whole, over an older one if there is one."""
        filesystem, root = self._once

        def put() -> None:
            if isinstance(filesystem, LocalFileSystem):
                _write_local(Path(root, path), data, overwrite=True)
            else:
                filesystem.pipe_file(f"{root}/{path}", data, **_put_options(filesystem, data))

        self._try("write", path, put)

    def create(self, path: str, data: bytes) -> bool:
        """Write a file whole unless there is one; whether this call wrote it.

        Where an answer was lost, the file that is met may be this call's own. On S3 it carries the call's mark: also
        aiohttp, and gateways, send a PUT again without a word. Elsewhere it is its own if it holds the same bytes.
        """
        filesystem, root = self._once
        where, mark, lost = f"{root}/{path}", secrets.token_hex(16), False
        if is_s3(filesystem) and len(data) >= _BIGGEST_PUT:  # in parts, some servers forget the condition: Ceph 16 does
            raise StoreError(f"cannot write {self.location(path)}: it has {len(data)} bytes, and one PUT takes fewer")

        def put() -> bool:
            nonlocal lost
            try:
                if isinstance(filesystem, LocalFileSystem):
                    _write_local(Path(root, path), data, overwrite=False)
                else:
                    marked = {"Metadata": {_MARK: mark}} if is_s3(filesystem) else {}
                    filesystem.pipe_file(where, data, mode="create", **marked, **_put_options(filesystem, data))
            except Exception as error:
                if is_taken(error) and is_s3(filesystem):
                    return _mark_of(filesystem, where) == mark
                if is_taken(error):
                    return lost and _read_whole(filesystem, where) == data
                lost = lost or is_transient(error)
                raise
            return True

        return self._try("write", path, put)

    def check_create_only(self) -> None:
        """See, once a process, that the store refuses to write over a file where it is told to.

        A server that does not know the condition would write, and of two writers of a result both would win.

        Raises:
            StoreError: it does not refuse.
        """
        if isinstance(self._once[0], (LocalFileSystem, MemoryFileSystem)) or self.url in _proved:
            return
        text = "raydissect looks here whether this store refuses to write over a file. Whoever removes it does no harm."
        try:
            refused = any(not self.create(PROBE, f"{text} {secrets.token_hex(8)}\n".encode()) for _ in range(2))
        except StoreError as error:
            if http_status(error) != 501:
                raise
            refused = False
        if not refused:
            raise StoreError(
                f"cannot publish to {self.url}: its server writes over {PROBE} although told `If-None-Match: *`, or "
                "does not know that header. Results need conditional writes, or two runs could both publish one: use a "
                "server that has them, as docs/operations.md lists, or a local folder"
            )
        _proved.add(self.url)

    def partials(self) -> list[str]:
        """What writers that were killed left of local files; no reader sees these."""
        filesystem, root = self._once
        if not isinstance(filesystem, LocalFileSystem):
            return []

        def find() -> list[str]:
            return sorted(path[len(root) + 1 :] for path in filesystem.find(root) if path.endswith(".partial"))

        return self._try("list", "", find)

    def remove(self, path: str) -> None:
        """Remove a file, unless it is gone already or another process removes it just now."""
        filesystem, root = self._once

        def remove() -> None:
            if filesystem.exists(f"{root}/{path}"):
                with suppress(FileNotFoundError):
                    filesystem.rm_file(f"{root}/{path}")

        self._try("remove", path, remove)

    def list(self, folder: str) -> list[str]:
        """All files under a folder, sorted, relative to the store; none if it does not exist."""
        filesystem, root = self.filesystem  # that tries each page again, not all of them because of one

        def find() -> list[str]:
            filesystem.invalidate_cache()
            return cast("list[str]", filesystem.find(f"{root}/{folder}"))

        found = self._try("list", folder, find)
        start = len(filesystem._strip_protocol(f"{root}/")) if not root else len(root) + 1
        return sorted(path[start:] for path in found if not path.endswith(".partial"))

    def modified(self, path: str) -> float:
        """When a file was last written, in seconds since 1970."""
        filesystem, root = self._once
        return self._try("look at", path, lambda: filesystem.modified(f"{root}/{path}").timestamp())

    def size(self, path: str) -> int:
        filesystem, root = self._once
        return self._try("look at", path, lambda: int(filesystem.info(f"{root}/{path}")["size"]))

    def read_json(self, path: str) -> Any:
        return json.loads(self.read(path))

    def write_json(self, path: str, value: Any) -> None:
        self.write(path, to_json(value))

    def write_table(self, path: str, table: pa.Table) -> StoredFile:
        """Write a table as Parquet (zstd)."""
        data = _serialize(table)
        self.write(path, data)
        return StoredFile(path, hashlib.sha256(data).hexdigest(), table.num_rows, len(data))

    def create_table(self, path: str, table: pa.Table) -> StoredFile:
        """Write a table unless there is one: then that one stays, and is what is returned.

        So of two writers of one path, both name the same bytes.
        """
        data = _serialize(table)
        if not self.create(path, data):
            data = self.read(path)
            self.write(path, data)  # young again: gc takes an old file that no manifest names for a leftover
            table = self.read_table(path)
        return StoredFile(path, hashlib.sha256(data).hexdigest(), table.num_rows, len(data))

    def read_table(self, path: str, columns: list[str] | None = None) -> pa.Table:
        """Read a Parquet file, or some of its columns."""
        return self.parse(path, lambda file: read_parquet(file, columns))

    def parse(self, path: str, parse: Callable[[Any], Made]) -> Made:
        """Hand an open binary file to `parse`, which reads what it needs of it; after a cut, again from its beginning."""
        filesystem, root = self._once

        def read() -> Made:
            with filesystem.open(f"{root}/{path}", "rb") as file:
                return parse(file)

        return self._try("read", path, read)

    def _try(self, verb: str, path: str, call: Callable[[], Made]) -> Made:
        """Call, again and again where that may help; the many errors of file systems become one that names the path."""
        what, seconds = f"cannot {verb} {self.location(path)}", retry_seconds(self.options)
        if leaves(path):
            raise StoreError(f"{what}: it is outside of the store")
        try:
            is_local = isinstance(self._once[0], LocalFileSystem)
            return call() if is_local else retry(call, what, seconds)
        except StoreError:
            raise
        except Exception as error:
            of_client = type(error).__module__ != "builtins"  # botocore's are no OSErrors
            if isinstance(error, (OSError, pa.ArrowException)) or of_client:
                raise StoreError(f"{what}: {explain(error, seconds)}") from error
            raise


def leaves(path: str) -> bool:
    """Whether a path, such as a manifest that someone else wrote may have, leads out of the store."""
    return ".." in path.split("/")


def is_s3(filesystem: fsspec.AbstractFileSystem) -> bool:
    return "s3" in filesystem.protocol


def _read_whole(filesystem: fsspec.AbstractFileSystem, path: str) -> bytes:
    """The bytes of a file.

    Raises:
        ConnectionError: fewer came than the file has.
    """
    if is_s3(filesystem):  # one GET, whose length botocore compares with what the answer's head says
        return cast(bytes, filesystem.cat_file(path, max_concurrency=1))
    data = cast(bytes, filesystem.cat_file(path))
    if not isinstance(filesystem, (LocalFileSystem, MemoryFileSystem)):
        size = filesystem.info(path).get("size")
        if size is not None and size != len(data):
            raise ConnectionError(f"{len(data)} of {size} bytes came")
    return data


def _mark_of(filesystem: Any, path: str) -> str | None:
    """Which call of `create` wrote an S3 object; None where it is gone."""
    try:
        return filesystem.metadata(path).get(_MARK)
    except FileNotFoundError:
        return None


def _put_options(filesystem: fsspec.AbstractFileSystem, data: bytes) -> dict[str, Any]:
    """How `data` is uploaded: on S3 in one PUT; elsewhere too, within a time that a slow network keeps."""
    options: dict[str, Any] = {}
    if isinstance(filesystem, AsyncFileSystem):
        options["timeout"] = 60 + len(data) / 250_000  # seconds; a server that stops to read is not noticed otherwise
    if is_s3(filesystem):
        options["chunksize"] = _BIGGEST_PUT
    return options


def read_parquet(source: Any, columns: list[str] | None = None) -> pa.Table:
    """A Parquet file's table, read and decoded in this thread.

    A thread of Arrow's own may let go of the file's bytes, which are Python's, a moment after `read` returns; where the
    interpreter ends in that moment, it takes the process with it (exit status 134), though all was done.
    """
    return pq.ParquetFile(source, pre_buffer=False).read(columns=columns, use_threads=False)


def _serialize(table: pa.Table) -> bytes:
    buffer = io.BytesIO()
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

"""The files of a source: a folder or a zip, local or at any fsspec URL, read in place."""

import csv
import hashlib
import io
import os
import stat
import zipfile
import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from typing import IO, Any, Self

import fsspec
from fsspec.implementations.local import LocalFileSystem

from pipeline.errors import InputError
from pipeline.redact import shown

MAX_FILE_BYTES = 1 << 28
"""Largest zip entry that is unpacked."""

_STAMPS = ("ETag", "etag", "md5Hash", "mtime", "LastModified", "last_modified", "created")


class DamagedFileError(Exception):
    """A file of the source is there but its bytes are damaged."""


class Files(ABC):
    """Files under one root; paths are relative to it, with forward slashes."""

    root: str

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of what is open."""
        return

    @abstractmethod
    def read(self, path: str) -> bytes:
        """The bytes of a file; may be called from several threads.

        Raises:
            FileNotFoundError: there is no such file.
            DamagedFileError: its bytes are damaged.
            InputError: the source cannot be read.
        """

    @abstractmethod
    def entries(self, folder: str = "") -> Iterator[tuple[str, str]]:
        """Path and stamp (size and checksum or date) of every file below a folder."""

    def fingerprint(self) -> str:
        """Changes when a file is added, removed or changed; nothing is read for it."""
        lines = sorted(f"{path}\t{stamp}" for path, stamp in self.entries())
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()


class FolderFiles(Files):
    """A folder on any fsspec file system.

    A local folder may have come from elsewhere with links in it, to whatever this machine has: these are refused.

    Args:
        root: where it is, for messages.
        filesystem: which has it.
        path: where, there.
        follow_links: also to what lies outside of the folder.
    """

    def __init__(
        self, root: str, filesystem: fsspec.AbstractFileSystem, path: str, *, follow_links: bool = False
    ) -> None:
        self.root = root
        self._filesystem: Any = filesystem  # whose annotations miss what `detail=True` returns
        self._path = path.rstrip("/")
        self._kept_inside = isinstance(filesystem, LocalFileSystem) and not follow_links
        self._inside = os.path.join(os.path.realpath(self._path), "")

    def read(self, path: str) -> bytes:
        self._check_inside(path)
        try:
            return self._filesystem.cat_file(f"{self._path}/{path}")
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
            raise FileNotFoundError(path) from error
        except Exception as error:  # of file systems, many kinds
            raise InputError(
                f"cannot read {path} of {self.root}: {error}; ingest goes on from there when run again"
            ) from error

    def entries(self, folder: str = "") -> Iterator[tuple[str, str]]:
        self._filesystem.invalidate_cache()
        try:
            yield from self._walk(f"{self._path}/{folder}".rstrip("/"))
        except FileNotFoundError:
            return
        except OSError as error:
            raise InputError(f"cannot list {self.root}: {error}") from error

    def _walk(self, top: str, above: tuple[str, ...] = ()) -> Iterator[tuple[str, str]]:
        """Files below a folder; `above` are the real paths of the folders that lead there by links."""
        start = len(self._path) + 1
        for parent, _, infos in self._filesystem.walk(top, detail=True, on_error="raise"):
            for name, info in infos.items():
                path = f"{parent.rstrip('/')}/{name}"
                if info.get("islink"):
                    self._check_inside(path[start:])
                if info.get("islink") and self._filesystem.isdir(path):
                    here, there = os.path.realpath(parent), os.path.realpath(path)
                    if any(f"{one}/".startswith(f"{there}/") for one in (*above, here)):
                        raise InputError(
                            f"{self.root} is refused: its {path[start:]!r} is a link that leads back to it"
                        )
                    yield from self._walk(path, (*above, here))
                else:
                    yield path[start:], f"{info.get('size')} {_stamp(info)}"

    def _check_inside(self, path: str) -> None:
        if self._kept_inside and not os.path.realpath(f"{self._path}/{path}").startswith(self._inside):
            raise InputError(
                f"{self.root} is refused: its {path!r} is a link to outside of the folder; put the files "
                "themselves there, or, where you trust it, set data.follow_links=true"
            )


class ZipFiles(Files):
    """A zip archive, read in place: nothing is ever extracted to disk.

    Args:
        root: where the archive is, for messages.
        file: the archive, open for reading; closed with these files.
        marker: a file at the top of the source; where it lies in the archive's only folder, that is the top.

    Raises:
        zipfile.BadZipFile: it is no zip.
        InputError: an entry would leave the folder, is a link, is encrypted or is too large.
    """

    def __init__(self, root: str, file: IO[bytes], marker: str) -> None:
        self.root = root
        self._file = file
        self._archive = zipfile.ZipFile(file)
        infos = [info for info in self._archive.infolist() if not info.filename.startswith("__MACOSX/")]
        for info in infos:
            _check_entry(root, info)
        self._prefix = _zip_prefix(root, [info.filename for info in infos], marker)
        self._infos = {
            info.filename.removeprefix(self._prefix): info
            for info in infos
            if info.filename.startswith(self._prefix) and not info.is_dir()
        }

    def close(self) -> None:
        self._archive.close()
        self._file.close()

    def read(self, path: str) -> bytes:
        if path not in self._infos:
            raise FileNotFoundError(path)
        try:
            return self._archive.read(self._infos[path])
        except (zipfile.BadZipFile, zlib.error, EOFError) as error:
            raise DamagedFileError(str(error)) from error
        except (OSError, NotImplementedError) as error:
            raise InputError(f"cannot read {path} of {self.root}: {error}") from error

    def entries(self, folder: str = "") -> Iterator[tuple[str, str]]:
        for path, info in self._infos.items():
            if not folder or path.startswith(f"{folder}/"):
                yield path, f"{info.file_size} {info.CRC:08x}"


def open_files(root: str, marker: str, *, follow_links: bool = False) -> Files:
    """Open the folder or zip at a path or fsspec URL.

    Args:
        root: the folder or the zip.
        marker: the file every source of this kind has at its top.
        follow_links: of a local folder, also to what lies outside of it.

    Raises:
        InputError: there is nothing at `root`, or it is neither a folder nor a zip.
    """
    try:
        filesystem, path = fsspec.core.url_to_fs(root)
        root = shown(root)
        if filesystem.isdir(path):
            return FolderFiles(root, filesystem, path, follow_links=follow_links)
        file = filesystem.open(path, "rb")
    except FileNotFoundError as error:
        raise InputError(f"{root} does not exist: give the folder or zip that holds {marker}") from error
    except Exception as error:  # of file systems, many kinds
        raise InputError(f"cannot open {shown(root)}: {error}") from error
    try:
        return ZipFiles(root, file, marker)
    except BaseException as error:
        file.close()
        if isinstance(error, zipfile.BadZipFile):
            raise InputError(f"{root} is neither a folder nor a zip: give what holds {marker}") from error
        if isinstance(error, Exception) and not isinstance(error, InputError):
            raise InputError(f"cannot open {root}: {error}") from error
        raise


def read_csv(files: Files, path: str, columns: Iterable[str]) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """Read a CSV by its header; a byte order mark and CRLF are fine, empty lines are skipped.

    Args:
        files: where it is.
        path: the CSV.
        columns: those it must have, in any order.

    Returns:
        The header, and every row's line number and cells, stripped; a row may have too few or too many.

    Raises:
        InputError: the file is missing, is no UTF-8 CSV, or lacks a column.
    """
    try:
        text = files.read(path).decode("utf-8-sig")
        reader = csv.reader(io.StringIO(text, newline=""), strict=True)
        rows = [(reader.line_num, [cell.strip() for cell in cells]) for cells in reader if any(cells)]
    except FileNotFoundError as error:
        raise InputError(f"{files.root} has no {path}: give the folder or zip that holds it") from error
    except (DamagedFileError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path} of {files.root} is no CSV in UTF-8: {error}") from error
    header = rows[0][1] if rows else []
    missing = [name for name in columns if name not in header]
    if missing or len(set(header)) < len(header):
        what = f"lacks the columns {missing}" if missing else "names a column twice"
        raise InputError(f"{path} of {files.root} {what}; its first line must name them, it is {header}")
    return header, rows[1:]


def read_records(files: Files, path: str, columns: Iterable[str]) -> list[tuple[int, dict[str, str]]]:
    """Read a CSV in which every row must be whole: line numbers and cells by column.

    Raises:
        InputError: as `read_csv`, or a row has another number of cells than the header.
    """
    header, rows = read_csv(files, path, columns)
    for line, cells in rows:
        if len(cells) != len(header):
            raise InputError(f"{path} line {line} of {files.root} has {len(cells)} cells, the header has {len(header)}")
    return [(line, dict(zip(header, cells, strict=True))) for line, cells in rows]


def _stamp(info: dict[str, Any]) -> str:
    return next((str(info[key]) for key in _STAMPS if info.get(key) is not None), "")


def _check_entry(root: str, info: zipfile.ZipInfo) -> None:
    name = info.orig_filename.replace("\\", "/")
    if name.startswith("/") or name[1:2] == ":" or ".." in name.split("/"):
        raise InputError(f"{root} is refused: its entry {info.orig_filename!r} would leave the folder")
    if stat.S_ISLNK(info.external_attr >> 16):
        raise InputError(f"{root} is refused: its entry {name!r} is a link; zip the files themselves")
    if info.flag_bits & 1:
        raise InputError(f"{root} is refused: its entry {name!r} is encrypted; zip it without a password")
    if info.file_size > MAX_FILE_BYTES:
        raise InputError(
            f"{root} is refused: its entry {name!r} has {info.file_size} bytes, more than {MAX_FILE_BYTES}"
        )


def _zip_prefix(root: str, names: list[str], marker: str) -> str:
    if marker in names:
        return ""
    tops = {name.split("/")[0] for name in names}
    if len(tops) == 1 and f"{(top := tops.pop())}/{marker}" in names:
        return f"{top}/"
    raise InputError(
        f"{root} holds no {marker}, neither at its top nor in a single top folder; its top holds {sorted(tops)[:10]}"
    )

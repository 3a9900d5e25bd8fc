"""A folder on any file system, with the few operations that are safe on all of them.

A file is written completely or not at all: under a temporary name and renamed where renaming is
atomic, with a single PUT on an object store. Nothing is ever appended.
"""

from __future__ import annotations

import contextlib
import os
import re
import uuid
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TypeVar

from pyarrow import NativeFile, fs

from pipelines.text import redacted

SCHEMES = ("file", "s3", "gs", "gcs")
# Concurrent requests: an object store takes tens of milliseconds for one, and no longer for many.
MAX_REQUESTS = 16
_SCHEME = re.compile(r"^[a-z][a-z0-9+.-]+://", re.IGNORECASE)
_connected: list[fs.FileSystem] = []  # file systems whose connections all folders share
Item = TypeVar("Item")
Result = TypeVar("Result")


def locate(uri: str) -> tuple[fs.FileSystem, str]:
    """The file system of a path or URI, and the path within it."""
    if not _SCHEME.match(uri):
        return fs.LocalFileSystem(), str(Path(uri).expanduser().absolute())
    return _connect(uri)


@lru_cache(maxsize=1024)  # connecting to an object store takes longer than reading a row
def _connect(uri: str) -> tuple[fs.FileSystem, str]:
    scheme = uri.split("://", 1)[0].lower()
    if scheme not in SCHEMES:
        raise ValueError(
            f"{redacted(uri)} is on {scheme}://, which is not supported: expected a local path or"
            f" one of {', '.join(SCHEMES)}"
        )
    system, path = fs.FileSystem.from_uri(uri)
    for other in _connected:
        if other.equals(system):
            return other, path
    _connected.append(system)
    return system, path


def run_concurrently(function: Callable[[Item], Result], items: Iterable[Item]) -> list[Result]:
    """Results of `function` for all items, in their order. Raises the first error once all ended.

    For functions that wait for a file system: threads do not compute in parallel.
    """
    with ThreadPoolExecutor(MAX_REQUESTS, thread_name_prefix="storage") as pool:
        return list(pool.map(function, items))


@dataclass(frozen=True)
class Folder:
    """The files directly in one folder, which is created with its first file.

    `str(folder)` is safe to print: it contains no secret.
    """

    uri: str

    @classmethod
    def of(cls, uri: str) -> Folder:
        return cls(
            uri.rstrip("/") if _SCHEME.match(uri) else str(Path(uri).expanduser().absolute())
        )

    def __str__(self) -> str:
        return redacted(self.uri)

    def __repr__(self) -> str:
        return f"Folder({str(self)!r})"

    @property
    def _location(self) -> tuple[fs.FileSystem, str]:
        return locate(self.uri)

    @property
    def local(self) -> Path | None:
        system, path = self._location
        return Path(path) if isinstance(system, fs.LocalFileSystem) else None

    def child(self, name: str) -> Folder:
        path, options = self._split_options()
        return Folder(f"{path}/{name}{options}")

    @property
    def parent(self) -> Folder:
        path, options = self._split_options()
        return Folder((path.rpartition("/")[0] or "/") + options)

    def _split_options(self) -> tuple[str, str]:
        """The path, and the store's options: s3://bucket/folder, ?endpoint_override=..."""
        is_uri = _SCHEME.match(self.uri)
        path, mark, options = self.uri.partition("?") if is_uri else (self.uri, "", "")
        return path.rstrip("/"), mark + options

    def _path(self, name: str) -> str:
        return f"{self._location[1].rstrip('/')}/{name}"

    def names(self) -> list[str]:
        """Names of the files, sorted; empty if the folder does not exist."""
        system, path = self._location
        infos = system.get_file_info(fs.FileSelector(path, allow_not_found=True))
        return sorted(info.base_name for info in infos if info.type == fs.FileType.File)

    def exists(self, name: str) -> bool:
        return bool(self._location[0].get_file_info(self._path(name)).type == fs.FileType.File)

    def open(self, name: str) -> NativeFile:
        return self._location[0].open_input_file(self._path(name))

    def read(self, name: str) -> bytes:
        with self.open(name) as file:
            return bytes(file.read())

    def write(self, name: str, data: bytes) -> None:
        """Write all of `data` or nothing: neither readers nor a crash see half of it."""
        folder = self.local
        if folder is None:
            with self._location[0].open_output_stream(self._path(name)) as stream:
                stream.write(data)
            return
        folder.mkdir(parents=True, exist_ok=True)
        temporary = folder / f".{name}.{uuid.uuid4().hex[:8]}.tmp"
        try:
            with open(temporary, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, folder / name)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise

    def rename(self, old: str, new: str) -> None:
        self._location[0].move(self._path(old), self._path(new))

    def delete(self, name: str) -> None:
        """Delete a file. A file that does not exist is not an error."""
        with contextlib.suppress(FileNotFoundError):
            self._location[0].delete_file(self._path(name))

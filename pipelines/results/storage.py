"""One folder on any file system, with the few acts that are safe everywhere.

A file is written whole or not at all: to a temporary name and renamed where files can be renamed in one step, by a
single PUT on an object store. Nothing here ever appends.
"""

from __future__ import annotations

import contextlib
import os
import re
import uuid
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from pyarrow import NativeFile, fs

_SCHEME = re.compile(r"^[a-z][a-z0-9+.-]+://", re.IGNORECASE)
SCHEMES = ("file", "s3", "gs", "gcs")
_STORES: list[fs.FileSystem] = []  # with their connections, which every folder on a store shares
AT_ONCE = 16  # requests: an object store takes tens of milliseconds for one, and no longer for several
Item = TypeVar("Item")
Result = TypeVar("Result")


def split(uri: str) -> tuple[fs.FileSystem, str]:
    """The file system of a path or URI, and the path within it."""
    if not _SCHEME.match(uri):
        return fs.LocalFileSystem(), str(Path(uri).expanduser().absolute())
    scheme = uri.split("://", 1)[0].lower()
    if scheme not in SCHEMES:
        raise ValueError(f"{redacted(uri)} is on {scheme}://; supported are local paths and {', '.join(SCHEMES)}")
    system, path = fs.FileSystem.from_uri(uri)
    for known in _STORES:
        if known.equals(system):
            return known, path
    _STORES.append(system)
    return system, path


def run_concurrently(act: Callable[[Item], Result], items: Iterable[Item]) -> list[Result]:
    """What `act` makes of each item, in their order, several at a time; the first error is raised when all have ended.

    For acts that wait for a file system: threads do not compute side by side.
    """
    with ThreadPoolExecutor(AT_ONCE, thread_name_prefix="at-once") as pool:
        return list(pool.map(act, items))


@dataclass(frozen=True)
class Folder:
    """Files directly in one folder; it comes to exist with the first file written. Travels to workers as its URI."""

    uri: str

    @classmethod
    def of(cls, uri: str) -> Folder:
        return cls(uri.rstrip("/") if _SCHEME.match(uri) else str(Path(uri).expanduser().absolute()))

    def __repr__(self) -> str:
        return f"Folder({redacted(self.uri)!r})"

    def __reduce__(self) -> tuple[Any, ...]:
        return Folder, (self.uri,)

    @cached_property
    def _place(self) -> tuple[fs.FileSystem, str]:
        return split(self.uri)

    @property
    def local(self) -> Path | None:
        system, path = self._place
        return Path(path) if isinstance(system, fs.LocalFileSystem) else None

    def child(self, name: str) -> Folder:
        path, options = self._uri
        return Folder(f"{path}/{name}{options}")

    @property
    def parent(self) -> Folder:
        """The folder that it lies in."""
        path, options = self._uri
        return Folder((path.rpartition("/")[0] or "/") + options)

    @property
    def _uri(self) -> tuple[str, str]:
        """Where it is, and what a URI says of the store: s3://bucket/folder?endpoint_override=..."""
        path, mark, query = self.uri.partition("?") if _SCHEME.match(self.uri) else (self.uri, "", "")
        return path.rstrip("/"), mark + query

    def _path(self, name: str) -> str:
        return f"{self._place[1].rstrip('/')}/{name}"

    def names(self) -> list[str]:
        """Files directly in it, sorted; none if it does not exist."""
        system, path = self._place
        infos = system.get_file_info(fs.FileSelector(path, allow_not_found=True))
        return sorted(info.base_name for info in infos if info.type == fs.FileType.File)

    def sizes(self) -> Mapping[str, int]:
        system, path = self._place
        infos = system.get_file_info(fs.FileSelector(path, allow_not_found=True))
        return {info.base_name: info.size for info in infos if info.type == fs.FileType.File}

    def exists(self, name: str) -> bool:
        return bool(self._place[0].get_file_info(self._path(name)).type == fs.FileType.File)

    def open(self, name: str) -> NativeFile:
        return self._place[0].open_input_file(self._path(name))

    def read(self, name: str) -> bytes:
        with self.open(name) as file:
            return bytes(file.read())

    def write(self, name: str, data: bytes) -> None:
        """All of `data` under `name`, or nothing: a reader never sees half of it, and a lost machine leaves none."""
        folder = self.local
        if folder is None:
            with self._place[0].open_output_stream(self._path(name)) as stream:
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
        self._place[0].move(self._path(old), self._path(new))

    def delete(self, name: str) -> None:
        """Delete a file; one that is gone already is no error."""
        with contextlib.suppress(FileNotFoundError):
            self._place[0].delete_file(self._path(name))

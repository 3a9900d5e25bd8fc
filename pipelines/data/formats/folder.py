"""A folder of images or videos, with the same question for all. A row's id is its path within the folder."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from pyarrow import fs

from pipelines.data.formats.base import SUFFIXES, DataFile, Format, RawRecord, Span


def listing(file: DataFile) -> list[tuple[str, int]]:
    """Path within the folder, and size, of each file in it or below; hidden ones are not listed."""
    if isinstance(file.system, fs.LocalFileSystem):
        found = _local(Path(file.path))
    else:
        base = file.path.rstrip("/") + "/"
        infos = file.system.get_file_info(fs.FileSelector(file.path, recursive=True))
        found = (
            (info.path.removeprefix(base), info.size or 0)
            for info in infos
            if info.type == fs.FileType.File
        )
    return sorted(
        (name, size)
        for name, size in found
        if not any(part.startswith(".") for part in name.split("/"))
    )


def _local(base: Path) -> Iterator[tuple[str, int]]:
    """Links are followed, each folder once: two links in a circle would otherwise be a million million folders."""
    seen = set()
    for folder, inner, names in os.walk(base, followlinks=True):
        inner[:] = [name for name in sorted(inner) if not name.startswith(".")]
        if (real := os.path.realpath(folder)) in seen:
            inner.clear()
            continue
        seen.add(real)
        for path in (Path(folder, name) for name in names):
            if path.is_file():
                yield path.relative_to(base).as_posix(), path.stat().st_size


def index(file: DataFile) -> Iterator[Span]:
    return (
        Span(name, 0, size)
        for name, size in listing(file)
        if name.lower().endswith(SUFFIXES[file.kind])
    )


def read(file: DataFile, spans: Sequence[Span]) -> Iterator[RawRecord | Exception]:
    return ({"id": span.row_id, "media": span.row_id} for span in spans)


def digest(file: DataFile) -> Iterator[bytes]:
    return (f"{span.row_id} {span.length}\n".encode() for span in index(file))


FOLDER = Format((), lambda file: None, index, read, digest)

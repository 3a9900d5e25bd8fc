"""A folder of images or videos with one question for all. A row's id is its path in the folder."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from pyarrow import fs

from pipelines.data.formats.base import SUFFIXES, DataFile, Format, RawRecord, Span


def list_files(file: DataFile) -> list[tuple[str, int]]:
    """Path within the folder and size of every file in it and below; hidden ones are left out."""
    if isinstance(file.system, fs.LocalFileSystem):
        files = _walk(Path(file.path))
    else:
        base = file.path.rstrip("/") + "/"
        infos = file.system.get_file_info(fs.FileSelector(file.path, recursive=True))
        files = (
            (info.path.removeprefix(base), info.size or 0)
            for info in infos
            if info.type == fs.FileType.File
        )
    return sorted((name, size) for name, size in files if "/." not in f"/{name}")


def _walk(base: Path) -> Iterator[tuple[str, int]]:
    """Files below a local folder. Links are followed, but each folder is visited only once.

    Two links in a circle would otherwise be an endless number of folders.
    """
    visited = set()
    for folder, subfolders, names in os.walk(base, followlinks=True):
        subfolders[:] = [name for name in sorted(subfolders) if not name.startswith(".")]
        if (real := os.path.realpath(folder)) in visited:
            subfolders.clear()
            continue
        visited.add(real)
        for path in (Path(folder, name) for name in names):
            if path.is_file():
                yield path.relative_to(base).as_posix(), path.stat().st_size


def index(file: DataFile) -> Iterator[Span]:
    suffixes = SUFFIXES[file.kind]
    return (
        Span(name, 0, size) for name, size in list_files(file) if name.lower().endswith(suffixes)
    )


def read(file: DataFile, spans: Sequence[Span]) -> Iterator[RawRecord | Exception]:
    return ({"id": span.row_id, "media": span.row_id} for span in spans)


def digest(file: DataFile) -> Iterator[bytes]:
    return (f"{span.row_id} {span.length}\n".encode() for span in index(file))


FOLDER = Format(index, read, digest)

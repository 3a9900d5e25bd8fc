"""WebDataset: tar files whose neighbouring members of one stem are a row: `7.jpg`, `7.json`, or `7.txt` for a question.

A row's place is the bytes from its first member's header to its last member's end. Its id is the tar's name and the
stem, because stems repeat from tar to tar: `shard-0003/7`.
"""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator, Sequence
from typing import Any

from pipelines.data.formats.base import (
    ALIASES,
    SUFFIXES,
    DataFile,
    Format,
    RawRecord,
    Span,
    attempt,
    ranges,
    size,
)
from pipelines.data.formats.jsonl import parse as parse_json

LARGEST = 2 << 30  # bytes of one row, all its members together
CUT = "cut-at-"  # the row that stands for what a damaged tar has lost
WINDOW = (
    256 << 10
)  # headers are found by reading this much at a time and seeking over media that are longer


def _stem(name: str) -> str:
    """What the members of one row share; empty for hidden files."""
    folder, slash, base = name.removeprefix("./").rpartition("/")
    stem = base.partition(".")[0]
    return stem and folder + slash + stem


def index(file: DataFile) -> Iterator[Span]:
    shard = file.name.partition(".")[0]
    stem, start, end = None, 0, 0
    with file.open() as raw, io.BufferedReader(raw, WINDOW) as stream:
        size = raw.size()
        try:
            archive = tarfile.open(fileobj=stream, mode="r:")  # noqa: SIM115 - the stream is what is closed
        except tarfile.TarError as error:
            raise ValueError(
                f"{file.name} is no plain tar file ({error}); compressed ones have to be unpacked"
            ) from error
        try:
            while member := archive.next():
                archive.members = []  # type: ignore[attr-defined]  # tarfile keeps all it has seen
                found = _stem(member.name)
                if not member.isreg() or not found:
                    continue
                if found != stem:
                    if stem is not None:
                        yield Span(f"{shard}/{stem}", start, end - start)
                    stem, start = found, member.offset
                end = archive.offset
            stream.seek(archive.offset)
            if stream.read(tarfile.BLOCKSIZE) != bytes(
                tarfile.BLOCKSIZE
            ):  # tarfile takes what it cannot read for the end
                raise tarfile.ReadError("no end mark")
            if stem is not None:
                yield Span(f"{shard}/{stem}", start, end - start)
        except (
            tarfile.TarError
        ):  # what follows is lost: one row stands for it, so that it is counted
            yield Span(f"{shard}/{CUT}{start}", start, size - start)


def read(file: DataFile, spans: Sequence[Span]) -> Iterator[RawRecord | Exception]:
    for span, data in zip(spans, ranges(file, spans, LARGEST), strict=True):
        if span.row_id.rpartition("/")[2].startswith(CUT):
            yield ValueError(
                f"{file.name} is cut or damaged from byte {span.start:,} on: what follows there is lost"
            )
        else:
            yield attempt(lambda data: _row(file, data), data)


def _row(file: DataFile, data: bytes) -> RawRecord:
    record: dict[str, Any] = {}
    media, question, stem = [], None, ""
    try:
        with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as archive:
            for member in archive:
                if not member.isreg() or not _stem(member.name):
                    continue
                stem = _stem(member.name)
                if member.issparse():
                    raise ValueError(
                        f"{member.name} is a sparse file, which can say any size; pack it as an ordinary one"
                    )
                suffix = f".{member.name.rpartition('.')[2].lower()}"
                if suffix not in (".json", ".txt", *SUFFIXES[file.kind]):
                    continue
                opened = archive.extractfile(member)
                content = opened.read() if opened else b""
                if suffix == ".json":
                    record = dict(parse_json(content))
                elif suffix == ".txt":
                    question = content.decode().strip()
                else:
                    media.append({"bytes": content, "path": f"{file.name}/{member.name}"})
    except tarfile.TarError as error:
        raise ValueError(f"{file.name} is damaged here: {error}") from error
    record = {
        name: value
        for name, value in record.items()
        if name not in (*ALIASES["id"], *ALIASES["media"])
    }
    if question is not None and not any(record.get(name) for name in ALIASES["question"]):
        record["question"] = question
    return record | {"id": f"{file.name.partition('.')[0]}/{stem}", "media": media}


WEBDATASET = Format((".tar",), lambda file: None, index, read, size)

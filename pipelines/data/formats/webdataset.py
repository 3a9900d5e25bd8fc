"""WebDataset: tar files in which neighboring members with the same stem are one row.

Members are media, `.json` and `.txt` (a question), e.g. `7.jpg` and `7.json`. A row's position is
the bytes from its first member's header to its last member's end. Its id is the tar's name and the
stem, because stems repeat from tar to tar: `shard-0003/7`.
"""

import io
import tarfile
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

from pipelines.data.formats.base import (
    ALIASES,
    SUFFIXES,
    DataFile,
    Format,
    RawRecord,
    Span,
    read_spans,
)
from pipelines.data.formats.jsonl import parse as parse_json

MAX_ROW = 2 << 30  # bytes of all members of a row together
DAMAGED = "cut-at-"  # in the id of the row that stands for what a damaged tar has lost
READ_AHEAD = 256 << 10  # bytes read to find headers; longer media are skipped


def _stem(name: str) -> str:
    """The name that members of one row share; empty for hidden files."""
    folder, slash, base = name.removeprefix("./").rpartition("/")
    stem = base.partition(".")[0]
    return stem and folder + slash + stem


def index(file: DataFile) -> Iterator[Span]:
    shard = file.name.partition(".")[0]
    row, start, end = "", 0, 0
    with file.open() as raw, io.BufferedReader(raw, READ_AHEAD) as stream:
        size = raw.size()
        try:
            archive = tarfile.open(fileobj=stream, mode="r:")  # noqa: SIM115  closed with `stream`
        except tarfile.TarError as error:
            raise ValueError(
                f"{file.name} is not a plain tar file ({error}); unpack compressed ones"
            ) from error
        try:
            while member := archive.next():
                archive.members = []  # type: ignore[attr-defined]  # else tarfile keeps them all
                stem = _stem(member.name)
                if not member.isreg() or not stem:
                    continue
                if stem != row:
                    if row:
                        yield Span(f"{shard}/{row}", start, end - start)
                    row, start = stem, member.offset
                end = archive.offset
            # tarfile takes anything that it cannot read for the end of the archive.
            stream.seek(archive.offset)
            if stream.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
                raise tarfile.ReadError("no end mark")
            if row:
                yield Span(f"{shard}/{row}", start, end - start)
        except tarfile.TarError:
            # The rest is lost: one row stands for it, so that it is counted.
            yield Span(f"{shard}/{DAMAGED}{start}", start, size - start)


def read(file: DataFile, spans: Sequence[Span]) -> Iterator[RawRecord | Exception]:
    records = read_spans(file, spans, MAX_ROW, partial(_record, file))
    for span, record in zip(spans, records, strict=True):
        if span.row_id.rpartition("/")[2].startswith(DAMAGED):
            yield ValueError(
                f"{file.name} is cut or damaged from byte {span.start:,} on: the rest is lost"
            )
        else:
            yield record


def _record(file: DataFile, data: bytes) -> RawRecord:
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
                        f"{member.name} is a sparse file, which can claim any size; store it as an"
                        " ordinary one"
                    )
                suffix = f".{member.name.rpartition('.')[2].lower()}"
                if suffix not in (".json", ".txt", *SUFFIXES[file.kind]):
                    continue
                stream = archive.extractfile(member)
                content = stream.read() if stream else b""
                if suffix == ".json":
                    record = dict(parse_json(content))
                elif suffix == ".txt":
                    question = content.decode().strip()
                else:
                    media.append({"bytes": content, "path": f"{file.name}/{member.name}"})
    except tarfile.TarError as error:
        raise ValueError(f"{file.name} is damaged: {error}") from error
    # The id and the media are the tar's own.
    for name in (*ALIASES["id"], *ALIASES["media"]):
        record.pop(name, None)
    if question is not None and not any(record.get(name) for name in ALIASES["question"]):
        record["question"] = question
    return record | {"id": f"{file.name.partition('.')[0]}/{stem}", "media": media}


def digest(file: DataFile) -> Iterator[bytes]:
    """Name and size: reading all media once more would take too long."""
    yield f"{file.name} {file.info().size}".encode()


WEBDATASET = Format(index, read, digest, (".tar",))

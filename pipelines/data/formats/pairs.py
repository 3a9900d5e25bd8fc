"""A folder of small text files, with a row a line: a question, a tab, its answer. A row's place is its number.

The files are many and tiny, so all of them are read at once and kept: a benchmark's, not anybody's."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache

from pipelines.data.formats.base import DataFile, Format, RawRecord, Span
from pipelines.data.formats.folder import listing


@lru_cache(maxsize=4)
def _rows(file: DataFile) -> tuple[RawRecord, ...]:
    found = []
    base = file.path.rstrip("/")
    for name, _ in listing(file):
        if not name.endswith(".txt"):
            continue
        with file.system.open_input_file(f"{base}/{name}") as stream:
            lines = bytes(stream.read()).decode("utf-8-sig").splitlines()
        for line in lines:
            question, _, answer = line.strip().partition("\t")
            record = {"file": name, "question": question, "answer": answer}
            if question and file.identity(record) is not None:
                found.append(record)
    return tuple(found)


def index(file: DataFile) -> Iterator[Span]:
    return (
        Span(file.identity(record) or "", number, 1) for number, record in enumerate(_rows(file))
    )


def read(file: DataFile, spans: Sequence[Span]) -> Iterator[RawRecord | Exception]:
    rows = _rows(file)
    return (rows[span.start] for span in spans)


def digest(file: DataFile) -> Iterator[bytes]:
    return ("\t".join(map(str, record.values())).encode() for record in _rows(file))


PAIRS = Format((), lambda file: None, index, read, digest)

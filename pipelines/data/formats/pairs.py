"""A folder of small text files with a question, a tab and its answer per line.

A row's position is its number. The files are small and belong to a benchmark, so all of them are
read at once and kept.
"""

from collections.abc import Iterator, Sequence
from functools import lru_cache

from pipelines.data.formats.base import DataFile, Format, RawRecord, Span
from pipelines.data.formats.folder import list_files


@lru_cache(maxsize=4)
def _records(file: DataFile) -> tuple[RawRecord, ...]:
    records = []
    base = file.path.rstrip("/")
    for name, _ in list_files(file):
        if not name.endswith(".txt"):
            continue
        with file.system.open_input_file(f"{base}/{name}") as stream:
            lines = bytes(stream.read()).decode("utf-8-sig").splitlines()
        for line in lines:
            question, _, answer = line.strip().partition("\t")
            record = {"file": name, "question": question, "answer": answer}
            if question and file.identity(record) is not None:
                records.append(record)
    return tuple(records)


def index(file: DataFile) -> Iterator[Span]:
    for number, record in enumerate(_records(file)):
        yield Span(file.identity(record) or "", number, 1)


def read(file: DataFile, spans: Sequence[Span]) -> Iterator[RawRecord | Exception]:
    return (_records(file)[span.start] for span in spans)


def digest(file: DataFile) -> Iterator[bytes]:
    return ("\t".join(map(str, record.values())).encode() for record in _records(file))


PAIRS = Format(index, read, digest)

"""Where each row of a data set lies: all that the driver holds of it, some forty bytes a row."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.data.formats import FORMATS
from pipelines.data.formats.base import DataFile, Format, RawRecord, Span

INDEX = pa.schema(
    [("row_id", pa.string()), ("file", pa.int32()), ("start", pa.int64()), ("length", pa.int64())]
)
PART = 8192  # rows of the index that are Python objects at once


def index_rows(layout: str, files: Sequence[DataFile], limit: int | None = None) -> pa.Table:
    """Where each row of these files lies, as `INDEX`."""
    parts: list[pa.Table] = []
    rows = 0
    for number, file in enumerate(files):
        spans = islice(FORMATS[layout].index(file), None if limit is None else limit - rows)
        while part := list(islice(spans, PART)):
            parts.append(_table(part, number))
            rows += len(part)
    return pa.concat_tables(parts) if parts else INDEX.empty_table()


def read_records(
    layout: str, files: Sequence[DataFile], pointers: pa.Table
) -> list[tuple[DataFile, Span, RawRecord | Exception]]:
    """What lies at these places, in their order; each file is read from its start to its end."""
    found: dict[int, tuple[DataFile, Span, RawRecord | Exception]] = {}
    members: dict[int, list[tuple[Span, int]]] = {}
    columns = (pointers[name].to_pylist() for name in INDEX.names)
    for order, (row_id, number, start, length) in enumerate(zip(*columns, strict=True)):
        members.setdefault(number, []).append((Span(row_id, start, length), order))
    for number, wanted in members.items():
        wanted.sort(key=lambda each: each[0].start)
        read = _records(FORMATS[layout], files[number], [span for span, _ in wanted])
        for (span, order), record in zip(wanted, read, strict=True):
            found[order] = (files[number], span, record)
    return [found[order] for order in range(len(found))]


def _table(spans: Sequence[Span], number: int) -> pa.Table:
    """A part of the index. From buffers, as `pa.array` imports pandas and a run with nothing left to do has no time."""
    ids, starts, lengths = zip(*spans, strict=True)
    texts = [row_id.encode() for row_id in ids]
    ends = pa.py_buffer(np.cumsum([0, *map(len, texts)], dtype=np.int32))
    numbers = (
        np.full(len(ids), number, np.int32),
        np.array(starts, np.int64),
        np.array(lengths, np.int64),
    )
    columns = [
        pa.Array.from_buffers(pa.string(), len(ids), [None, ends, pa.py_buffer(b"".join(texts))]),
        *(
            pa.Array.from_buffers(kind, len(ids), [None, pa.py_buffer(values)])
            for kind, values in zip(INDEX.types[1:], numbers, strict=True)
        ),
    ]
    return pa.table(columns, schema=INDEX)


def _records(
    layout: Format, file: DataFile, spans: Sequence[Span]
) -> Iterator[RawRecord | Exception]:
    """One result a span, whatever happens to the file."""
    done = 0
    try:
        for record in layout.read(file, spans):
            yield record
            done += 1
    except (OSError, ValueError, pa.ArrowException) as error:
        yield from [error] * (len(spans) - done)


def duplicate_ids(ids: pa.ChunkedArray) -> pa.ChunkedArray:
    """The ids that are there more than once: answers are told apart by them."""
    if pc.count_distinct(ids).as_py() == len(ids):
        return ids.slice(0, 0)
    counted = ids.value_counts()
    return counted.filter(pc.greater(counted.field("counts"), 1)).field("values")

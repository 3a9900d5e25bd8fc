"""Positions of all rows of a data set: all that the driver holds of it, about forty bytes a row."""

from collections.abc import Iterator, Sequence
from itertools import islice

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.data.formats import FORMATS
from pipelines.data.formats.base import DataFile, Format, RawRecord, Span

INDEX = pa.schema(
    [
        ("row_id", pa.string()),
        ("file", pa.int32()),
        ("start", pa.int64()),
        ("length", pa.int64()),
        ("media", pa.uint32()),  # Span.media
    ]
)
POSITION = INDEX.names[:4]
GROUP_WINDOW = 1 << 16  # rows within which those of the same media are brought together
CHUNK_ROWS = 8192  # rows of the index that are Python objects at once
Record = tuple[DataFile, Span, RawRecord | Exception]


def index_rows(layout: str, files: Sequence[DataFile], limit: int | None = None) -> pa.Table:
    """The positions of the rows of these files, as `INDEX`; of the first `limit` rows."""
    tables: list[pa.Table] = []
    rows = 0
    for number, file in enumerate(files):
        spans = islice(FORMATS[layout].index(file), None if limit is None else limit - rows)
        while chunk := list(islice(spans, CHUNK_ROWS)):
            tables.append(_table(chunk, number))
            rows += len(chunk)
    return pa.concat_tables(tables) if tables else INDEX.empty_table()


def read_records(layout: str, files: Sequence[DataFile], pointers: pa.Table) -> list[Record]:
    """The records at these positions, in their order. Each file is read from start to end."""
    records: dict[int, Record] = {}  # by place in `pointers`
    by_file: dict[int, list[tuple[Span, int]]] = {}
    columns = (pointers[name].to_pylist() for name in POSITION)
    for order, (row_id, number, start, length) in enumerate(zip(*columns, strict=True)):
        by_file.setdefault(number, []).append((Span(row_id, start, length), order))
    for number, spans in by_file.items():
        spans.sort(key=lambda item: item[0].start)
        read = _read(FORMATS[layout], files[number], [span for span, _ in spans])
        for (span, order), record in zip(spans, read, strict=True):
            records[order] = (files[number], span, record)
    return [records[order] for order in range(len(records))]


def _table(spans: Sequence[Span], file_number: int) -> pa.Table:
    """A chunk of the index, made from buffers.

    `pa.array` and `to_pandas_dtype` would import pandas, for which a job with nothing left to do
    has no time.
    """
    row_ids, starts, lengths, media = zip(*spans, strict=True)
    texts = [row_id.encode() for row_id in row_ids]
    offsets = np.cumsum([0, *map(len, texts)], dtype=np.int32)
    text_buffers = [None, pa.py_buffer(offsets), pa.py_buffer(b"".join(texts))]
    numbers = ([file_number] * len(spans), starts, lengths, media)
    columns = [pa.Array.from_buffers(pa.string(), len(spans), text_buffers)]
    for field, values in zip(list(INDEX)[1:], numbers, strict=True):
        buffer = pa.py_buffer(np.array(values, str(field.type)))
        columns.append(pa.Array.from_buffers(field.type, len(spans), [None, buffer]))
    return pa.table(columns, schema=INDEX)


def group_by_media(pointers: pa.Table) -> pa.Table:
    """The rows with those of the same media together, in the order of each group's first row.

    Within windows of rows only, so that a large file is still read almost from start to end.
    """
    starts = range(0, max(1, len(pointers)), GROUP_WINDOW)
    return pa.concat_tables([_grouped(pointers.slice(start, GROUP_WINDOW)) for start in starts])


def _grouped(pointers: pa.Table) -> pa.Table:
    media = np.asarray(pointers["media"]).astype(np.int64)
    rows = np.arange(len(media))
    _, first, group = np.unique(
        np.where(media, media, -1 - rows), return_index=True, return_inverse=True
    )
    order = first[group].argsort(kind="stable")
    return pointers if (order == rows).all() else pointers.take(pa.array(order))


def split_between_media(pointers: pa.Table, rows: int) -> Iterator[pa.Table]:
    """Parts of about `rows` rows, at most; a group of the same media is split if it is larger."""
    media = np.asarray(pointers["media"]).astype(np.int64)
    starts = np.flatnonzero(np.diff(media, prepend=-1))  # of groups, unknown media together
    begin = 0
    while begin < len(media):
        end = min(begin + rows, len(media))
        last = starts[np.searchsorted(starts, end, "right") - 1]
        if end < len(media) and last > begin and media[end]:
            end = int(last)
        yield pointers.slice(begin, end - begin)
        begin = end


def _read(layout: Format, file: DataFile, spans: Sequence[Span]) -> Iterator[RawRecord | Exception]:
    """One result per span, also if the file cannot be read."""
    done = 0
    try:
        for record in layout.read(file, spans):
            yield record
            done += 1
    except (OSError, ValueError, pa.ArrowException) as error:
        yield from [error] * (len(spans) - done)


def duplicate_ids(ids: pa.ChunkedArray) -> pa.ChunkedArray:
    """The ids that occur more than once."""
    if pc.count_distinct(ids).as_py() == len(ids):  # `pc.greater` would import pandas
        return ids.slice(0, 0)
    counts = ids.value_counts()
    return counts.filter(pc.greater(counts.field("counts"), 1)).field("values")

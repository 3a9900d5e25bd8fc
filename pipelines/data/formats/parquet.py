"""Parquet, with paths or with the media themselves in {bytes, path} structs, as data sets on the hub have them.

A row's place is its number. The index reads the column of the ids. Rows are read through a cursor that stays open
between calls: a row group can only be read from its start, and a worker that is handed one part of a group after the
other must not start over each time.
"""

from __future__ import annotations

import hashlib
import threading
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import accumulate

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.data.formats.base import ALIASES, NUMBER, DataFile, Format, RawRecord, Span, digest
from pipelines.data.memory_limit import bounded

BATCH = 4 << 20  # bytes of rows decoded at once, if what the file says of itself is true
MOST = (
    4 << 30
)  # bytes that one row may take while it is decoded; an eighth of it for several at once
WHOLE = (
    64 << 20
)  # files up to this size are hashed whole; of larger ones the end, which describes all pages
_KNOWN = {name for names in ALIASES.values() for name in names}
_open = threading.local()


def _parquet(file: DataFile) -> pq.ParquetFile:
    """The file, with its pages read as they are needed; refused if loading its types could run code."""
    stream = file.open()
    try:
        with bounded(MOST // 8):
            parquet = pq.ParquetFile(stream, buffer_size=1 << 20, pre_buffer=False)
    except (pa.ArrowException, OSError, MemoryError) as error:
        raise ValueError(f"{file.name} is no readable Parquet file: {error}") from error
    for field in parquet.schema_arrow:
        if field.name in _KNOWN and _extended(field.type):
            raise ValueError(
                f"{file.name}: column '{field.name}' is a {field.type}, whose values may be pickled objects"
            )
    return parquet


def _extended(kind: pa.DataType) -> bool:
    inner = [kind.field(place).type for place in range(kind.num_fields)]
    return isinstance(kind, pa.BaseExtensionType) or any(map(_extended, inner))


def columns(file: DataFile) -> list[str]:
    with _parquet(file) as parquet:
        return list(parquet.schema_arrow.names)


def index(file: DataFile) -> Iterator[Span]:
    with _parquet(file) as parquet:
        if NUMBER in file.keys:
            numbers = range(parquet.metadata.num_rows)
            yield from (
                Span(file.identity(_numbered(file, number)) or "", number, 1) for number in numbers
            )
            return
        names = parquet.schema_arrow.names
        keys = list(file.keys) or [name for name in ALIASES["id"] if name in names][:1]
        if not keys or set(keys) - set(names):
            wanted = " and ".join(f"'{key}'" for key in keys) or "'id'"
            raise ValueError(f"{file.name} has no column {wanted}; it has {', '.join(names)}")
        number = 0
        for records in iter(
            partial(_next, file, parquet.iter_batches(batch_size=8192, columns=keys)), None
        ):
            for record in records:
                yield Span(file.identity(record) or f"{file.prefix}row-{number + 1}", number, 1)
                number += 1


def _next(file: DataFile, batches: Iterator[pa.RecordBatch]) -> list[RawRecord] | None:
    try:
        with bounded(MOST // 8):
            found: list[RawRecord] = next(batches).to_pylist()
            return found
    except StopIteration:
        return None
    except (pa.ArrowException, OSError, MemoryError) as error:
        raise ValueError(f"the ids of {file.name} cannot be read: {error}") from error


class Cursor:
    """Rows of one file by number; cheap as long as the numbers grow."""

    def __init__(self, file: DataFile) -> None:
        self.parquet = _parquet(file)
        groups = [
            self.parquet.metadata.row_group(each) for each in range(self.parquet.num_row_groups)
        ]
        self.starts = list(accumulate((group.num_rows for group in groups), initial=0))
        sizes = (BATCH * group.num_rows // max(1, group.total_byte_size) for group in groups)
        self.sizes = [min(max(1, size), 65536) for size in sizes]
        wanted = _KNOWN | {*file.keys, *file.columns}
        self.columns = [name for name in self.parquet.schema_arrow.names if name in wanted]
        self.group, self.first, self.batch = -1, 0, pa.RecordBatch.from_pylist([])
        self.batches: Iterator[pa.RecordBatch] = iter(())

    def row(self, number: int) -> RawRecord:
        group = bisect_right(self.starts, number) - 1
        if group >= self.parquet.num_row_groups:
            raise ValueError(
                f"there is no row {number + 1} any more: the file has changed since it was indexed"
            )
        while True:
            size = self.sizes[group]
            try:
                with bounded(MOST if size == 1 else MOST // 8):
                    return self._row(group, number)
            except (
                MemoryError
            ):  # values that repeat are written once and take their room when they are read
                self.group = -1
                if size == 1:
                    raise
                self.sizes[group] = max(1, size // 16)

    def _row(self, group: int, number: int) -> RawRecord:
        if group != self.group or number < self.first:
            size = self.sizes[group]
            self.batches = self.parquet.iter_batches(
                batch_size=size, row_groups=[group], columns=self.columns
            )
            self.group, self.first, self.batch = group, self.starts[group], next(self.batches)
        while number >= self.first + self.batch.num_rows:
            after = next(self.batches)
            self.first, self.batch = self.first + self.batch.num_rows, after
        found: RawRecord = self.batch.slice(number - self.first, 1).to_pylist()[0]
        return found


def read(file: DataFile, spans: Sequence[Span]) -> Iterator[RawRecord | Exception]:
    info = file.info()
    version = (file.uri, file.path, info.size, info.mtime_ns)
    if getattr(_open, "version", None) != version:
        _open.cursor, _open.version = Cursor(file), version
    for span in spans:
        try:
            record = _open.cursor.row(span.start)
            yield {**record, **_numbered(file, span.start)} if NUMBER in file.keys else record
        except (pa.ArrowException, OSError, ValueError, MemoryError, StopIteration) as error:
            _open.version = None  # a reader that failed is not read on
            yield ValueError(f"row {span.start + 1} of {file.name} cannot be read: {error}")


def _numbered(file: DataFile, number: int) -> RawRecord:
    return {NUMBER: f"{file.prefix}{number}"}


def contents(file: DataFile) -> Iterator[bytes]:
    size = file.info().size
    if size <= WHOLE:
        yield from digest(file)
        return
    with file.open() as stream:
        stream.seek(size - 8)
        tail = stream.read(8)
        footer = min(size, int.from_bytes(tail[:4], "little") + 8)
        stream.seek(size - footer)
        yield f"{size} {hashlib.sha256(stream.read(footer)).hexdigest()}".encode()


PARQUET = Format((".parquet",), columns, index, read, contents)

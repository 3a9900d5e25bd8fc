"""Parquet with paths or with the media themselves in {bytes, path} structs, as on the hub.

A row's position is its number. The index reads only the id column. Rows are read with a cursor that
stays open between calls: a row group can only be read from its start, and a worker that gets one
part of a group after another must not start over each time.
"""

import hashlib
import threading
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import accumulate

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.data.formats.base import (
    ALIASES,
    MEDIA_IDS,
    ROW_NUMBER,
    DataFile,
    Format,
    RawRecord,
    Span,
    media_number,
)
from pipelines.data.memory_limit import bounded

BATCH = 4 << 20  # bytes of rows to decode at once, according to the file's metadata
# Bytes that one row may take while it is decoded; several at once may take an eighth of it.
MAX_MEMORY = 4 << 30
# Bytes: of a larger file only the footer is hashed, which describes all pages.
MAX_HASHED = 64 << 20
INDEX_ROWS = 8192  # rows whose ids are read at once
_FIELDS = {name for names in ALIASES.values() for name in names}
_open = threading.local()  # the cursor of this thread and the version of its file


def _open_file(file: DataFile) -> pq.ParquetFile:
    """Open a file so that pages are read when needed; refuse types that could run code."""
    stream = file.open()
    try:
        with bounded(MAX_MEMORY // 8):
            parquet = pq.ParquetFile(stream, buffer_size=1 << 20, pre_buffer=False)
    except (pa.ArrowException, OSError, MemoryError) as error:
        raise ValueError(f"{file.name} is not a readable Parquet file: {error}") from error
    for field in parquet.schema_arrow:
        if field.name in _FIELDS and _has_extension(field.type):
            raise ValueError(
                f"{file.name}: column '{field.name}' is of type {field.type}, whose values may be"
                " pickled objects"
            )
    return parquet


def _has_extension(kind: pa.DataType) -> bool:
    inner = [kind.field(number).type for number in range(kind.num_fields)]
    return isinstance(kind, pa.BaseExtensionType) or any(map(_has_extension, inner))


def columns(file: DataFile) -> list[str]:
    with _open_file(file) as parquet:
        return list(parquet.schema_arrow.names)


def index(file: DataFile) -> Iterator[Span]:
    with _open_file(file) as parquet:
        if ROW_NUMBER in file.keys:
            for number in range(parquet.metadata.num_rows):
                yield Span(file.identity(_number_column(file, number)) or "", number, 1)
            return
        names = parquet.schema_arrow.names
        keys = list(file.keys) or [name for name in ALIASES["id"] if name in names][:1]
        if not keys or set(keys) - set(names):
            required = " and ".join(f"'{key}'" for key in keys) or "'id'"
            raise ValueError(f"{file.name} has no column {required}; it has {', '.join(names)}")
        number = 0
        paths = _path_columns(parquet.schema_arrow)
        batches = parquet.iter_batches(batch_size=INDEX_ROWS, columns=[*keys, *paths])
        while number < parquet.metadata.num_rows:
            try:
                with bounded(MAX_MEMORY // 8):
                    records = next(batches).to_pylist()
            except (pa.ArrowException, OSError, MemoryError, StopIteration) as error:
                raise ValueError(f"cannot read the ids of {file.name}: {error}") from error
            for record in records:
                row_id = file.identity(record) or f"{file.prefix}row-{number + 1}"
                yield Span(row_id, number, 1, media_number(record))
                number += 1


def _path_columns(schema: pa.Schema) -> list[str]:
    """The columns that name a row's media, without their content."""
    columns = []
    for field in schema:
        if field.name not in (*ALIASES["media"], *MEDIA_IDS):
            continue
        inner = field.type.value_type if pa.types.is_list(field.type) else field.type
        if pa.types.is_string(inner) or pa.types.is_integer(inner):
            columns.append(field.name)
        elif (
            field.type == inner and pa.types.is_struct(inner) and inner.get_field_index("path") >= 0
        ):
            columns.append(f"{field.name}.path")
    return columns


class Cursor:
    """Rows of one file by number; fast as long as the numbers increase."""

    def __init__(self, file: DataFile) -> None:
        self.parquet = _open_file(file)
        metadata = self.parquet.metadata
        groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
        self.starts = list(accumulate((group.num_rows for group in groups), initial=0))
        sizes = (BATCH * group.num_rows // max(1, group.total_byte_size) for group in groups)
        self.sizes = [min(max(1, size), 65536) for size in sizes]  # rows of a batch, by group
        fields = _FIELDS | {*file.keys, *file.columns}
        self.columns = [name for name in self.parquet.schema_arrow.names if name in fields]
        self.group, self.first, self.batch = -1, 0, pa.RecordBatch.from_pylist([])
        self.batches: Iterator[pa.RecordBatch] = iter(())

    def row(self, number: int) -> RawRecord:
        group = bisect_right(self.starts, number) - 1
        if group >= self.parquet.num_row_groups:
            raise ValueError(
                f"there is no row {number + 1} any more: the file has changed since it was indexed"
            )
        size = self.sizes[group]
        try:
            with bounded(MAX_MEMORY if size == 1 else MAX_MEMORY // 8):
                return self._read(group, number)
        except MemoryError:
            # Repeated values are stored once and take their space only when they are read.
            self.group, self.sizes[group] = -1, max(1, size // 16)
            if size == 1:
                raise
            return self.row(number)

    def _read(self, group: int, number: int) -> RawRecord:
        if group != self.group or number < self.first:
            self.batches = self.parquet.iter_batches(
                batch_size=self.sizes[group], row_groups=[group], columns=self.columns
            )
            self.group, self.first, self.batch = group, self.starts[group], next(self.batches)
        while number >= self.first + self.batch.num_rows:
            batch = next(self.batches)
            self.first, self.batch = self.first + self.batch.num_rows, batch
        record: RawRecord = self.batch.slice(number - self.first, 1).to_pylist()[0]
        return record


def read(file: DataFile, spans: Sequence[Span]) -> Iterator[RawRecord | Exception]:
    info = file.info()
    version = (file.uri, file.path, info.size, info.mtime_ns)
    if getattr(_open, "version", None) != version:
        _open.cursor, _open.version = Cursor(file), version
    for span in spans:
        try:
            yield {**_open.cursor.row(span.start), **_number_column(file, span.start)}
        except (pa.ArrowException, OSError, ValueError, MemoryError, StopIteration) as error:
            _open.version = None  # a reader that failed must not be used again
            yield ValueError(f"cannot read row {span.start + 1} of {file.name}: {error}")


def _number_column(file: DataFile, number: int) -> RawRecord:
    return {ROW_NUMBER: f"{file.prefix}{number}"}


def digest(file: DataFile) -> Iterator[bytes]:
    size = file.info().size
    if size <= MAX_HASHED:
        yield from file.chunks()
        return
    with file.open() as stream:
        stream.seek(size - 8)
        footer = min(size, int.from_bytes(stream.read(8)[:4], "little") + 8)
        stream.seek(size - footer)
        yield f"{size} {hashlib.sha256(stream.read(footer)).hexdigest()}".encode()


PARQUET = Format(index, read, digest, (".parquet",), columns)

"""CSV and TSV with a header line. A row's place is the bytes of its record, which may go over several lines.

A cell that holds a JSON list is a list: `["a.jpg", "b.jpg"]` are two images, `["cat", "a cat"]` two right answers.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Sequence

from pipelines.data.formats.base import (
    DataFile,
    Format,
    RawRecord,
    Span,
    attempt,
    digest,
    lines,
    ranges,
)

LONGEST = 16 << 20  # bytes of one record
csv.field_size_limit(LONGEST)  # the default refuses texts over 128 KiB


def _delimiter(file: DataFile) -> str:
    return "\t" if file.name.lower().endswith(".tsv") else ","


def records(file: DataFile) -> Iterator[tuple[int, int, list[str]]]:
    """Start, length and fields of each record; the header is the first."""
    position = 0

    def texts() -> Iterator[str]:
        nonlocal position
        for start, length, line in lines(file, LONGEST):
            if length > LONGEST:
                raise ValueError(
                    f"{file.name}: the line at byte {start:,} has {length:,} bytes; at most {LONGEST:,}"
                )
            position = start + length
            yield (
                line.decode("utf-8", "replace").removeprefix("\ufeff" if start == 0 else "") + "\n"
            )

    start = 0
    reader = csv.reader(texts(), delimiter=_delimiter(file), strict=True)
    try:
        for fields in reader:
            if fields:
                yield start, position - start, fields
            start = position
    except (
        csv.Error
    ) as error:  # where the next record starts is not known: no row after this one could be trusted
        raise ValueError(
            f"{file.name}: the record at byte {start:,} (line {reader.line_num}) is no CSV: {error}; a quote within a"
            ' quoted cell is written twice ("")'
        ) from error


def columns(file: DataFile) -> list[str]:
    return next((fields for *_, fields in records(file)), [])


def index(file: DataFile) -> Iterator[Span]:
    header: list[str] | None = None
    for number, (start, length, fields) in enumerate(records(file)):
        if header is None:
            header = fields
        else:
            row_id = file.identity(dict(zip(header, fields, strict=False)))
            yield Span(row_id or f"{file.prefix}row-{number}", start, length)


def read(file: DataFile, spans: Sequence[Span]) -> Iterator[RawRecord | Exception]:
    header, delimiter = columns(file), _delimiter(file)

    def parse(data: bytes) -> RawRecord:
        fields = next(
            csv.reader(io.StringIO(data.decode(), newline=""), delimiter=delimiter, strict=True)
        )
        if len(fields) != len(header):
            raise ValueError(
                f"the record has {len(fields)} cells, the header {len(header)}: {', '.join(header)}"
            )
        return {name: _value(cell) for name, cell in zip(header, fields, strict=True)}

    return (attempt(parse, data) for data in ranges(file, spans, LONGEST))


def _value(cell: str) -> str | list[object]:
    if cell.startswith("["):
        try:
            value = json.loads(cell)
        except (ValueError, RecursionError):
            return cell
        return value if isinstance(value, list) else cell
    return cell


CSV = Format((".csv", ".tsv"), columns, index, read, digest)

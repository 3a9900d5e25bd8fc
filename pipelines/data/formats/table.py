"""CSV and TSV with a header line. A row's position is the bytes of its record, maybe several lines.

A cell that holds a JSON list is a list: `["a.jpg", "b.jpg"]` are two images, `["cat", "a cat"]` two
correct answers.
"""

import csv
import io
import json
from collections.abc import Iterator, Sequence

from pipelines.data.formats.base import (
    DataFile,
    Format,
    RawRecord,
    Span,
    media_number,
    read_lines,
    read_spans,
)

MAX_RECORD = 16 << 20  # bytes
csv.field_size_limit(MAX_RECORD)  # by default texts over 128 KiB are refused


def _delimiter(file: DataFile) -> str:
    return "\t" if file.name.lower().endswith(".tsv") else ","


def records(file: DataFile) -> Iterator[tuple[int, int, list[str]]]:
    """Start, length and cells of each record. The first one is the header."""
    end = 0

    def lines() -> Iterator[str]:
        nonlocal end
        for start, length, line in read_lines(file, MAX_RECORD):
            if length > MAX_RECORD:
                raise ValueError(
                    f"{file.name}: the line at byte {start:,} has {length:,} bytes; at most"
                    f" {MAX_RECORD:,} are read"
                )
            end = start + length
            byte_order_mark = "\ufeff" if start == 0 else ""
            yield line.decode("utf-8", "replace").removeprefix(byte_order_mark) + "\n"

    start = 0
    reader = csv.reader(lines(), delimiter=_delimiter(file), strict=True)
    try:
        for cells in reader:
            if cells:
                yield start, end - start, cells
            start = end
    except csv.Error as error:
        # Where the next record starts is unknown, so no later row could be trusted.
        raise ValueError(
            f"{file.name}: the record at byte {start:,} (line {reader.line_num}) is not valid CSV:"
            f' {error}; write a quote within a quoted cell twice ("")'
        ) from error


def columns(file: DataFile) -> list[str]:
    return next((cells for *_, cells in records(file)), [])


def index(file: DataFile) -> Iterator[Span]:
    rows = records(file)
    header = next((cells for *_, cells in rows), [])
    for number, (start, length, cells) in enumerate(rows, 1):
        record = dict(zip(header, cells, strict=False))
        row_id = file.identity(record) or f"{file.prefix}row-{number}"
        yield Span(row_id, start, length, media_number(record))


def read(file: DataFile, spans: Sequence[Span]) -> Iterator[RawRecord | Exception]:
    header, delimiter = columns(file), _delimiter(file)

    def parse(data: bytes) -> RawRecord:
        lines = io.StringIO(data.decode(), newline="")
        cells = next(csv.reader(lines, delimiter=delimiter, strict=True))
        if len(cells) != len(header):
            raise ValueError(
                f"the record has {len(cells)} cells, the header {len(header)}: {', '.join(header)}"
            )
        return {name: _value(cell) for name, cell in zip(header, cells, strict=True)}

    return read_spans(file, spans, MAX_RECORD, parse)


def _value(cell: str) -> str | list[object]:
    if cell.startswith("["):
        try:
            value = json.loads(cell)
        except (ValueError, RecursionError):
            return cell
        return value if isinstance(value, list) else cell
    return cell


CSV = Format(index, read, suffixes=(".csv", ".tsv"), columns=columns)

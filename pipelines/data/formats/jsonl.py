"""JSON Lines, one object a line, or one JSON array of objects. A row's position is its bytes.

JSON Lines is the format for large files: they are indexed line by line. An array is read completely
once, to index it; its rows are then read by their position as well.
"""

import codecs
import json
import re
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

from pipelines.data.formats.base import (
    DataFile,
    Format,
    RawRecord,
    Span,
    media_number,
    read_lines,
    read_spans,
    try_parse,
)

MAX_ROW = 64 << 20  # bytes of one object: a file without line ends must not fill the memory
MAX_ARRAY = 1 << 30  # bytes of a JSON array, which is read as one text
MAX_HEADER_ROWS = 100  # rows whose keys are the columns: not every row has to have every key
SEPARATORS = re.compile(r"[\s:,\ufeff]*")  # between the values of an array or object
BEGINNINGS = {"": re.compile(r"[\s\ufeff]*\["), "*": re.compile(r"[\s\ufeff]*\{")}  # by json_key
IndexedRow = tuple[str, int, int, RawRecord | Exception]  # name, start, length, record


def parse(data: bytes) -> RawRecord:
    try:
        value = json.loads(data.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise ValueError(f"the line is not UTF-8: {error.reason} at byte {error.start}") from error
    except json.JSONDecodeError as error:
        raise ValueError(
            f"the line is not valid JSON: {error.msg} at character {error.pos + 1}"
        ) from error
    if not isinstance(value, dict):
        kind = type(value).__name__
        raise ValueError(f"a row must be a JSON object {{...}}; this line is a {kind}")
    return value


def _parse_entry(data: bytes) -> RawRecord:
    """Parse `"7": {...}`, an entry of an object whose keys are the ids."""
    [(key, value)] = parse(b"{" + data + b"}").items()
    return {**value, "id": key}


def rows(file: DataFile) -> Iterator[IndexedRow]:
    if file.json_key or _is_array(file):
        yield from array_rows(file)
        return
    for number, (start, length, line) in enumerate(read_lines(file, MAX_ROW), 1):
        if line.strip() or length > MAX_ROW:
            record = try_parse(parse, line) if line else ValueError("the line is too long")
            yield f"{file.prefix}line-{number}", start, length, record


def _is_array(file: DataFile) -> bool:
    texts = (chunk.removeprefix(codecs.BOM_UTF8).lstrip() for chunk in file.chunks())
    return next(filter(None, texts), b"").startswith(b"[")


def array_rows(file: DataFile) -> Iterator[IndexedRow]:
    """The objects of a JSON array, or the values of an object, as `DataFile.json_key` says."""
    number, offset, previous = 0, 0, 0
    try:
        if (size := file.info().size) > MAX_ARRAY:
            raise ValueError(
                f"{file.name} is a JSON array of {size:,} bytes; at most {MAX_ARRAY:,} are read:"
                " convert it to JSON Lines"
            )
        text = b"".join(file.chunks()).decode()
        for number, (start, end, value, key) in enumerate(_entries(text, file), 1):
            if not isinstance(value, dict):
                raise ValueError(f"{file.name}: row {number} is not an object: {value!r:.40}")
            offset += len(text[previous:start].encode())
            length = len(text[start:end].encode())
            yield f"{file.prefix}row-{number}", offset, length, {**value, **key}
            offset, previous = offset + length, end
    except UnicodeDecodeError as error:
        raise ValueError(f"{file.name} is not UTF-8: {error.reason} at {error.start:,}") from error
    except (json.JSONDecodeError, RecursionError) as error:
        raise ValueError(
            f"{file.name}: row {number + 1} or the text before it is not valid JSON: {error}"
        ) from error


def _entries(text: str, file: DataFile) -> Iterator[tuple[int, int, Any, RawRecord]]:
    """Start and end, in characters, value and id of each row; no id unless it is a key."""
    name, decode = file.json_key, json.JSONDecoder().raw_decode
    opening = BEGINNINGS["*" if name else ""].match(text)
    end = opening.end() if opening else None
    if end is not None and name not in BEGINNINGS:
        end = _find_list(text, end, name)
    if end is None:
        content = f" with a list '{name}'" if name not in BEGINNINGS else ""
        raise ValueError(
            f"{file.name} must be a JSON object {{...}}{content}; it begins with {text[:20]!r}"
        )
    while text[(start := _next(text, end)) : start + 1] not in ("]", "}"):
        key, end = decode(text, start) if name == "*" else (None, start)
        value, end = decode(text, _next(text, end))
        yield start, end, value, {} if key is None else {"id": key}


def _find_list(text: str, position: int, name: str) -> int | None:
    """The position in the list under this key of an object that begins before `position`."""
    decode = json.JSONDecoder().raw_decode
    while text[(start := _next(text, position)) : start + 1] == '"':
        key, position = decode(text, start)
        position = _next(text, position)
        if key == name and text[position : position + 1] == "[":
            return position + 1
        _, position = decode(text, position)
    return None


def _next(text: str, position: int) -> int:
    """The position of the next value or bracket."""
    match = SEPARATORS.match(text, position)
    return match.end() if match else position


def columns(file: DataFile) -> list[str]:
    records = (record for *_, record in rows(file) if not isinstance(record, Exception))
    return list(dict.fromkeys(name for row in islice(records, MAX_HEADER_ROWS) for name in row))


def index(file: DataFile) -> Iterator[Span]:
    for name, start, length, record in rows(file):
        if isinstance(record, Exception):
            yield Span(name, start, length)
        else:
            yield Span(file.identity(record) or name, start, length, media_number(record))


def read(file: DataFile, spans: Sequence[Span]) -> Iterator[RawRecord | Exception]:
    parser = _parse_entry if file.json_key == "*" else parse
    return read_spans(file, spans, MAX_ROW, parser)


JSONL = Format(index, read, suffixes=(".jsonl", ".ndjson", ".json"), columns=columns)

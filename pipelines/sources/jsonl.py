"""JSON: one object a line, or one array of objects. A row's place is the bytes of its object."""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator, Sequence
from itertools import chain, islice

from pipelines.sources.base import File, Layout, Record, Span, attempt, digest, identity, lines, ranges

LONGEST = 64 << 20  # bytes of one object: a file without line ends must not fill the memory
BETWEEN = re.compile(r"[\s,\[\ufeff]*")  # what may stand before an object of an array
LOOK = 100  # objects whose keys are the columns: not every line has to have every key


def parse(data: bytes) -> Record:
    try:
        value = json.loads(data.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise ValueError(f"the line is not UTF-8: {error.reason} at byte {error.start}") from error
    except json.JSONDecodeError as error:
        raise ValueError(f"the line is no JSON: {error.msg} at character {error.pos + 1}") from error
    if not isinstance(value, dict):
        raise ValueError(f"a row has to be a JSON object {{...}}; this line is a {type(value).__name__}")
    return value


def objects(file: File) -> Iterator[tuple[str, int, int, Record | Exception]]:
    """Name, start, length and content of each row."""
    array = None
    for number, (start, length, line) in enumerate(lines(file, LONGEST), 1):
        if array is None and (begin := line.removeprefix(codecs.BOM_UTF8).lstrip()):
            array = begin.startswith(b"[")
            if array:
                yield from _elements(file)
                return
        if line.strip() or length > LONGEST:
            content = attempt(parse, line) if line else ValueError("the line is too long")
            yield f"{file.prefix}line-{number}", start, length, content


def _elements(file: File) -> Iterator[tuple[str, int, int, Record | Exception]]:
    """The objects of one JSON array, without holding the array."""
    decode = codecs.getincrementaldecoder("utf-8")().decode
    read = json.JSONDecoder().raw_decode
    text, start, number = "", 0, 0  # text that is not used yet, and the byte that it starts at
    for chunk in chain(file.chunks(), [b""]):
        text, at = text + decode(chunk, not chunk), 0
        while True:
            skip = BETWEEN.match(text, at)
            begin = skip.end() if skip else at
            if text[begin : begin + 1] == "]":
                return
            try:
                value, end = read(text, begin)
            except (json.JSONDecodeError, RecursionError) as error:
                if chunk and len(text) - begin < LONGEST:
                    break  # the rest of the object is in the next chunk
                raise ValueError(f"{file.name}: row {number + 1} of its array is no JSON ({error})") from error
            if not isinstance(value, dict):
                raise ValueError(
                    f"{file.name}: row {number + 1} of its array is no object {{...}}: {text[begin:end][:40]}"
                )
            number += 1
            start += len(text[at:begin].encode())
            length = len(text[begin:end].encode())
            yield f"{file.prefix}row-{number}", start, length, value
            start, at = start + length, end
        text = text[at:]


def columns(file: File) -> list[str]:
    found = islice((row for *_, row in objects(file) if not isinstance(row, Exception)), LOOK)
    return list(dict.fromkeys(name for row in found for name in row))


def index(file: File) -> Iterator[Span]:
    for name, start, length, row in objects(file):
        row_id = None if isinstance(row, Exception) else identity(row)
        yield Span(row_id or name, start, length)


def read(file: File, spans: Sequence[Span]) -> Iterator[Record | Exception]:
    return (attempt(parse, data) for data in ranges(file, spans, LONGEST))


JSONL = Layout((".jsonl", ".ndjson", ".json"), columns, index, read, digest)

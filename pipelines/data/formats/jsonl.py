"""JSON: one object a line, or one array of objects. A row's place is the bytes of its object."""

from __future__ import annotations

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
    attempt,
    digest,
    lines,
    ranges,
)

LONGEST = 64 << 20  # bytes of one object: a file without line ends must not fill the memory
SPACE = re.compile(r"[\s:\ufeff]*")  # what may stand before a value
BETWEEN = re.compile(r"[\s,\[\ufeff]*")  # what may stand before a value of an array
ENTRY = re.compile(r"[\s,{\ufeff]*")  # what may stand before a key of an object
LOOK = 100  # objects whose keys are the columns: not every line has to have every key


def parse(data: bytes) -> RawRecord:
    try:
        value = json.loads(data.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise ValueError(f"the line is not UTF-8: {error.reason} at byte {error.start}") from error
    except json.JSONDecodeError as error:
        raise ValueError(
            f"the line is no JSON: {error.msg} at character {error.pos + 1}"
        ) from error
    if not isinstance(value, dict):
        raise ValueError(
            f"a row has to be a JSON object {{...}}; this line is a {type(value).__name__}"
        )
    return value


def _entry(data: bytes) -> RawRecord:
    """`"7": {...}`, an entry of an object whose keys are the ids."""
    [(key, value)] = parse(b"{" + data + b"}").items()
    return {**value, "id": key}


def objects(file: DataFile) -> Iterator[tuple[str, int, int, RawRecord | Exception]]:
    """Name, start, length and content of each row."""
    if file.under:
        yield from _elements(file)
        return
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


class _Text:
    """JSON text that is read forward, as far as it is needed; `start` is the byte it has come to."""

    def __init__(self, file: DataFile) -> None:
        self.chunks = file.chunks()
        self.decode = codecs.getincrementaldecoder("utf-8")().decode
        self.scan = json.JSONDecoder().raw_decode
        self.text, self.at, self.start = "", 0, 0

    def skip(self, among: re.Pattern[str]) -> str:
        """The next character that is none of these; nothing at the end."""
        while True:
            found = among.match(self.text, self.at)
            self._go(found.end() if found else self.at)
            if self.at < len(self.text) or not self._more():
                return self.text[self.at : self.at + 1]

    def value(self) -> Any:
        """The value that begins here. ValueError if there is none."""
        while True:
            try:
                value, end = self.scan(self.text, self.at)
            except (json.JSONDecodeError, RecursionError) as error:
                if len(self.text) - self.at < LONGEST and self._more():
                    continue  # the rest of it is in the next chunk
                raise ValueError(str(error)) from error
            if end == len(self.text) and not isinstance(value, dict) and self._more():
                continue  # a number may go on
            self._go(end)
            return value

    def _go(self, end: int) -> None:
        self.start += len(self.text[self.at : end].encode())
        self.at = end

    def _more(self) -> bool:
        chunk = next(self.chunks, b"")
        self.text, self.at = self.text[self.at :] + self.decode(chunk, not chunk), 0
        return bool(chunk)


def _elements(file: DataFile) -> Iterator[tuple[str, int, int, RawRecord | Exception]]:
    """The objects of one JSON array, or of one object, without holding all of it."""
    text, number, keys = _Text(file), 0, []
    if file.under and text.skip(SPACE) != "{":
        raise ValueError(
            f"{file.name} has to be a JSON object {{...}}; it begins with {text.skip(SPACE)!r}"
        )
    while file.under and text.skip(ENTRY) not in ("}", ""):
        begin = text.start
        try:
            keys.append(text.value())
            text.skip(SPACE)
            if file.under == keys[-1]:
                break
            value = text.value()
        except ValueError as error:
            raise ValueError(
                f"{file.name}: what follows byte {begin:,} is no JSON ({error})"
            ) from error
        if file.under == "*":
            number += 1
            if not isinstance(value, dict):
                raise ValueError(
                    f"{file.name}: the value of '{keys[-1]}' is no object {{...}}: {value!r:.40}"
                )
            yield (
                f"{file.prefix}row-{number}",
                begin,
                text.start - begin,
                {**value, "id": keys.pop()},
            )
    if file.under == "*":
        return
    if file.under and (not keys or keys[-1] != file.under or text.skip(SPACE) != "["):
        raise ValueError(
            f"{file.name} has no list '{file.under}'; it has {', '.join(map(str, keys)) or 'nothing'}"
        )
    while text.skip(BETWEEN) != "]":
        begin = text.start
        try:
            value = text.value()
        except ValueError as error:
            raise ValueError(
                f"{file.name}: row {number + 1} of its array is no JSON ({error})"
            ) from error
        if not isinstance(value, dict):
            raise ValueError(
                f"{file.name}: row {number + 1} of its array is no object {{...}}: {str(value)[:40]}"
            )
        number += 1
        yield f"{file.prefix}row-{number}", begin, text.start - begin, value


def columns(file: DataFile) -> list[str]:
    found = islice((row for *_, row in objects(file) if not isinstance(row, Exception)), LOOK)
    return list(dict.fromkeys(name for row in found for name in row))


def index(file: DataFile) -> Iterator[Span]:
    for name, start, length, row in objects(file):
        row_id = None if isinstance(row, Exception) else file.identity(row)
        yield Span(row_id or name, start, length)


def read(file: DataFile, spans: Sequence[Span]) -> Iterator[RawRecord | Exception]:
    form = _entry if file.under == "*" else parse
    return (attempt(form, data) for data in ranges(file, spans, LONGEST))


JSONL = Format((".jsonl", ".ndjson", ".json"), columns, index, read, digest)

"""The rows of a data set, wherever they lie: found and indexed by the driver, read by tasks.

The driver holds the index alone: ids and where each row lies, some forty bytes a row. A task is handed a part of it
and reads those rows, in few reads. What is wrong with one row becomes that row's error; what is wrong with all of them
(no `id`, ids twice, nothing there) is an error before anything starts.

    manifest = Manifest.of("questions.jsonl")
    rows = manifest.read(manifest.index(limit=200))
    manifest.fetch(rows[0].media[0])  # bytes, or a local file

Manifests are not trusted: a row names files within the media root, whatever links or `..` it goes through.
"""

from __future__ import annotations

import hashlib
import os
import posixpath
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import fs

from pipelines.rows import Kind, Medium, Row, described
from pipelines.sources import LAYOUTS
from pipelines.sources.base import ALIASES, SUFFIXES, File, Layout, Record, Span, encodable, place
from pipelines.sources.folder import listing
from pipelines.storage import redacted

INDEX = pa.schema([("row_id", pa.string()), ("file", pa.int32()), ("start", pa.int64()), ("length", pa.int64())])
NEEDED = ("id", "media", "question")
PART = 8192  # rows of the index that are Python objects at once
LARGEST = 4 << 30  # bytes of one medium from an object store
REMOTE = {"s3": ("s3",), "gcs": ("gs", "gcs")}  # the schemes of pyarrow's file systems


@dataclass(frozen=True)
class Manifest:
    """One data set: where its files and its media lie, and how they are read. Small: it travels with every task."""

    data: str = field(repr=False)  # a URI can hold a password
    root: str = field(repr=False)  # nothing outside it is read unless `allow_outside`
    layout: str
    files: tuple[File, ...]
    kind: Kind
    question: str | None = None
    allow_outside: bool = False

    @classmethod
    def of(
        cls,
        data: str,
        media_root: str | None = None,
        allow_outside: bool = False,
        kind: Kind = "image",
        question: str | None = None,
    ) -> Manifest:
        """Find the layout of `data`: a file, a folder, or the files of a folder that fit a pattern, `test-*.parquet`.

        `question` is asked where a row has none, and of every file in a folder of media.
        """
        data = _absolute(data)
        uri, mark, query = data.partition("?") if "://" in data else (data, "", "")
        folder, _, last = uri.rstrip("/").rpartition("/")
        parent = (folder or "/") + mark + query
        if "*" in last:
            root, (layout, files) = parent, _among(parent, last, kind)
        else:
            system, path = place(data)
            found = system.get_file_info(path).type
            if found == fs.FileType.NotFound:
                raise FileNotFoundError(f"there is no file or folder {redacted(data)}")
            if found == fs.FileType.Directory:
                root, (layout, files) = data, _among(data, "*", kind)
            else:
                root, layout, files = parent, _layout(path), (File(data, path, kind),)
        if layout == "folder" and question is None:
            question = f"Describe the {kind}."
        return cls(data, _absolute(media_root) if media_root else root, layout, files, kind, question, allow_outside)

    def ready(self) -> Manifest:
        """Itself, unless it is known already that no medium can be had."""
        return self

    def digest(self) -> str:
        """A digest of what the rows are: of manifests the content, of media names and sizes."""
        total = hashlib.sha256(f"{self.layout} {self.kind} {self.question!r}".encode())
        for file in self.files:
            part = hashlib.sha256()
            for chunk in LAYOUTS[self.layout].digest(file):
                part.update(chunk)
            total.update(part.digest())
        return total.hexdigest()

    def index(self, limit: int | None = None) -> pa.Table:
        """Where each row lies, as `INDEX`, in the manifest's order; the first `limit` rows of it."""
        columns = LAYOUTS[self.layout].columns(self.files[0])
        if columns is not None:
            self._check(columns)
        table = places(self.layout, self.files, limit)
        if not len(table) and limit != 0:
            raise ValueError(f"{redacted(self.data)} holds no rows")
        self._refuse_duplicates(table)
        return table

    def _check(self, columns: Sequence[str]) -> None:
        needed = [name for name in NEEDED if name != "question" or self.question is None]
        missing = [name for name in needed if not set(ALIASES[name]) & set(columns)]
        if missing:
            raise ValueError(
                f"{self.files[0].name} has no column for {' and '.join(missing)}; it has {', '.join(columns) or 'none'}"
                f"; read are {'; '.join(f'{name} as ' + ' or '.join(ALIASES[name]) for name in missing)}"
            )

    def _refuse_duplicates(self, table: pa.Table) -> None:
        ids = table["row_id"]
        if pc.count_distinct(ids).as_py() == len(ids):
            return
        counted = ids.value_counts()
        twice = counted.filter(pc.greater(counted.field("counts"), 1)).field("values")
        firsts = {number: table["file"].index(number).as_py() for number in range(len(self.files))}
        places = []
        for value in twice[:3].to_pylist():
            found = pc.indices_nonzero(pc.equal(ids, value))[:2].to_pylist()
            numbers = [(at, table["file"][at].as_py()) for at in found]
            where = (f"row {at - firsts[number] + 1} of {self.files[number].name}" for at, number in numbers)
            places.append(f"'{value}' ({', '.join(where)})")
        raise ValueError(
            f"{len(twice):,} ids of {redacted(self.data)} are there more than once: {', '.join(places)}; answers are"
            " told apart by their ids, so every row needs its own"
        )

    def read(self, pointers: pa.Table) -> list[Row]:
        """The rows that a part of the index points to, in its order. A bad row is a Row that says what is wrong."""
        return [self._row(*found) for found in records(self.layout, self.files, pointers)]

    def _row(self, file: File, span: Span, record: Record | Exception) -> Row:
        try:
            if isinstance(record, Exception):
                raise record
            own = file.identity(record)
            if own is None:
                raise ValueError(
                    f"the row has no id; a text or a whole number is needed in {' or '.join(ALIASES['id'])}"
                )
            if own != span.row_id:
                raise ValueError(f"here is row '{own}' now: the data has changed since the run began; start it again")
            record = self._shaped(record)
            media = self._media(record)
            meta = record.get("meta")
            texts = {name: _texts(_first(record, ALIASES[name])) for name in ("question", "answers", "options", "type")}
            question = " ".join(texts["question"]) if any(map(str.strip, texts["question"])) else self.question
            if question is None:
                raise ValueError("the question is empty")
            return Row(
                span.row_id,
                media,
                question,
                texts["answers"],
                texts["options"],
                " ".join(texts["type"]),
                {str(key): str(value) for key, value in meta.items()} if isinstance(meta, Mapping) else {},
            )
        except Exception as error:
            return Row(span.row_id, error=described(error))

    def _shaped(self, record: Record) -> Record:
        """The record under the names of ALIASES; as it is, for who does not know better."""
        return record

    def _media(self, record: Record) -> tuple[Medium, ...]:
        other = "video" if self.kind == "image" else "image"
        for name in sorted(ALIASES["media"], key=lambda name: name.startswith(other)):
            value = record.get(name)
            items = value if isinstance(value, list) else [value]
            if any(item not in (None, "", {"bytes": None, "path": None}) for item in items):
                kind: Kind = "video" if name.startswith("video") else "image" if name.startswith("image") else self.kind
                return tuple(_medium(kind, item) for item in items)
        raise ValueError(f"the row has no {self.kind}; looked for in {', '.join(ALIASES['media'])}")

    def fetch(self, medium: Medium) -> bytes | Path:
        """The bytes of a medium, or the local file that holds them; PermissionError for what lies outside the root."""
        if medium.data is not None:
            return medium.data
        name = medium.path or ""
        if not name or "\0" in name:
            raise ValueError(f"{name!r} is no path")
        system, root = place(self.root)
        scheme, mark, rest = name.partition("://")
        if mark:
            system, name = self._elsewhere(system, scheme.lower(), rest, name)
        if isinstance(system, fs.LocalFileSystem):
            base = os.path.realpath(root)
            target = Path(os.path.realpath(os.path.join(base, name)))  # whatever links it goes through
            if not self.allow_outside and not target.is_relative_to(base):
                raise self._outside(name)
            if not target.exists():
                raise FileNotFoundError(f"there is no {name} in {base}")
            if not target.is_file():
                raise ValueError(f"{name} is no file")  # a pipe would never end
            return target
        key = posixpath.normpath(name if mark else posixpath.join(root, name))
        if not self.allow_outside and not key.startswith(root.rstrip("/") + "/"):
            raise self._outside(name)
        with system.open_input_file(key) as stream:
            size = stream.size()
            if size > LARGEST:
                raise ValueError(f"{name} has {size:,} bytes; at most {LARGEST:,} are read")
            data = bytes(stream.read())
        if len(data) != size:
            raise OSError(f"{name} has {size:,} bytes and {len(data):,} came")
        return data

    def _elsewhere(self, system: fs.FileSystem, scheme: str, rest: str, uri: str) -> tuple[fs.FileSystem, str]:
        """The file system and path of a URI in a manifest; its options, which could name a server, are not followed."""
        if scheme in ("http", "https", "ftp"):
            raise ValueError(f"{redacted(uri)}: nothing is fetched over {scheme}; download it and name the file")
        if "?" in rest:
            raise ValueError(f"{redacted(uri)}: a URI in a manifest has no options after a question mark")
        if scheme in REMOTE.get(system.type_name, ()):
            return system, rest
        if not self.allow_outside:
            raise self._outside(redacted(uri))
        return place(uri)

    def _outside(self, name: str) -> PermissionError:
        return PermissionError(
            f"{name} is outside the media root {redacted(self.root)}; --media-root names another root,"
            " --allow-outside lets a manifest that you trust name any file"
        )


def _absolute(data: str) -> str:
    """Workers have other working directories."""
    return data if "://" in data else str(Path(data).expanduser().absolute())


def places(layout: str, files: Sequence[File], limit: int | None = None) -> pa.Table:
    """Where each row of these files lies, as `INDEX`."""
    parts: list[pa.Table] = []
    rows = 0
    for number, file in enumerate(files):
        spans = islice(LAYOUTS[layout].index(file), None if limit is None else limit - rows)
        while part := list(islice(spans, PART)):
            parts.append(_table(part, number))
            rows += len(part)
    return pa.concat_tables(parts) if parts else INDEX.empty_table()


def records(layout: str, files: Sequence[File], pointers: pa.Table) -> list[tuple[File, Span, Record | Exception]]:
    """What lies at these places, in their order; each file is read from its start to its end."""
    found: dict[int, tuple[File, Span, Record | Exception]] = {}
    members: dict[int, list[tuple[Span, int]]] = {}
    columns = (pointers[name].to_pylist() for name in INDEX.names)
    for order, (row_id, number, start, length) in enumerate(zip(*columns, strict=True)):
        members.setdefault(number, []).append((Span(row_id, start, length), order))
    for number, wanted in members.items():
        wanted.sort(key=lambda each: each[0].start)
        read = _records(LAYOUTS[layout], files[number], [span for span, _ in wanted])
        for (span, order), record in zip(wanted, read, strict=True):
            found[order] = (files[number], span, record)
    return [found[order] for order in range(len(found))]


def _table(spans: Sequence[Span], number: int) -> pa.Table:
    """A part of the index. From buffers, as `pa.array` imports pandas and a run with nothing left to do has no time."""
    ids, starts, lengths = zip(*spans, strict=True)
    texts = [row_id.encode() for row_id in ids]
    ends = pa.py_buffer(np.cumsum([0, *map(len, texts)], dtype=np.int32))
    numbers = (np.full(len(ids), number, np.int32), np.array(starts, np.int64), np.array(lengths, np.int64))
    columns = [
        pa.Array.from_buffers(pa.string(), len(ids), [None, ends, pa.py_buffer(b"".join(texts))]),
        *(
            pa.Array.from_buffers(kind, len(ids), [None, pa.py_buffer(values)])
            for kind, values in zip(INDEX.types[1:], numbers, strict=True)
        ),
    ]
    return pa.table(columns, schema=INDEX)


def _layout(name: str) -> str:
    for layout, each in LAYOUTS.items():
        if each.suffixes and name.lower().endswith(each.suffixes):
            return layout
    allowed = ", ".join(suffix for each in LAYOUTS.values() for suffix in each.suffixes)
    raise ValueError(f"{name} is no data set; a file ends in {allowed}; a folder holds such files, images or videos")


def _among(uri: str, pattern: str, kind: Kind) -> tuple[str, tuple[File, ...]]:
    """The files of a folder that fit a pattern, and their layout, which has to be one."""
    folder = File(uri, place(uri)[1], kind)
    names = [name for name, _ in listing(folder) if fnmatchcase(name, pattern)]
    found: dict[str, list[str]] = {}
    for layout, each in LAYOUTS.items():
        # next to data, a .json describes it: it is a manifest only if it is named
        suffixes = tuple(suffix for suffix in each.suffixes if suffix != ".json" or pattern != "*")
        if suffixes and (these := [name for name in names if name.lower().endswith(suffixes)]):
            found[layout] = these
    if len(found) > 1:
        examples = ", ".join(f"{these[0]} ({layout})" for layout, these in found.items())
        raise ValueError(
            f"{redacted(uri)} holds several kinds of data: {examples}; name one, or a pattern, '*.parquet'"
        )
    for layout, these in found.items():
        several = len(these) > 1
        base = folder.path.rstrip("/")
        return layout, tuple(File(uri, f"{base}/{name}", kind, f"{name}:" if several else "") for name in these)
    if pattern == "*" and any(name.lower().endswith(SUFFIXES[kind]) for name in names):
        return "folder", (folder,)
    allowed = ", ".join(suffix for each in LAYOUTS.values() for suffix in each.suffixes)
    raise ValueError(
        f"{redacted(uri)} holds nothing that fits '{pattern}'; looked for {allowed}"
        f" and for {kind}s: {', '.join(SUFFIXES[kind])}"
    )


def _records(layout: Layout, file: File, spans: Sequence[Span]) -> Iterator[Record | Exception]:
    """One result a span, whatever happens to the file."""
    done = 0
    try:
        for record in layout.read(file, spans):
            yield record
            done += 1
    except (OSError, ValueError, pa.ArrowException) as error:
        yield from [error] * (len(spans) - done)


def _first(record: Record, names: Sequence[str]) -> Any:
    return next((record[name] for name in names if record.get(name) not in (None, "")), None)


def _texts(value: Any) -> tuple[str, ...]:
    """A text, a number or a list of them; of objects, as VQAv2 has them, the `answer`."""
    if value is None or value == "":
        return ()
    if isinstance(value, Mapping):
        value = value["answer"] if "answer" in value else list(value.values())
    items = value if isinstance(value, list) else [value]
    if any(isinstance(item, list | Mapping) for item in items):
        return tuple(text for item in items for text in _texts(item))
    texts = tuple("" if item is None else str(item) for item in items)
    if not all(map(encodable, texts)):
        raise ValueError(f"a text holds half a character: {ascii(texts)[:80]}")
    return texts


def _medium(kind: Kind, item: Any) -> Medium:
    if isinstance(item, str) and encodable(item):
        return Medium(kind, path=item)
    if isinstance(item, bytes):
        return Medium(kind, data=item)
    if isinstance(item, Mapping):
        data, path = item.get("bytes"), item.get("path")
        if isinstance(data, bytes) and (path is None or isinstance(path, str)):
            return Medium(kind, path, data)
        if data is None and isinstance(path, str) and encodable(path):
            return Medium(kind, path)
    raise ValueError(f"a {kind} is a path, bytes or {{bytes, path}}; the row has {ascii(item)[:80]}")

"""The rows of a data set: indexed by the driver, read by tasks.

The driver holds only the index: ids and positions, about forty bytes a row. A task gets a part of
it and reads those rows with few requests. What is wrong with one row becomes that row's error; what
is wrong with all of them (no `id`, duplicate ids, no rows) is an error before anything starts.

    manifest = Manifest.of("questions.jsonl")
    rows = manifest.read(manifest.index(limit=200))
    manifest.fetch(rows[0].media[0])  # bytes, or a local file

Manifests are not trusted: a row may only name files within the media root, through any links or
`..`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path

import pyarrow as pa
from pyarrow import fs

from pipelines.data import record_parsing
from pipelines.data.formats import FORMATS
from pipelines.data.formats.base import ALIASES, SUFFIXES, DataFile, RawRecord, Span
from pipelines.data.formats.folder import list_files
from pipelines.data.media.content import Content
from pipelines.data.media.root import MediaRoot
from pipelines.data.row_index import duplicate_ids, index_rows, read_records
from pipelines.data.rows import Kind, Medium, Row
from pipelines.results.storage import locate
from pipelines.text import describe_error, redacted

_ALL_SUFFIXES = ", ".join(suffix for entry in FORMATS.values() for suffix in entry.suffixes)


@dataclass(frozen=True)
class Manifest:
    """A data set: where its files and media are, and how they are read. Small enough for tasks."""

    data: str = field(repr=False)  # may contain a password
    root: str = field(repr=False)  # nothing outside it is read unless `allow_outside`
    layout: str  # of FORMATS
    files: tuple[DataFile, ...]
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
        """Find the format of `data`: a file, a folder, or a pattern in a folder: `test-*.parquet`.

        `question` is for rows that have none, and for the files of a folder of media.
        """
        data = _absolute(data)
        uri, mark, options = data.partition("?") if "://" in data else (data, "", "")
        folder, _, last = uri.rstrip("/").rpartition("/")
        root = (folder or "/") + mark + options
        if "*" in last:
            layout, files = _find_files(root, last, kind)
        else:
            system, path = locate(data)
            type = system.get_file_info(path).type
            if type == fs.FileType.NotFound:
                raise FileNotFoundError(f"there is no file or folder {redacted(data)}")
            if type == fs.FileType.Directory:
                root, (layout, files) = data, _find_files(data, "*", kind)
            else:
                layout, files = _layout_of(path) or "", (DataFile(data, path, kind),)
        if not layout:
            raise ValueError(
                f"{redacted(data)} is not a data set: expected a file that ends in"
                f" {_ALL_SUFFIXES}, or a folder with such files, images or videos"
            )
        if layout == "folder" and question is None:
            question = f"Describe the {kind}."
        root = _absolute(media_root) if media_root else root
        return cls(data, root, layout, files, kind, question, allow_outside)

    def __str__(self) -> str:
        return redacted(self.data)

    def require_media(self) -> Manifest:
        """The manifest itself, unless its media are known to be missing."""
        return self

    def digest(self) -> str:
        """A digest of the rows: of the content of manifests, of names and sizes of media."""
        total = hashlib.sha256(f"{self.layout} {self.kind} {self.question!r}".encode())
        for file in self.files:
            file_digest = hashlib.sha256()
            for chunk in FORMATS[self.layout].digest(file):
                file_digest.update(chunk)
            total.update(file_digest.digest())
        return total.hexdigest()

    def index(self, limit: int | None = None) -> pa.Table:
        """Positions of the rows, or of the first `limit`, in the manifest's order (`INDEX`)."""
        columns = FORMATS[self.layout].columns(self.files[0])
        required = self._required() if columns is not None else []
        missing = [" or ".join(names) for names in required if not set(names) & set(columns or ())]
        if missing:
            raise ValueError(
                f"{self.files[0].name} has no column {' and no column '.join(missing)}; it has"
                f" {', '.join(columns or ()) or 'none'}"
            )
        table = index_rows(self.layout, self.files, limit)
        if not len(table) and limit != 0:
            raise ValueError(f"{self} has no rows")
        if len(duplicates := duplicate_ids(table["row_id"])):
            raise ValueError(
                f"{len(duplicates):,} ids of {self} occur more than once:"
                f" {', '.join(map(repr, duplicates[:3].to_pylist()))}; every row needs its own id,"
                " which tells answers apart"
            )
        return table

    def _required(self) -> Sequence[Sequence[str]]:
        """The names of each column that the first file must have."""
        names = ("id", "media", *(["question"] if self.question is None else []))
        return [ALIASES[name] for name in names]

    def read(self, pointers: pa.Table) -> list[Row]:
        """The rows at the positions of a part of the index, in its order.

        A row that cannot be read is a Row with an error.
        """
        return [self._row(*record) for record in read_records(self.layout, self.files, pointers)]

    def _row(self, file: DataFile, span: Span, record: RawRecord | Exception) -> Row:
        try:
            if isinstance(record, Exception):
                raise record
            row_id = file.identity(record)
            if row_id is None:
                raise ValueError(
                    "the row has no id; expected a text or an integer in"
                    f" {' or '.join(ALIASES['id'])}"
                )
            if row_id != span.row_id:
                raise ValueError(
                    f"found row '{row_id}' where row '{span.row_id}' was indexed: the data has"
                    " changed since the job started; run the command again"
                )
            record = self._shaped(record)
            media, meta = self._media(record), record.get("meta")
            questions, answers, options, types = (
                record_parsing.texts(record, name)
                for name in ("question", "answers", "options", "type")
            )
            text = " ".join(questions)
            question = text if text.strip() else self.question
            if question is None:
                raise ValueError("the question is empty")
            items = meta.items() if isinstance(meta, Mapping) else ()
            texts = {str(key): str(value) for key, value in items}
            return Row(row_id, media, question, answers, options, " ".join(types), texts)
        except Exception as error:
            return Row(span.row_id, error=describe_error(error))

    def _shaped(self, record: RawRecord) -> RawRecord:
        """The record under the names of ALIASES; benchmarks override it."""
        return record

    def _media(self, record: RawRecord) -> tuple[Medium, ...]:
        return record_parsing.media(record, self.kind)

    def fetch(self, medium: Medium) -> Content:
        """The bytes of a medium, or the local file that contains them."""
        if medium.data is not None:
            return medium.data
        return MediaRoot(self.root, self.allow_outside).fetch(medium.path or "")


def _absolute(data: str) -> str:
    """The path or URI for workers, whose working directories differ."""
    return data if "://" in data else str(Path(data).expanduser().absolute())


def _layout_of(name: str) -> str | None:
    matches = (key for key, entry in FORMATS.items() if name.lower().endswith(entry.suffixes))
    return next(matches, None)


def _find_files(uri: str, pattern: str, kind: Kind) -> tuple[str, tuple[DataFile, ...]]:
    """The files of a folder that match a pattern, and their format, of which there must be one."""
    folder, label = DataFile(uri, locate(uri)[1], kind), redacted(uri)
    names = [name for name, _ in list_files(folder) if fnmatchcase(name, pattern)]
    by_layout: dict[str, list[str]] = {}
    for name in names:
        # Next to data, a .json describes it: it is a manifest only if it is named.
        is_description = pattern == "*" and name.lower().endswith(".json")
        layout = _layout_of(name)
        if layout and not is_description:
            by_layout.setdefault(layout, []).append(name)
    if len(by_layout) > 1:
        examples = [f"{names[0]} ({layout})" for layout, names in sorted(by_layout.items())]
        raise ValueError(
            f"{label} has several kinds of data: {', '.join(examples)}; name one, or a"
            " pattern, e.g. '*.parquet'"
        )
    for layout, matches in by_layout.items():
        base, is_single = folder.path.rstrip("/"), len(matches) == 1
        return layout, tuple(
            DataFile(uri, f"{base}/{name}", kind, "" if is_single else f"{name}:")
            for name in matches
        )
    if pattern == "*" and any(name.lower().endswith(SUFFIXES[kind]) for name in names):
        return "folder", (folder,)
    raise ValueError(
        f"{label} has nothing that matches '{pattern}'; looked for {_ALL_SUFFIXES} and for"
        f" {kind}s: {', '.join(SUFFIXES[kind])}"
    )

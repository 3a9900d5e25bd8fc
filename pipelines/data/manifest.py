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
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import fs

from pipelines.data import record_parsing
from pipelines.data.formats import FORMATS
from pipelines.data.formats.base import ALIASES, SUFFIXES, DataFile, RawRecord, Span, locate
from pipelines.data.formats.folder import listing
from pipelines.data.media.content import Content
from pipelines.data.media.root import Root
from pipelines.data.row_index import duplicate_ids, index_rows, read_records
from pipelines.data.rows import Kind, Medium, Row
from pipelines.text import describe_error, redacted

NEEDED = ("id", "media", "question")


@dataclass(frozen=True)
class Manifest:
    """One data set: where its files and its media lie, and how they are read. Small: it travels with every task."""

    data: str = field(repr=False)  # a URI can hold a password
    root: str = field(repr=False)  # nothing outside it is read unless `allow_outside`
    layout: str
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
            system, path = locate(data)
            found = system.get_file_info(path).type
            if found == fs.FileType.NotFound:
                raise FileNotFoundError(f"there is no file or folder {redacted(data)}")
            if found == fs.FileType.Directory:
                root, (layout, files) = data, _among(data, "*", kind)
            else:
                root, layout, files = parent, _layout(path), (DataFile(data, path, kind),)
        if layout == "folder" and question is None:
            question = f"Describe the {kind}."
        return cls(
            data,
            _absolute(media_root) if media_root else root,
            layout,
            files,
            kind,
            question,
            allow_outside,
        )

    def ready(self) -> Manifest:
        """Itself, unless it is known already that no medium can be had."""
        return self

    def digest(self) -> str:
        """A digest of what the rows are: of manifests the content, of media names and sizes."""
        total = hashlib.sha256(f"{self.layout} {self.kind} {self.question!r}".encode())
        for file in self.files:
            part = hashlib.sha256()
            for chunk in FORMATS[self.layout].digest(file):
                part.update(chunk)
            total.update(part.digest())
        return total.hexdigest()

    def index(self, limit: int | None = None) -> pa.Table:
        """Where each row lies, as `index.INDEX`, in the manifest's order; the first `limit` rows of it."""
        columns = FORMATS[self.layout].columns(self.files[0])
        if columns is not None:
            self._check(columns)
        table = index_rows(self.layout, self.files, limit)
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
        twice = duplicate_ids(ids)
        if not len(twice):
            return
        firsts = {number: table["file"].index(number).as_py() for number in range(len(self.files))}
        named = []
        for value in twice[:3].to_pylist():
            found = pc.indices_nonzero(pc.equal(ids, value))[:2].to_pylist()
            numbers = [(at, table["file"][at].as_py()) for at in found]
            where = (
                f"row {at - firsts[number] + 1} of {self.files[number].name}"
                for at, number in numbers
            )
            named.append(f"'{value}' ({', '.join(where)})")
        raise ValueError(
            f"{len(twice):,} ids of {redacted(self.data)} are there more than once: {', '.join(named)}; answers are"
            " told apart by their ids, so every row needs its own"
        )

    def read(self, pointers: pa.Table) -> list[Row]:
        """The rows that a part of the index points to, in its order. A bad row is a Row that says what is wrong."""
        return [self._row(*found) for found in read_records(self.layout, self.files, pointers)]

    def _row(self, file: DataFile, span: Span, record: RawRecord | Exception) -> Row:
        try:
            if isinstance(record, Exception):
                raise record
            own = file.identity(record)
            if own is None:
                raise ValueError(
                    f"the row has no id; a text or a whole number is needed in {' or '.join(ALIASES['id'])}"
                )
            if own != span.row_id:
                raise ValueError(
                    f"here is row '{own}' now: the data has changed since the run began; start it again"
                )
            record = self._shaped(record)
            media = self._media(record)
            asked = " ".join(record_parsing.texts(record, "question"))
            question = asked if asked.strip() else self.question
            if question is None:
                raise ValueError("the question is empty")
            answers, options, kind = (
                record_parsing.texts(record, name) for name in ("answers", "options", "type")
            )
            meta = record.get("meta")
            told = (
                {str(key): str(value) for key, value in meta.items()}
                if isinstance(meta, Mapping)
                else {}
            )
            return Row(span.row_id, media, question, answers, options, " ".join(kind), told)
        except Exception as error:
            return Row(span.row_id, error=describe_error(error))

    def _shaped(self, record: RawRecord) -> RawRecord:
        """The record under the names of ALIASES; as it is, for who does not know better."""
        return record

    def _media(self, record: RawRecord) -> tuple[Medium, ...]:
        return record_parsing.media(record, self.kind)

    def fetch(self, medium: Medium) -> Content:
        """The bytes of a medium, or the local file that holds them."""
        if medium.data is not None:
            return medium.data
        return Root(self.root, self.allow_outside).fetch(medium.path or "")


def _absolute(data: str) -> str:
    """Workers have other working directories."""
    return data if "://" in data else str(Path(data).expanduser().absolute())


def _layout(name: str) -> str:
    for layout, each in FORMATS.items():
        if each.suffixes and name.lower().endswith(each.suffixes):
            return layout
    allowed = ", ".join(suffix for each in FORMATS.values() for suffix in each.suffixes)
    raise ValueError(
        f"{name} is no data set; a file ends in {allowed}; a folder holds such files, images or videos"
    )


def _among(uri: str, pattern: str, kind: Kind) -> tuple[str, tuple[DataFile, ...]]:
    """The files of a folder that fit a pattern, and their layout, which has to be one."""
    folder = DataFile(uri, locate(uri)[1], kind)
    names = [name for name, _ in listing(folder) if fnmatchcase(name, pattern)]
    found: dict[str, list[str]] = {}
    for layout, each in FORMATS.items():
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
        return layout, tuple(
            DataFile(uri, f"{base}/{name}", kind, f"{name}:" if several else "") for name in these
        )
    if pattern == "*" and any(name.lower().endswith(SUFFIXES[kind]) for name in names):
        return "folder", (folder,)
    allowed = ", ".join(suffix for each in FORMATS.values() for suffix in each.suffixes)
    raise ValueError(
        f"{redacted(uri)} holds nothing that fits '{pattern}'; looked for {allowed}"
        f" and for {kind}s: {', '.join(SUFFIXES[kind])}"
    )

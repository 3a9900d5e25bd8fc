"""What the official benchmarks share: finding their files in a folder, and rows that are put together from two of them.

A user's `--data` is the folder that LLaVA's or Video-LLaVA's evaluation has, one file of it, or a data set of the hub
in Parquet. `Place` looks for the files; what is missing is an error that names all that was looked for. `Official` is a
`Manifest` whose records a benchmark's own function turns into rows where they are read, and to which reference answers
from a second file are joined by id: the driver holds two places a row, whatever the files hold.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import fs

from pipelines.data.formats.base import DataFile, RawRecord, locate
from pipelines.data.manifest import Manifest
from pipelines.data.row_index import INDEX, duplicate_ids, index_rows, read_records
from pipelines.data.rows import Kind, Medium, Row
from pipelines.results.storage import Folder
from pipelines.text import describe_error, redacted

SHORT = "\nAnswer the question using a single word or phrase."
LETTER = "\nAnswer with the option's letter from the given choices directly."
TRUTH = ("truth_file", "truth_start", "truth_length")  # columns of the index, beside a Manifest's
SPLITS = ("train", "val", "test", "dev")


def as_it_is(record: RawRecord) -> RawRecord:
    return record


@dataclass(frozen=True)
class JoinedManifest(Manifest):
    """A benchmark's rows. `shape` gives a record the names of a manifest; the joined one is its `truth`."""

    shape: Callable[[RawRecord], RawRecord] = as_it_is
    expected: tuple[
        str, ...
    ] = ()  # columns without which the file is another one than was asked for
    truth: tuple[DataFile, ...] = ()
    truth_layout: str = "JSON"
    album: tuple[
        DataFile, ...
    ] = ()  # Parquet files with the media by id, where rows name them only
    suffixes: tuple[str, ...] = ()  # tried in turn where a medium's name has none
    without: tuple[str, ...] = field(default=(), repr=False)  # folders of media that are not there

    def digest(self) -> str:
        """Of the questions, of their answers and of the images, where those are tables of their own."""
        tables = (
            (self.files, self.layout),
            (self.truth, self.truth_layout),
            (self.album, "Parquet"),
        )
        parts = [
            Manifest.digest(replace(self, files=files, layout=layout))
            for files, layout in tables
            if files
        ]
        return hashlib.sha256(" ".join(parts).encode()).hexdigest()

    def ready(self) -> JoinedManifest:
        """Itself, if the media are there. A run asks; scoring needs none."""
        if self.without:
            raise FileNotFoundError(
                f"the {self.kind}s are not there; looked for the folder {' or '.join(self.without)} in"
                f" {redacted(self.data)}; --media-root names another"
            )
        return self

    def index(self, limit: int | None = None) -> pa.Table:
        """As of any manifest, and beside each row the place of its truth."""
        table = super().index(limit)
        if not self.truth or not len(table):
            return table
        truths = index_rows(self.truth_layout, self.truth)
        if len(twice := duplicate_ids(truths["row_id"])):
            raise ValueError(
                f"{self.truth[0].name} has several answers to {len(twice):,} questions:"
                f" {', '.join(twice[:3].to_pylist())}; which one is right is not known"
            )
        at = pc.index_in(table["row_id"], value_set=truths["row_id"].combine_chunks())
        if at.null_count:
            lost = table["row_id"].filter(pc.is_null(at))
            raise ValueError(
                f"{len(lost):,} of {len(table):,} questions of {self.files[0].name} have no answer in"
                f" {self.truth[0].name}: {', '.join(lost[:3].to_pylist())}; both have to be of the same version"
            )
        for name, column in zip(TRUTH, INDEX.names[1:], strict=True):
            table = table.append_column(name, truths[column].take(at))
        return table

    def read(self, pointers: pa.Table) -> list[Row]:
        found = read_records(self.layout, self.files, pointers)
        if not self.truth:
            return [self._row(*each) for each in found]
        where = pa.table(
            [pointers["row_id"], *(pointers[name] for name in TRUTH)], names=INDEX.names
        )
        truths = read_records(self.truth_layout, self.truth, where)
        return [
            self._joined(*each, truth) for each, (_, _, truth) in zip(found, truths, strict=True)
        ]

    def _joined(
        self, file: DataFile, span: Any, record: RawRecord | Exception, truth: RawRecord | Exception
    ) -> Row:
        if isinstance(truth, Exception):
            return Row(span.row_id, error=describe_error(truth))
        joined = record if isinstance(record, Exception) else {**record, "truth": truth}
        return self._row(file, span, joined)

    def _check(self, columns: Sequence[str]) -> None:
        missing = [name for name in self.expected if name not in columns]
        if missing:
            raise ValueError(
                f"{self.files[0].name} in {redacted(self.data)} has no column {' and '.join(missing)}; it has"
                f" {', '.join(columns) or 'none'}; expected are {', '.join(self.expected)}"
            )

    def _shaped(self, record: RawRecord) -> RawRecord:
        return self.shape(record)

    def _media(self, record: RawRecord) -> tuple[Medium, ...]:
        return () if record["media"] == [] else super()._media(record)  # some questions have none

    def fetch(self, medium: Medium) -> bytes | Path:
        if self.album and medium.data is None:
            return _picture(self.album, medium.path or "")
        names = [f"{medium.path}{suffix}" for suffix in (*self.suffixes, "")]
        for name in names[:-1]:
            try:
                return super().fetch(replace(medium, path=name))
            except FileNotFoundError:
                continue
        return super().fetch(medium)


@cache
def _pages(album: tuple[DataFile, ...]) -> Mapping[str, dict[str, Any]]:
    """Where each picture of an album lies: as many as a benchmark has images, once a process."""
    return {row["row_id"]: row for row in index_rows("Parquet", album).to_pylist()}


@lru_cache(maxsize=64)
def _picture(album: tuple[DataFile, ...], name: str) -> bytes:
    row = _pages(album).get(name)
    if row is None:
        raise FileNotFoundError(f"there is no image '{name}' in {album[0].name}")
    [(_, _, record)] = read_records("Parquet", album, pa.Table.from_pylist([row]))
    if isinstance(record, Exception):
        raise record
    return embedded(record["image"])


def embedded(value: Any) -> Any:
    """An image of the hub without the path it once had, which tells no two images apart: its bytes do."""
    return value["bytes"] if isinstance(value, Mapping) and value.get("bytes") else value


@dataclass(frozen=True)
class DataFolder:
    """A folder that `--data` names, or the file of it that it names, and what a benchmark looks for there."""

    benchmark: str
    how: Mapping[str, Any]  # as in `Manifest.of`: where media are, other than there
    hub: str  # the data set that has it in Parquet
    folder: Folder
    file: str | None
    kind: Kind
    splits: bool  # there are several

    @classmethod
    def of(
        cls,
        benchmark: str,
        data: str,
        how: Mapping[str, Any],
        hub: str = "",
        kind: Kind = "image",
        splits: bool = False,
    ) -> DataFolder:
        folder = Folder.of(data)
        system, path = locate(folder.uri)
        found = system.get_file_info(path).type
        if found == fs.FileType.NotFound:
            raise FileNotFoundError(f"there is no file or folder {redacted(data)}")
        if found == fs.FileType.Directory:
            return cls(benchmark, how, hub, folder, None, kind, splits)
        base, mark, query = folder.uri.partition("?")
        parent, _, name = base.rpartition("/")
        return cls(benchmark, how, hub, Folder(parent + mark + query), name, kind, splits)

    def has(self, name: str) -> bool:
        return self.type(name) == fs.FileType.File

    def type(self, name: str) -> Any:
        system, path = locate(self.folder.child(name).uri)
        return system.get_file_info(path).type

    def find(self, what: str, *names: str, named: bool = False) -> str:
        """The first of these files that is there; the one that `--data` names if it may be `named`."""
        if named and self.file:
            return self.file
        for name in names:
            if self.has(name):
                return name
        hub = f", and for the Parquet files of {self.hub}" if self.hub and named else ""
        more = "; --split names another split" if self.splits else ""
        raise FileNotFoundError(
            f"{self.benchmark}: there is no file of {what}; looked for {' or '.join(names)} in {self}{hub}{more}"
        )

    def __str__(self) -> str:
        return redacted(self.folder.uri)

    def itself(self, **how: Any) -> DataFile:
        """The folder, as a file of rows."""
        return DataFile(self.folder.uri, locate(self.folder.uri)[1], self.kind, **how)

    def open(self, name: str, **how: Any) -> DataFile:
        """A file of the folder."""
        uri = self.folder.child(name).uri
        return DataFile(uri, locate(uri)[1], self.kind, **how)

    def shards(self, *splits: str, config: Sequence[str] = (), **how: Any) -> tuple[DataFile, ...]:
        """The Parquet files of a data set of the hub that hold a configuration's split; none if there are none.

        A configuration is a folder. Files begin with their split, or are of no split at all.
        """
        if self.file:
            return (self.open(self.file, **how),) if self.file.endswith(".parquet") else ()
        for home in (*config, "", "data"):
            names = (self.folder.child(home) if home else self.folder).names()
            found = [name for name in names if name.endswith(".parquet")]
            some = [name for name in found if name.startswith(splits)]
            some = some or [name for name in found if not name.startswith(SPLITS)]
            if some:
                several = len(some) > 1
                paths = {
                    f"{home}/{name}".lstrip("/"): f"{name}:" if several else "" for name in some
                }
                return tuple(
                    self.open(path, prefix=prefix, **how) for path, prefix in paths.items()
                )
        return ()

    def rows(
        self,
        layout: str,
        *files: DataFile,
        shape: Callable[[RawRecord], RawRecord],
        homes: Sequence[str] = (),
        **more: Any,
    ) -> JoinedManifest:
        """The benchmark's rows in these files; `homes` are where its media may lie, `more` is Official's."""
        root, without = self.how.get("media_root"), ()
        if root is None:
            there = next(
                (home for home in homes if not home or self.type(home) == fs.FileType.Directory),
                None,
            )
            without = tuple(homes) if there is None else ()
            root = self.folder.child(there).uri if there else self.folder.uri
        return JoinedManifest(
            data=self.folder.uri,
            root=Folder.of(root).uri,
            layout=layout,
            files=files,
            kind=self.kind,
            allow_outside=self.how.get("allow_outside", False),
            without=without,
            shape=shape,
            **more,
        )


def embedded_row(record: RawRecord, **more: Any) -> RawRecord:
    """A record of the hub as a row of a manifest: its image by its bytes."""
    return {"media": [embedded(record.get("image"))], "question": record.get("question"), **more}


def joined(*parts: Any) -> str:
    """Several columns as one id, without line breaks."""
    return "/".join(" ".join(str(part).split()) for part in parts)


def asked(text: str, *suffixes: str) -> str:
    """A question of LLaVA's files without what its prompt adds, which is added again when it is asked."""
    for suffix in suffixes:
        text = text.removesuffix(suffix)
    return text

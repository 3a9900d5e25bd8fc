"""The base of the official benchmarks, which read the files that their own scripts read.

`--data` is the folder of LLaVA's or Video-LLaVA's evaluation, one file of it, or a data set of the
hub in Parquet. A benchmark describes both as a `Layout`; a missing file is an error that names
what was looked for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any

from pyarrow import fs

from pipelines.benchmarks import DEFAULT_SPLITS
from pipelines.benchmarks.base import Benchmark
from pipelines.benchmarks.joined_manifest import JoinedManifest, Shape
from pipelines.benchmarks.records import LLAVA_COLUMNS, SHORT
from pipelines.data.formats.base import DataFile
from pipelines.data.rows import Kind, Row
from pipelines.results.storage import Folder, locate
from pipelines.text import redacted

ALL_SPLITS = ("train", "val", "test", "dev")  # beginnings of file names on the hub
MAX_NAMES = 8  # in an error about a missing file


@dataclass(frozen=True)
class Source:
    """A file of a benchmark, within the folder of `--data`."""

    names: tuple[str, ...]  # paths that it may have; on the hub, beginnings of the files' names
    content: str = "questions"  # for the error if it is missing
    configs: tuple[str, ...] = ()  # of the hub: folders with such files
    reading: Mapping[str, Any] = field(default_factory=dict)  # fields of DataFile


@dataclass(frozen=True, kw_only=True)
class Layout(Source):
    """The questions of a benchmark, the files that belong to them, and how they become rows."""

    shape: Shape
    expected: tuple[str, ...] = LLAVA_COLUMNS  # columns without which it is the wrong file
    references: tuple[Source, ...] = ()  # joined to the questions by id
    optional_references: tuple[Source, ...] = ()  # may be missing
    images: Source | None = None  # of the hub, where rows only name them
    media: tuple[str, ...] = ()  # folders where the media may be; "" is the home itself
    suffixes: tuple[str, ...] = ()  # of media, where names have none
    homes: tuple[str, ...] = ("",)  # the first that has the questions has the other files as well
    layout: str = "JSON"  # of FORMATS; "pairs": the names are folders, whose home is read


class OfficialBenchmark(Benchmark):
    version = "1"
    kind: Kind = "image"
    hub: str = ""  # the data set of the hub with the same rows
    splits: tuple[str, ...] = ()  # of --split; empty: there is only one
    suffix = SHORT  # ends every prompt

    on_hub: Layout | None = None
    own: Layout  # of its own scripts

    def layouts(self, split: str) -> tuple[Layout | None, Layout]:
        """Return `on_hub` and `own`, for a split."""
        return self.on_hub, self.own

    def load(self, data: str, split: str = "", **options: Any) -> JoinedManifest:
        split = split or DEFAULT_SPLITS.get(self.name, "test")
        if self.splits and split not in self.splits:
            raise ValueError(
                f"{self.name} has no split '{split}'; it has {' and '.join(self.splits)}"
            )
        folder = DataFolder(self, data, options)
        on_hub, own = self.layouts(split)
        manifest = folder.from_hub(on_hub) if on_hub else None
        return manifest or folder.from_files(own)

    def prompt(self, row: Row) -> str:
        return row.question + self.suffix

    def external_ids(self, row: Row) -> tuple[str, ...]:
        """Return the row's id, and the number that LLaVA's questions have beside it."""
        number = row.meta.get("question_id")
        return (row.row_id,) if number is None else (row.row_id, number)


class DataFolder:
    """The folder that `--data` names, or that contains the file it names."""

    def __init__(self, benchmark: OfficialBenchmark, data: str, options: Mapping[str, Any]) -> None:
        """options: `media_root` and `allow_outside` of `Manifest.of`."""
        self.benchmark, self.options = benchmark, options
        self.folder, self.file = Folder.of(data), ""
        type = self._type()
        if type == fs.FileType.NotFound:
            raise FileNotFoundError(f"there is no file or folder {redacted(data)}")
        if type != fs.FileType.Directory:
            path, mark, query = self.folder.uri.partition("?")
            parent, _, self.file = path.rpartition("/")
            self.folder = Folder(parent + mark + query)

    def from_hub(self, layout: Layout) -> JoinedManifest | None:
        """Return the rows of the Parquet files; None without any."""
        images = tuple(self._tables(layout.images)) if layout.images else ()
        tables = self._tables(layout)
        return self._manifest(layout, tables, layout="Parquet", images=images) if tables else None

    def from_files(self, layout: Layout) -> JoinedManifest:
        """Return the rows of the benchmark's own files."""
        home, questions = self.find(layout, layout.homes)
        if layout.layout == "pairs":
            questions = self._open(home.rstrip("/"), layout)
        optional = [file for file in layout.optional_references if self._first(file, [home])]
        references = [self.find(source, [home])[1] for source in (*layout.references, *optional)]
        fields = {"layout": layout.layout, "references": tuple(references)}
        return self._manifest(layout, [questions], home, **fields)

    def find(self, source: Source, homes: Sequence[str] = ("",)) -> tuple[str, DataFile]:
        """Return the first of the names of a source that exists, and the home that has it."""
        if self.file and source.content == "questions":
            return "", self._open(self.file, source)
        if first := self._first(source, homes):
            return first[0], self._open("".join(first), source)
        bench = self.benchmark
        names = [f"{home}{name}" for home in homes for name in source.names]
        hub = ""
        if bench.hub and source.content == "questions":
            hub = f", and for the Parquet files of {bench.hub}"
        hint = "; --split names another split" if bench.splits else ""
        raise FileNotFoundError(
            f"{bench.name}: there is no file of {source.content}; looked for"
            f" {' or '.join(names[:MAX_NAMES])}{', ...' if names[MAX_NAMES:] else ''} in"
            f" {redacted(self.folder.uri)}{hub}{hint}"
        )

    def _first(self, source: Source, homes: Sequence[str]) -> tuple[str, str] | None:
        """Return the home and the name of the first file that exists."""
        pairs = product(homes, source.names)
        return next((pair for pair in pairs if self._exists("".join(pair))), None)

    def _exists(self, path: str) -> bool:
        return bool(self._type(path) != fs.FileType.NotFound)

    def _child(self, path: str) -> Folder:
        return self.folder.child(path) if path else self.folder

    def _type(self, path: str = "") -> fs.FileType:
        system, path = locate(self._child(path).uri)
        return system.get_file_info(path).type

    def _open(self, path: str, source: Source, prefix: str = "") -> DataFile:
        uri = self._child(path).uri
        return DataFile(uri, locate(uri)[1], self.benchmark.kind, prefix, **source.reading)

    def _tables(self, source: Source) -> list[DataFile]:
        """Return the Parquet files of a split on the hub; none if this folder has none.

        File names begin with their split, or with no split at all.
        """
        if self.file:
            return [self._open(self.file, source)] if self.file.endswith(".parquet") else []
        for home in (*source.configs, "", "data"):
            tables = [name for name in self._child(home).names() if name.endswith(".parquet")]
            matching = [name for name in tables if name.startswith(source.names)]
            matching = matching or [name for name in tables if not name.startswith(ALL_SPLITS)]
            if matching:
                return [
                    self._open(
                        f"{home}/{name}".lstrip("/"),
                        source,
                        prefix=f"{name}:" if len(matching) > 1 else "",
                    )
                    for name in matching
                ]
        return []

    def _manifest(
        self, layout: Layout, files: Sequence[DataFile], home: str = "", /, **fields: Any
    ) -> JoinedManifest:
        root = self.options.get("media_root")
        folders = [f"{home}{name}".strip("/") for name in layout.media]
        present = [name for name in folders if self._exists(name)]
        return JoinedManifest(
            data=self.folder.uri,
            root=Folder.of(root or self._child(present[0] if present else "").uri).uri,
            files=tuple(files),
            kind=self.benchmark.kind,
            allow_outside=self.options.get("allow_outside", False),
            missing_folders=() if root or present else tuple(folders),
            shape=layout.shape,
            expected=layout.expected,
            suffixes=layout.suffixes,
            **fields,
        )

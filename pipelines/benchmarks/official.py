"""The base of the official benchmarks, which read the files that their own scripts read.

`--data` is the folder of LLaVA's or Video-LLaVA's evaluation, one file of it, or a data set of the
hub in Parquet. `DataFolder` looks for the files; a missing file is an error that names everything
that was looked for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pyarrow import fs

from pipelines.benchmarks.base import Benchmark
from pipelines.benchmarks.joined_manifest import JoinedManifest, Shape, embedded_image
from pipelines.data.formats.base import DataFile, RawRecord
from pipelines.data.rows import Kind, Row
from pipelines.results.storage import Folder, locate
from pipelines.text import redacted

SHORT = "\nAnswer the question using a single word or phrase."
LETTER = "\nAnswer with the option's letter from the given choices directly."

LLAVA_COLUMNS = ("question_id", "image", "text")  # of LLaVA's lists of questions
ALL_SPLITS = ("train", "val", "test", "dev")  # beginnings of file names on the hub


class OfficialBenchmark(Benchmark):
    version = "1"
    kind: Kind = "image"
    hub: str = ""  # the data set of the hub with the same rows
    splits: tuple[str, ...] = ()  # of --split; empty: there is only one
    suffix = SHORT  # ends every prompt

    def folder(self, data: str, options: Mapping[str, Any]) -> DataFolder:
        return DataFolder.of(data, options, self)

    def check_split(self, split: str) -> None:
        if split not in self.splits:
            raise ValueError(
                f"{self.name} has no split '{split}'; it has {' and '.join(self.splits)}"
            )

    def prompt(self, row: Row) -> str:
        return row.question + self.suffix

    def external_ids(self, row: Row) -> tuple[str, ...]:
        """Return the row's id, and the number that LLaVA's questions have beside it."""
        number = row.meta.get("question_id")
        return (row.row_id,) if number is None else (row.row_id, number)


def llava_row(record: RawRecord, *suffixes: str, **fields: Any) -> RawRecord:
    """Return a record of LLaVA's questions as a row, without the suffixes of its prompt."""
    question = without_suffixes(record["text"], *(suffixes or (SHORT,)))
    return {"media": [record["image"]], "question": question, **fields}


def hub_row(record: RawRecord, **fields: Any) -> RawRecord:
    """Return a record of the hub as a row, with the bytes of its image."""
    media = [embedded_image(record.get("image"))]
    return {"media": media, "question": record.get("question"), **fields}


def join_id(*columns: Any) -> str:
    """Return several columns as one id, without line breaks."""
    return "/".join(" ".join(str(column).split()) for column in columns)


def without_suffixes(text: str, *suffixes: str) -> str:
    """Return a question of LLaVA's files without the suffixes that prompts add again."""
    for suffix in suffixes:
        text = text.removesuffix(suffix)
    return text


@dataclass(frozen=True)
class DataFolder:
    """The folder that `--data` names, or that contains the file it names."""

    benchmark: OfficialBenchmark
    options: Mapping[str, Any]  # `media_root` and `allow_outside` of `Manifest.of`
    folder: Folder
    file: str | None  # that `--data` names

    @classmethod
    def of(cls, data: str, options: Mapping[str, Any], benchmark: OfficialBenchmark) -> DataFolder:
        folder, file = Folder.of(data), None
        type = _type(folder)
        if type == fs.FileType.NotFound:
            raise FileNotFoundError(f"there is no file or folder {redacted(data)}")
        if type != fs.FileType.Directory:
            path, mark, query = folder.uri.partition("?")
            parent, _, file = path.rpartition("/")
            folder = Folder(parent + mark + query)
        return cls(benchmark, options, folder, file)

    def __str__(self) -> str:
        return redacted(self.folder.uri)

    def has_file(self, name: str) -> bool:
        return bool(_type(self.folder.child(name)) == fs.FileType.File)

    def has_folder(self, name: str) -> bool:
        return bool(_type(self.folder.child(name)) == fs.FileType.Directory)

    def find(self, what: str, *names: str, is_data: bool = False) -> str:
        """Return the first of these files that exists.

        is_data: `--data` may be such a file itself, under any name.
        """
        if is_data and self.file:
            return self.file
        for name in names:
            if self.has_file(name):
                return name
        bench = self.benchmark
        hub = f", and for the Parquet files of {bench.hub}" if bench.hub and is_data else ""
        hint = "; --split names another split" if bench.splits else ""
        raise FileNotFoundError(
            f"{bench.name}: there is no file of {what}; looked for {' or '.join(names)} in"
            f" {self}{hub}{hint}"
        )

    def open(self, name: str, **options: Any) -> DataFile:
        """Return a file of the folder, or the folder itself for an empty name."""
        uri = (self.folder.child(name) if name else self.folder).uri
        return DataFile(uri, locate(uri)[1], self.benchmark.kind, **options)

    def find_file(self, what: str, *names: str, is_data: bool = False, **options: Any) -> DataFile:
        return self.open(self.find(what, *names, is_data=is_data), **options)

    def hub_files(self, *splits: str, config: Sequence[str] = (), **options: Any) -> list[DataFile]:
        """Return the Parquet files of a split on the hub; none if this folder has none.

        A configuration is a folder. File names begin with their split, or with no split at all.
        """
        if self.file:
            return [self.open(self.file, **options)] if self.file.endswith(".parquet") else []
        for home in (*config, "", "data"):
            names = (self.folder.child(home) if home else self.folder).names()
            tables = [name for name in names if name.endswith(".parquet")]
            matching = [name for name in tables if name.startswith(splits)]
            matching = matching or [name for name in tables if not name.startswith(ALL_SPLITS)]
            if matching:
                return [
                    self.open(
                        f"{home}/{name}".lstrip("/"),
                        prefix=f"{name}:" if len(matching) > 1 else "",
                        **options,
                    )
                    for name in matching
                ]
        return []

    def from_hub(
        self,
        *splits: str,
        shape: Shape,
        expected: tuple[str, ...],
        images: tuple[DataFile, ...] = (),
        **files: Any,
    ) -> JoinedManifest | None:
        """Return the rows of the Parquet files; None without any. `files` is for `hub_files`."""
        tables = self.hub_files(*splits, **files)
        if not tables:
            return None
        return self.manifest(
            *tables, layout="Parquet", shape=shape, expected=expected, images=images
        )

    def manifest(
        self, *files: DataFile, media_folders: Sequence[str] = (), **options: Any
    ) -> JoinedManifest:
        """Return the rows of these files.

        media_folders: where the media may be; "" is the folder itself.
        options: fields of JoinedManifest, with `shape` at least; the layout is JSON by default.
        """
        root = self.options.get("media_root")
        missing: tuple[str, ...] = ()
        if root is None:
            homes = [home for home in media_folders if not home or self.has_folder(home)]
            missing = () if homes else tuple(media_folders)
            root = self.folder.child(homes[0]).uri if homes and homes[0] else self.folder.uri
        return JoinedManifest(
            data=self.folder.uri,
            root=Folder.of(root).uri,
            files=files,
            kind=self.benchmark.kind,
            allow_outside=self.options.get("allow_outside", False),
            missing_folders=missing,
            **{"layout": "JSON", **options},
        )


def _type(folder: Folder) -> fs.FileType:
    system, path = locate(folder.uri)
    return system.get_file_info(path).type

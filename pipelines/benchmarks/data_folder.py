"""The folder of `--data`, in which an official benchmark finds its files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pyarrow import fs

from pipelines.benchmarks.joined_manifest import JoinedManifest, Shape
from pipelines.data.formats.base import DataFile, locate
from pipelines.data.rows import Kind
from pipelines.results.storage import Folder
from pipelines.text import redacted

ALL_SPLITS = ("train", "val", "test", "dev")  # beginnings of file names on the hub
LLAVA_COLUMNS = ("question_id", "image", "text")  # of LLaVA's lists of questions


@dataclass(frozen=True)
class DataFolder:
    """The folder that `--data` names, or that contains the file it names."""

    benchmark: str
    kind: Kind
    hub: str  # data set on the hub with the same rows in Parquet
    has_splits: bool
    options: Mapping[str, Any]  # `media_root` and `allow_outside` of `Manifest.of`
    folder: Folder
    file: str | None  # that `--data` names

    @classmethod
    def of(
        cls,
        data: str,
        options: Mapping[str, Any],
        benchmark: str,
        kind: Kind,
        hub: str,
        splits: bool,
    ) -> DataFolder:
        folder, file = Folder.of(data), None
        type = _type(folder)
        if type == fs.FileType.NotFound:
            raise FileNotFoundError(f"there is no file or folder {redacted(data)}")
        if type != fs.FileType.Directory:
            path, mark, query = folder.uri.partition("?")
            parent, _, file = path.rpartition("/")
            folder = Folder(parent + mark + query)
        return cls(benchmark, kind, hub, splits, options, folder, file)

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
        hub = f", and for the Parquet files of {self.hub}" if self.hub and is_data else ""
        hint = "; --split names another split" if self.has_splits else ""
        raise FileNotFoundError(
            f"{self.benchmark}: there is no file of {what}; looked for {' or '.join(names)} in"
            f" {self}{hub}{hint}"
        )

    def open(self, name: str, **options: Any) -> DataFile:
        """Return a file of the folder, or the folder itself for an empty name."""
        uri = (self.folder.child(name) if name else self.folder).uri
        return DataFile(uri, locate(uri)[1], self.kind, **options)

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
        images: Sequence[DataFile] = (),
        **files: Any,
    ) -> JoinedManifest | None:
        """Return the rows of the Parquet files; None without any. `files` is for `hub_files`."""
        tables = self.hub_files(*splits, **files)
        if not tables:
            return None
        return self.manifest(
            "Parquet", *tables, shape=shape, expected=expected, images=tuple(images)
        )

    def manifest(
        self, layout: str, *files: DataFile, media_folders: Sequence[str] = (), **options: Any
    ) -> JoinedManifest:
        """Return the rows of these files.

        media_folders: where the media may be; "" is the folder itself.
        options: fields of JoinedManifest, with `shape` at least.
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
            layout=layout,
            files=files,
            kind=self.kind,
            allow_outside=self.options.get("allow_outside", False),
            missing_folders=missing,
            **options,
        )


def _type(folder: Folder) -> fs.FileType:
    system, path = locate(folder.uri)
    return system.get_file_info(path).type

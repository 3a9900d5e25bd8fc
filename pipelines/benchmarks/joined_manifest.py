"""The rows of an official benchmark: a Manifest whose rows are put together from two files.

A function of the benchmark turns each record into a row where it is read, and reference answers are
joined to it by id from a second file. The driver holds two positions per row, whatever the files
contain.
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

from pipelines.benchmarks.records import embedded_image
from pipelines.data.formats.base import DataFile, RawRecord
from pipelines.data.manifest import Manifest
from pipelines.data.row_index import POSITION, duplicate_ids, index_rows, read_records
from pipelines.data.rows import Medium, Row
from pipelines.text import redacted

Shape = Callable[[RawRecord], RawRecord]
# Columns of the index beside those of a Manifest: the position of each row's reference.
REFERENCE_INDEX = ("reference_file", "reference_start", "reference_length")


@dataclass(frozen=True)
class JoinedManifest(Manifest):
    """A benchmark's rows. `shape` gives a record the field names of a manifest.

    The record of the references is its field `reference`.
    """

    shape: Shape = field(kw_only=True)
    expected: tuple[str, ...] = ()  # columns without which this is the wrong file
    references: tuple[DataFile, ...] = ()
    images: tuple[DataFile, ...] = ()  # Parquet files of media by id, where rows only name them
    suffixes: tuple[str, ...] = ()  # tried in turn where the name of a medium has none
    missing_folders: tuple[str, ...] = field(default=(), repr=False)  # of media; empty: they exist

    def digest(self) -> str:
        """Return the digest of the questions, their references and the tables of images."""
        tables = ((self.files, self.layout), (self.references, "JSON"), (self.images, "Parquet"))
        digests = [
            Manifest.digest(replace(self, files=files, layout=layout))
            for files, layout in tables
            if files
        ]
        return hashlib.sha256(" ".join(digests).encode()).hexdigest()

    def require_media(self) -> JoinedManifest:
        """Return self if the media exist. Runs call it; scoring needs no media."""
        if self.missing_folders:
            raise FileNotFoundError(
                f"the {self.kind}s are not there; looked for the folder"
                f" {' or '.join(self.missing_folders)} in {redacted(self.data)};"
                " --media-root names another"
            )
        return self

    def index(self, limit: int | None = None) -> pa.Table:
        """Return the index of a Manifest, with the position of each row's reference."""
        table = super().index(limit)
        if not self.references or not len(table):
            return table
        references = index_rows("JSON", self.references)
        name = self.references[0].name
        if len(duplicates := duplicate_ids(references["row_id"])):
            raise ValueError(
                f"{name} has several answers to {len(duplicates):,} questions:"
                f" {', '.join(duplicates[:3].to_pylist())}; which one is right is not known"
            )
        at = pc.index_in(table["row_id"], value_set=references["row_id"].combine_chunks())
        if at.null_count:
            unanswered = table["row_id"].filter(pc.is_null(at))
            raise ValueError(
                f"{len(unanswered):,} of {len(table):,} questions of {self.files[0].name} have no"
                f" answer in {name}: {', '.join(unanswered[:3].to_pylist())}; both have to be of"
                " the same version"
            )
        for column, source in zip(REFERENCE_INDEX, POSITION[1:], strict=True):
            table = table.append_column(column, references[source].take(at))
        return table

    def read(self, pointers: pa.Table) -> list[Row]:
        if not self.references:
            return super().read(pointers)
        records = read_records(self.layout, self.files, pointers)
        columns = [pointers[name] for name in ("row_id", *REFERENCE_INDEX)]
        positions = pa.table(columns, names=POSITION)
        references = read_records("JSON", self.references, positions)
        rows = []
        for (file, span, record), (_, _, reference) in zip(records, references, strict=True):
            if not isinstance(record, Exception):
                is_read = not isinstance(reference, Exception)
                record = {**record, "reference": reference} if is_read else reference
            rows.append(self._row(file, span, record))
        return rows

    def _required(self) -> Sequence[Sequence[str]]:
        return [(name,) for name in self.expected]

    def _shaped(self, record: RawRecord) -> RawRecord:
        return self.shape(record)

    def _media(self, record: RawRecord) -> tuple[Medium, ...]:
        # Some questions have no image.
        return () if record["media"] == [] else super()._media(record)

    def fetch(self, medium: Medium) -> bytes | Path:
        if self.images and medium.data is None:
            return _image(self.images, medium.path or "")
        for suffix in self.suffixes:
            try:
                return super().fetch(replace(medium, path=f"{medium.path}{suffix}"))
            except FileNotFoundError:
                continue
        return super().fetch(medium)


@cache
def _positions(images: tuple[DataFile, ...]) -> Mapping[str, dict[str, Any]]:
    """Index the images by id, once per process. Benchmarks have few enough to hold in memory."""
    return {row["row_id"]: row for row in index_rows("Parquet", images).to_pylist()}


@lru_cache(maxsize=64)
def _image(images: tuple[DataFile, ...], name: str) -> bytes:
    row = _positions(images).get(name)
    if row is None:
        raise FileNotFoundError(f"there is no image '{name}' in {images[0].name}")
    [(_, _, record)] = read_records("Parquet", images, pa.Table.from_pylist([row]))
    if isinstance(record, Exception):
        raise record
    return bytes(embedded_image(record["image"]))

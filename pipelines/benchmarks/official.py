"""The base of the official benchmarks, which read the files that their own scripts read.

`--data` is the folder of LLaVA's or Video-LLaVA's evaluation, one file of it, or a data set of the
hub in Parquet. `DataFolder` looks for the files; a missing file is an error that names everything
that was looked for.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipelines.benchmarks.base import Benchmark
from pipelines.benchmarks.data_folder import DataFolder
from pipelines.benchmarks.joined_manifest import embedded_image
from pipelines.data.formats.base import RawRecord
from pipelines.data.rows import Kind, Row

SHORT = "\nAnswer the question using a single word or phrase."
LETTER = "\nAnswer with the option's letter from the given choices directly."


class OfficialBenchmark(Benchmark):
    version = "1"
    kind: Kind = "image"
    hub: str = ""  # the data set of the hub with the same rows
    splits: tuple[str, ...] = ()  # of --split; empty: there is only one
    suffix = SHORT  # ends every prompt

    def folder(self, data: str, options: Mapping[str, Any]) -> DataFolder:
        return DataFolder.of(data, options, self.name, self.kind, self.hub, bool(self.splits))

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

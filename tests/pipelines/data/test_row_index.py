"""Rows of the same media are found by the index and kept together."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.data.formats.base import media_number
from pipelines.data.manifest import Manifest
from pipelines.data.row_index import group_by_media, split_between_media

ROWS = [("a", "x.png"), ("b", "y.png"), ("c", "x.png"), ("d", "z.png"), ("e", "y.png")]


def write(folder: Path, kind: str) -> str:
    """The rows of ROWS in one of the formats."""
    records = [{"id": name, "media": media, "question": "?"} for name, media in ROWS]
    path = folder / f"rows.{kind.partition(' ')[0]}"
    if kind == "jsonl":
        path.write_text("".join(json.dumps(record) + "\n" for record in records))
    elif kind == "csv":
        path.write_text("id,media,question\n" + "".join(f"{a},{b},?\n" for a, b in ROWS))
    else:
        shapes = {
            "parquet paths": lambda media: media,
            "parquet lists": lambda media: [media],
            "parquet structs": lambda media: {"bytes": b"...", "path": media},
        }
        table = [{**record, "media": shapes[kind](record["media"])} for record in records]
        pq.write_table(pa.Table.from_pylist(table), path)
    return str(path)


@pytest.mark.parametrize(
    "kind", ["jsonl", "csv", "parquet paths", "parquet lists", "parquet structs"]
)
def test_rows_of_the_same_media_follow_the_first_of_them(kind: str, tmp_path: Path) -> None:
    index = Manifest.of(write(tmp_path, kind)).index()
    assert index["row_id"].to_pylist() == ["a", "b", "c", "d", "e"]
    assert group_by_media(index)["row_id"].to_pylist() == ["a", "c", "b", "e", "d"]


def test_embedded_media_without_a_path_are_known_by_another_column() -> None:
    embedded = {"bytes": b"...", "path": None}
    assert media_number({"image": embedded}) == 0
    assert media_number({"image": embedded, "image_id": 7}) == media_number({"image_id": 7}) != 0


def test_rows_of_unknown_media_keep_their_places() -> None:
    table = pa.table({"row_id": list("abcd"), "media": pa.array([0, 7, 0, 7], pa.uint32())})
    assert group_by_media(table)["row_id"].to_pylist() == ["a", "b", "d", "c"]


@pytest.mark.parametrize(
    ("media", "rows", "sizes"),
    [
        ([], 4, []),
        ([1, 1, 2, 2, 3, 3], 4, [4, 2]),
        ([1, 1, 2, 2, 2, 3], 4, [2, 4]),
        ([1] * 10, 4, [4, 4, 2]),  # a group above the limit is split
        ([1, 2, 2, 2, 2, 2], 4, [1, 4, 1]),
        ([0] * 6, 4, [4, 2]),  # unknown media have no groups
    ],
)
def test_parts_end_between_groups(media: list[int], rows: int, sizes: list[int]) -> None:
    table = pa.table({"media": pa.array(media, pa.uint32()), "row": range(len(media))})
    parts = list(split_between_media(table, rows))
    assert [len(part) for part in parts] == sizes
    assert [row for part in parts for row in part["row"].to_pylist()] == list(range(len(media)))

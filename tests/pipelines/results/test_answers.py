"""Answers on disk: complete or absent, each row once."""

from __future__ import annotations

import os
import random
import threading
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.results.answer_schema import ANSWER_SCHEMA
from pipelines.results.answers import AnswerParts, batches, compact, read
from pipelines.results.storage import Folder


def answer(row_id: str, status: str = "ok", **more: object) -> dict[str, object]:
    return {"row_id": row_id, "status": status, "prediction": f"answer to {row_id}", **more}


def write(folder: Folder, *row_ids: str, status: str = "ok") -> None:
    AnswerParts(folder, row_ids).write([answer(row_id, status) for row_id in row_ids])


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder.of(str(tmp_path / "run"))


def test_missing_folder_has_no_answers(folder: Folder) -> None:
    assert compact(folder).to_pylist() == []
    assert read(folder).num_rows == 0


def test_written_answers_are_read_in_order(folder: Folder) -> None:
    write(folder, "b", "a")
    write(folder, "c")
    assert compact(folder).to_pylist() == ["a", "b", "c"] or sorted(
        compact(folder).to_pylist()
    ) == ["a", "b", "c"]
    assert read(folder)["row_id"].to_pylist() == ["a", "b", "c"]
    assert sorted(
        row for part in batches(folder, ["row_id"]) for row in part["row_id"].to_pylist()
    ) == ["a", "b", "c"]


def test_missing_column_of_a_file_is_null(folder: Folder) -> None:
    """As in files of an earlier version."""
    write(folder, "a")
    assert folder.local is not None
    pq.write_table(
        pa.table({"row_id": ["b"], "status": ["ok"], "since_dropped": [1]}),
        folder.local / "b.parquet",
    )
    assert compact(folder).to_pylist() == ["a", "b"]
    assert read(folder, ["row_id", "error", "media"]).to_pylist()[1] == {
        "row_id": "b",
        "error": None,
        "media": None,
    }
    assert read(folder).schema.equals(ANSWER_SCHEMA)


def test_second_attempt_at_a_block_finds_the_rows_of_the_first(folder: Folder) -> None:
    first = AnswerParts(folder, ["a", "b", "c"])
    first.write([answer("a")])
    first.write([answer("b")])
    second = AnswerParts(folder, ["a", "b", "c"])
    assert second.answered() == {"a", "b"}
    second.write([answer("c")])
    assert sorted(compact(folder).to_pylist()) == ["a", "b", "c"]
    assert AnswerParts(folder, ["a", "b"]).answered() == set()  # another block


def test_files_are_read_concurrently(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    """On an object store several requests take no longer than one."""
    for row_id in "abcd":
        write(folder, row_id)
    barrier, original_open = threading.Barrier(4, timeout=60), Folder.open

    def open_together(self: Folder, name: str) -> Any:
        barrier.wait()  # breaks unless all four are being read
        return original_open(self, name)

    monkeypatch.setattr(Folder, "open", open_together)
    assert sorted(compact(folder).to_pylist()) == list("abcd")
    assert read(folder)["row_id"].to_pylist() == list("abcd")


@pytest.mark.parametrize("cut", [0, 7, 200])
def test_compact_renames_damaged_file_and_drops_its_rows(folder: Folder, cut: int) -> None:
    write(folder, "a")
    write(folder, "b", "c")
    assert folder.local is not None
    damaged = folder.local / sorted(folder.names())[0]
    damaged_rows = pq.read_table(damaged)["row_id"].to_pylist()
    damaged.write_bytes(damaged.read_bytes()[:cut])
    assert sorted(compact(folder).to_pylist()) == sorted({"a", "b", "c"} - set(damaged_rows))
    assert not damaged.exists()
    assert (folder.local / f"{damaged.name}.torn").exists()


def test_compact_drops_duplicate_rows(folder: Folder) -> None:
    write(folder, "a", "b")
    write(folder, "b", "c")
    write(folder, "c")
    assert sorted(compact(folder).to_pylist()) == ["a", "b", "c"]
    assert read(folder)["row_id"].to_pylist() == ["a", "b", "c"]


@pytest.mark.parametrize("retry", [False, True])
def test_compact_equals_row_by_row_reference(folder: Folder, retry: bool) -> None:
    """Duplicates within and across files, some of them errors."""
    dice, expected = random.Random(retry), []
    for number in range(12):
        rows = [answer(f"{dice.randrange(60)}", dice.choice(["ok", "error"])) for _ in range(10)]
        AnswerParts(folder, [f"block {number}"]).write(rows)
    for part in sorted(folder.names()):
        table = pq.read_table(f"{folder.uri}/{part}", columns=["row_id", "status"])
        rows = [row for row in table.to_pylist() if row["status"] == "ok" or not retry]
        for row in rows:
            if row["row_id"] not in {one["row_id"] for one in expected}:
                expected.append(row)
    assert compact(folder, retry_errors=retry).to_pylist() == [row["row_id"] for row in expected]
    found = [row for part in batches(folder, ["row_id", "status"]) for row in part.to_pylist()]
    assert found == expected


def test_compact_with_retry_errors_drops_error_rows(folder: Folder) -> None:
    write(folder, "a", "b")
    write(folder, "c", status="error")
    assert sorted(compact(folder).to_pylist()) == ["a", "b", "c"]
    assert sorted(compact(folder, retry_errors=True).to_pylist()) == ["a", "b"]
    write(folder, "c")
    assert sorted(compact(folder, retry_errors=True).to_pylist()) == ["a", "b", "c"]


def test_compact_deletes_temporary_files_of_killed_writers(folder: Folder) -> None:
    write(folder, "a")
    assert folder.local is not None
    (folder.local / ".answers-x-0.parquet.1234.tmp").write_bytes(b"half")
    compact(folder)
    assert [name for name in os.listdir(folder.local) if name.endswith(".tmp")] == []

"""Answers go to the disk in time, whatever else the worker does, and none of them twice."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from pipelines.config.method_spec import MethodSpec
from pipelines.data.manifest import Manifest
from pipelines.data.rows import Row
from pipelines.inference.answer_buffer import FLUSH, AnswerBuffer, Writer
from pipelines.inference.job_spec import BenchmarkSpec, RunSpec
from pipelines.inference.prepared_row import PreparedRow
from pipelines.inference.preprocess import PromptSpec
from pipelines.results import answers
from pipelines.results.storage import Folder

ANSWER: dict[str, Any] = {"prediction": "a", "visual_tokens_in": 36}


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


def rows(count: int) -> list[PreparedRow]:
    return [PreparedRow(0, Row(f"row-{number}", answers=("a",)), (0,)) for number in range(count)]


def sheet(folder: Path, given: list[PreparedRow]) -> AnswerBuffer:
    manifest = Manifest(str(folder), str(folder), "jsonl", (), "image")
    point = MethodSpec.of("apet", budget=8)
    section = BenchmarkSpec(
        recipe=PromptSpec("model", None, False, "manifest", "model", 8, None, None, 8),
        manifest=manifest,
        runs=(RunSpec(point, "run", Folder.of(str(folder / "run"))),),
        kind="image",
        split="test",
        max_new_tokens=8,
        temperature=0.0,
        seed=0,
    )
    return AnswerBuffer(Writer("worker", "model"), section, 0, point.build(), given)


def on_disk(folder: Path) -> list[str]:
    ids: list[str] = answers.read(Folder.of(str(folder / "run")), ["row_id"])["row_id"].to_pylist()
    return ids


def test_answers_do_not_wait_for_slower_methods(tmp_path: Path, clock: list[float]) -> None:
    given = rows(3)
    mine = sheet(tmp_path, given)
    mine.add(given[:1], [ANSWER], 0.0)
    mine.flush(within=1.0)
    assert on_disk(tmp_path) == []
    clock[0] += FLUSH - 2
    mine.add(given[1:2], [ANSWER], 0.0)
    mine.flush(within=1.0)
    assert on_disk(tmp_path) == []
    mine.flush(within=2.5)  # the next batch would make the first answer wait too long
    assert on_disk(tmp_path) == ["row-0", "row-1"]
    clock[0] += 10 * FLUSH
    mine.flush(within=1.0)  # nothing waits
    assert len(list((tmp_path / "run").glob("*.parquet"))) == 1


def test_a_row_that_was_answered_is_not_answered_again(tmp_path: Path) -> None:
    given = rows(3)
    first = sheet(tmp_path, given)
    first.add(given[:2], [ANSWER, ANSWER], 0.0)
    first.flush()
    again = sheet(tmp_path, given)
    assert [again.lacks(row) for row in given] == [False, False, True]
    again.add(
        given, [{**ANSWER, "prediction": "other"}] * 3, 0.0
    )  # its batch is answered as a whole
    again.flush()
    assert again.told().rows == 1
    table = answers.read(Folder.of(str(tmp_path / "run")))
    assert dict(zip(table["row_id"].to_pylist(), table["prediction"].to_pylist(), strict=True)) == {
        "row-0": "a",
        "row-1": "a",
        "row-2": "other",
    }


def test_a_run_that_does_not_want_a_row_does_not_get_it(tmp_path: Path) -> None:
    [row] = rows(1)
    mine = sheet(tmp_path, [row])
    other = PreparedRow(0, row.row, (1,))
    mine.fail(other, "ValueError: no")
    mine.add([other], [ANSWER], 0.0)
    mine.flush()
    assert on_disk(tmp_path) == []


def test_what_is_counted_is_on_disk(tmp_path: Path, clock: list[float]) -> None:
    """A worker that dies with answers has not given them; whoever gives them again counts them."""
    given = rows(3)
    mine = sheet(tmp_path, given)
    mine.add(given[:2], [ANSWER, ANSWER], 1.0)
    mine.fail(given[2], "ValueError: no")
    assert (mine.told().rows, on_disk(tmp_path)) == (0, [])
    mine.flush()
    told = mine.told()
    assert (told.rows, told.errors, told.visual_tokens, len(on_disk(tmp_path))) == (3, 1, 72, 3)
    assert mine.told().rows == 0

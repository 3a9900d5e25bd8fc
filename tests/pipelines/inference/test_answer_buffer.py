"""Answers are written in time, whatever else the worker does, and none of them twice."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from pipelines.config.eval_config import EvalConfig
from pipelines.config.method_spec import MethodSpec
from pipelines.data.manifest import Manifest
from pipelines.data.rows import Row
from pipelines.inference.answer_buffer import MAX_UNSAVED_S, AnswerBuffer
from pipelines.inference.job_spec import BenchmarkSpec, RunSpec
from pipelines.inference.prepared_row import PreparedRow
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


def buffer(folder: Path, prepared: list[PreparedRow]) -> AnswerBuffer:
    method = MethodSpec.of("apet", budget=8)
    spec = BenchmarkSpec(
        config=EvalConfig.of("image", data=str(folder), methods=("apet",), budgets=("8",)),
        manifest=Manifest(str(folder), str(folder), "jsonl", (), "image"),
        runs=(RunSpec(method, "run", Folder.of(str(folder / "run"))),),
    )
    return AnswerBuffer(spec, 0, method.build(), prepared, worker="worker")


def on_disk(folder: Path) -> list[str]:
    ids: list[str] = answers.read(Folder.of(str(folder / "run")), ["row_id"])["row_id"].to_pylist()
    return ids


def test_old_answers_are_written_before_a_slow_batch(tmp_path: Path, clock: list[float]) -> None:
    prepared = rows(3)
    pending = buffer(tmp_path, prepared)
    pending.add(prepared[:1], [ANSWER], 0.0)
    pending.flush_if_due(1.0)
    assert on_disk(tmp_path) == []
    clock[0] += MAX_UNSAVED_S - 2
    pending.add(prepared[1:2], [ANSWER], 0.0)
    pending.flush_if_due(1.0)
    assert on_disk(tmp_path) == []
    pending.flush_if_due(2.5)  # the next batch would make the first answer wait too long
    assert on_disk(tmp_path) == ["row-0", "row-1"]
    clock[0] += 10 * MAX_UNSAVED_S
    pending.flush_if_due(1.0)  # nothing waits
    assert len(list((tmp_path / "run").glob("*.parquet"))) == 1


def test_rows_answered_by_an_earlier_worker_are_skipped(tmp_path: Path) -> None:
    prepared = rows(3)
    first = buffer(tmp_path, prepared)
    first.add(prepared[:2], [ANSWER, ANSWER], 0.0)
    first.flush()
    again = buffer(tmp_path, prepared)
    assert [again.lacks(row) for row in prepared] == [False, False, True]
    again.add(
        prepared, [{**ANSWER, "prediction": "other"}] * 3, 0.0
    )  # its batch is answered as a whole
    again.flush()
    assert again.drain_progress().rows == 1
    table = answers.read(Folder.of(str(tmp_path / "run")))
    assert dict(zip(table["row_id"].to_pylist(), table["prediction"].to_pylist(), strict=True)) == {
        "row-0": "a",
        "row-1": "a",
        "row-2": "other",
    }


def test_rows_that_the_run_does_not_lack_are_ignored(tmp_path: Path) -> None:
    [row] = rows(1)
    pending = buffer(tmp_path, [row])
    other = PreparedRow(0, row.row, (1,))
    pending.fail(other, "ValueError: no")
    pending.add([other], [ANSWER], 0.0)
    pending.flush()
    assert on_disk(tmp_path) == []


def test_only_written_answers_count_as_progress(tmp_path: Path, clock: list[float]) -> None:
    """Answers that a worker dies with are made, and counted, by the next one."""
    prepared = rows(3)
    pending = buffer(tmp_path, prepared)
    pending.add(prepared[:2], [ANSWER, ANSWER], 1.0)
    pending.fail(prepared[2], "ValueError: no")
    assert (pending.drain_progress().rows, on_disk(tmp_path)) == (0, [])
    pending.flush()
    progress = pending.drain_progress()
    assert (progress.rows, progress.errors, progress.visual_tokens, len(on_disk(tmp_path))) == (
        3,
        1,
        72,
        3,
    )
    assert pending.drain_progress().rows == 0

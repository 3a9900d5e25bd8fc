"""A run folder that version 0.1.0 wrote (commit f10397e) reads as it did then.

The folder has six rows, one of them an error, and two of them twice, as a worker that was cut off
from the cluster leaves them.
"""

from __future__ import annotations

import datetime
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.report.runs import collect_runs
from pipelines.results.answer_schema import ANSWER_SCHEMA
from pipelines.results.answers import answer_files, compact, read
from pipelines.results.run_record import RunRecord, run_folders
from pipelines.results.storage import Folder
from tests.support import ROOT

NAME = "pope-demo-llava-packed-apet-64-0a1b2c3d"
ROW_IDS = [
    *("adversarial/0000", "adversarial/0003", "popular/0001", "popular/0004"),
    *("random/0002", "random/0005"),
]


@pytest.fixture
def output(tmp_path: Path) -> Path:
    shutil.copytree(ROOT / "tests" / "data" / "run-0.1.0", tmp_path / "results")
    return tmp_path / "results"


@pytest.fixture
def folder(output: Path) -> Folder:
    [folder] = run_folders(str(output))
    return folder


def test_record_of_0_1_0_is_loaded_and_saved_unchanged(folder: Folder) -> None:
    record = RunRecord.load(folder)
    assert (record.name, record.state, record.rows["error"]) == (NAME, "finished", 1)
    assert record.point == {"name": "apet-64", "method": "apet", "budget": "64"}
    assert record.parent == {"id": "f" * 32, "name": "job-pope-0a1b2c3d"}
    assert [point["rows_done"] for point in record.history] == [0, 3, 6]
    before = folder.read("record.json")
    record.save(folder)
    assert folder.read("record.json") == before


def test_answers_of_0_1_0_are_read_with_the_columns_of_today(folder: Folder) -> None:
    added = {"shared_rows", "shared_prefill_ms"}
    for name in answer_files(folder):
        with folder.open(name) as file:
            old = pq.read_schema(file)
        assert old.equals(pa.schema([each for each in ANSWER_SCHEMA if each.name not in added]))
    table = read(folder)
    assert table.schema.equals(ANSWER_SCHEMA)
    assert all(table[name].null_count == len(table) for name in added)


def test_compact_keeps_each_row_of_0_1_0_once(folder: Folder) -> None:
    assert read(folder).num_rows == 8
    assert sorted(compact(folder).to_pylist()) == ROW_IDS
    table = read(folder)
    assert table["row_id"].to_pylist() == ROW_IDS
    first, *_ = table.to_pylist()
    assert first["meta"] == [("category", "adversarial")]
    assert (first["visual_tokens_kept"], first["media"], first["options"]) == ([64], ["0.jpg"], [])
    assert first["answered_at"] == datetime.datetime(2026, 11, 1, 12, tzinfo=datetime.UTC)
    failed = table.to_pylist()[3]
    assert (failed["status"], failed["error"]) == ("error", "OSError: file 4 is torn")
    assert (failed["prediction"], failed["correct"], failed["visual_tokens_kept"]) == (None,) * 3
    assert set(compact(folder, retry_errors=True).to_pylist()) == set(ROW_IDS) - {"popular/0004"}


def test_report_accepts_a_run_of_0_1_0(output: Path) -> None:
    [chapter], notes = collect_runs([str(output)])
    assert notes == []
    [study] = chapter.studies
    assert [(run.id, run.point.method, run.point.budget) for run in study.runs] == [
        (NAME, "apet", "64")
    ]

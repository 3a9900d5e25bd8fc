"""What there is to do, and what is written down of it, without Ray or a model."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipelines.config.eval_config import EvalConfig
from pipelines.data.manifest import Manifest
from pipelines.inference.benchmark_job import BenchmarkJob
from pipelines.inference.job_spec import ROWS, ROWS_ON_GPU, job_of
from pipelines.results.run_record import RunRecord


@pytest.fixture
def asked(tmp_path: Path) -> dict[str, Any]:
    rows = [
        {"id": f"row-{number}", "media": "none.png", "question": "What?"} for number in range(5)
    ]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "model").mkdir()
    (tmp_path / "model/config.json").write_text("{}")
    return {
        "model": str(tmp_path / "model"),
        "data": str(tmp_path / "rows.jsonl"),
        "output": str(tmp_path / "out"),
    }


def test_options_of_a_method_hide_none_of_the_jobs(asked: dict[str, Any]) -> None:
    methods = ("vanilla", "random:budget=2,seed=5", "apet:schedule=encoder=3")
    work = BenchmarkJob.of(EvalConfig.of("image", **asked, methods=methods, budgets=(), seed=3))
    work.begin(RunRecord("job"))
    configs = [RunRecord.load(unit.folder).config for unit in work.units]
    assert [config["seed"] for config in configs] == [3, 3, 3]
    assert [config.get("random.seed") for config in configs] == [None, 5, None]
    assert [config["schedule"] for config in configs] == [None, None, "encoder=3"]


def test_finished_runs_know_how_many_rows_they_have(
    asked: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sweep with nothing left to do reads no data to show its plan."""
    work = BenchmarkJob.of(EvalConfig.of("image", **asked, methods=("vanilla",)))
    assert work.rows == 5
    work.begin(RunRecord("job"))
    for unit in work.units:
        assert unit.record is not None
        unit.record.end("finished")
        unit.record.save(unit.folder)

    def read(self: Manifest, limit: int | None = None) -> Any:
        raise AssertionError("the data is read")

    monkeypatch.setattr(Manifest, "index", read)
    assert BenchmarkJob.of(EvalConfig.of("image", **asked, methods=("vanilla",))).rows == 5
    assert BenchmarkJob.of(EvalConfig.of("image", **asked, methods=("vanilla",), limit=2)).rows == 2


def test_a_job_that_goes_on_makes_the_batches_it_made(asked: dict[str, Any]) -> None:
    """What a worker measured is in the records; where two runs differ, the smaller number fits both."""
    config = EvalConfig.of("image", **asked, methods=("vanilla", "uniform", "random"))
    work = BenchmarkJob.of(config)
    assert job_of([work], threads=1).batch_tokens is None
    work.begin(RunRecord("job"))
    for unit, found in zip(work.units, (4096, None, 2048), strict=True):
        assert unit.record is not None
        unit.record.metrics = {"load_s": 1.0} | ({"batch_tokens": found} if found else {})
        unit.record.save(unit.folder)
    again = BenchmarkJob.of(config)
    assert job_of([again], threads=1).batch_tokens == 2048
    assert (
        job_of([BenchmarkJob.of(replace(config, batch_tokens=512))], threads=1).batch_tokens == 512
    )
    assert job_of([again], threads=1).batch_size == ROWS
    assert job_of([again], threads=1, gpus=0.5).batch_size == ROWS_ON_GPU
    assert (
        job_of([BenchmarkJob.of(replace(config, batch_size=5))], threads=1, gpus=1).batch_size == 5
    )

"""Benchmark jobs and their records, without Ray or a model."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipelines.config.eval_config import EvalConfig
from pipelines.data.manifest import Manifest
from pipelines.inference.benchmark_job import BenchmarkJob
from pipelines.inference.job_spec import DEFAULT_BATCH_ROWS, DEFAULT_BATCH_ROWS_ON_GPU, job_spec
from pipelines.results.run_record import RunRecord


@pytest.fixture
def options(tmp_path: Path) -> dict[str, Any]:
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


def test_method_options_do_not_hide_flags_of_the_job(options: dict[str, Any]) -> None:
    methods = ("vanilla", "random:budget=2,seed=5", "apet:schedule=encoder=3")
    job = BenchmarkJob.of(EvalConfig.of("image", **options, methods=methods, budgets=(), seed=3))
    job.begin(RunRecord("job"))
    configs = [RunRecord.load(run.folder).config for run in job.runs]
    assert [config["seed"] for config in configs] == [3, 3, 3]
    assert [config.get("random.seed") for config in configs] == [None, 5, None]
    assert [config["schedule"] for config in configs] == [None, None, "encoder=3"]


def test_row_count_of_finished_runs_reads_no_data(
    options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A finished sweep shows its plan without reading its data."""
    job = BenchmarkJob.of(EvalConfig.of("image", **options, methods=("vanilla",)))
    assert job.row_count == 5
    job.begin(RunRecord("job"))
    for run in job.runs:
        assert run.record is not None
        run.record.end("finished")
        run.record.save(run.folder)

    def read(self: Manifest, limit: int | None = None) -> Any:
        raise AssertionError("the data was read")

    monkeypatch.setattr(Manifest, "index", read)
    assert BenchmarkJob.of(EvalConfig.of("image", **options, methods=("vanilla",))).row_count == 5
    assert (
        BenchmarkJob.of(EvalConfig.of("image", **options, methods=("vanilla",), limit=2)).row_count
        == 2
    )


def test_resumed_job_keeps_the_measured_batch_tokens(options: dict[str, Any]) -> None:
    """The limit is in the records; where two runs differ, the smaller one fits both."""
    config = EvalConfig.of("image", **options, methods=("vanilla", "uniform", "random"))
    job = BenchmarkJob.of(config)
    assert job_spec([job], threads=1).batch_tokens is None
    job.begin(RunRecord("job"))
    for run, tokens in zip(job.runs, (4096, None, 2048), strict=True):
        assert run.record is not None
        run.record.metrics = {"load_s": 1.0} | ({"batch_tokens": tokens} if tokens else {})
        run.record.save(run.folder)
    again = BenchmarkJob.of(config)
    assert job_spec([again], threads=1).batch_tokens == 2048
    assert (
        job_spec([BenchmarkJob.of(replace(config, batch_tokens=512))], threads=1).batch_tokens
        == 512
    )
    assert job_spec([again], threads=1).batch_size == DEFAULT_BATCH_ROWS
    assert job_spec([again], threads=1, gpus=0.5).batch_size == DEFAULT_BATCH_ROWS_ON_GPU
    assert (
        job_spec([BenchmarkJob.of(replace(config, batch_size=5))], threads=1, gpus=1).batch_size
        == 5
    )

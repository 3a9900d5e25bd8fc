"""A sweep's file and flags become one job for each model and benchmark."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import pytest

from jobs import sweep
from pipelines.config.sweep_config import DEMO_BUDGETS, SweepConfig, model_groups, parse_sweep


def parse_file(tmp_path: Path, text: str, *argv: str) -> SweepConfig:
    (tmp_path / "mine.yaml").write_text(text)
    return parse_sweep([str(tmp_path / "mine.yaml"), *argv])


FILE = """
limit: 50
methods: [vanilla, apet]
budgets: [64]
frames: 4
models:
  - demo
  - model: some/model
    dtype: bfloat16
    limit: 70
benchmarks:
  - shapes
  - benchmark: motion
    budgets: [12.5%, 25%]
    limit: 90
  - data: mine.jsonl
    kind: video
"""


def test_every_model_runs_every_benchmark(tmp_path: Path) -> None:
    sweep_config = parse_file(tmp_path, FILE)
    assert sweep_config.name == "mine"
    assert [(job.model, job.benchmark, job.kind) for job in sweep_config.jobs] == [
        (model, *bench)
        for model in ("demo", "some/model")
        for bench in (("shapes", "image"), ("motion", "video"), ("manifest", "video"))
    ]
    assert [job.limit for job in sweep_config.jobs] == [50, 90, 50, 70, 90, 70]
    assert [job.dtype for job in sweep_config.jobs] == ["auto"] * 3 + ["bfloat16"] * 3
    assert sweep_config.jobs[1].budgets == ("12.5%", "25%")
    assert sweep_config.jobs[1].frames == 4
    assert [len(job.method_specs) for job in sweep_config.jobs] == [2, 3, 2] * 2


def test_flags_override_the_file(tmp_path: Path) -> None:
    sweep_config = parse_file(
        tmp_path, FILE, "--limit", "5", "--model", "other", "--benchmark", "shapes", "--plan"
    )
    assert sweep_config.only_plan
    [job] = sweep_config.jobs
    assert (job.model, job.benchmark, job.limit, job.dtype) == ("other", "shapes", 5, "auto")


def test_schedule_and_budgets_replace_each_other(tmp_path: Path) -> None:
    text = (
        "schedule: encoder=64\nmethods: [apet]\n"
        "benchmarks: [shapes, {benchmark: shapes, split: train, budgets: [128]}]"
    )
    first, second = parse_file(tmp_path, text).jobs
    assert (first.schedule, first.budgets) == ("encoder=64", ())
    assert (second.schedule, second.budgets) == (None, ("128",))
    assert [job.budgets for job in parse_file(tmp_path, text, "--budget", "32").jobs] == [
        ("32",),
        ("32",),
    ]


def test_without_arguments_the_demo_runs() -> None:
    images, videos = parse_sweep([]).jobs
    assert (images.benchmark, videos.benchmark) == ("shapes", "motion")
    assert images.model == videos.model == "demo"
    assert images.limit == videos.limit == 300
    assert images.budgets == DEMO_BUDGETS["image"]
    assert videos.budgets == DEMO_BUDGETS["video"]
    assert len(images.method_specs) == 1 + 3 * (len(images.methods) - 1)


def test_other_models_than_the_demo_get_shares_as_budgets() -> None:
    [job] = parse_sweep(["--model", "some/model", "--data", "mine.jsonl"]).jobs
    assert job.budgets == ("33%", "22%", "11%")
    assert job.limit is None


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("models: demo", "expected a list"),
        ("models: [{dtype: float32}]", "has no model; add 'model: ...'"),
        ("benchmarks: [shap]", "'shap'; did you mean 'shapes'"),
        (
            "benchmarks: [{benchmark: shapes, limmit: 3}]",
            "benchmark: unknown key 'limmit'; did you mean 'limit'",
        ),
        ("method: [nothing]", "unknown method 'nothing'"),
        ("- 1", "expected keys and values"),
        ("budgets: [64]\nschedule: encoder=64", "exclude each other"),
        (
            "models: [{model: demo, output: elsewhere}]",
            "output can only be set for the whole sweep",
        ),
        ("benchmarks: [{data: x.jsonl, kind: audio}]", "'audio' is not one of image, video"),
    ],
)
def test_wrong_file_has_an_error(tmp_path: Path, text: str, expected: str) -> None:
    with pytest.raises(ValueError, match=re.escape(expected)):
        parse_file(tmp_path, text)


@pytest.mark.parametrize(
    "argv", [["--modle", "x"], ["a.yaml", "--config", "b.yaml"], ["no-such.yaml"]]
)
def test_wrong_command_prints_one_line_and_returns_2(
    argv: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["sweep.py", *argv])
    assert sweep.main() == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("sweep.py: ")


def test_help_fits_100_columns(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse_sweep(["--help"])
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= 100
    assert "--frames" in text
    assert text.count("May be repeated") == 4


def test_jobs_of_one_model_are_in_one_group(tmp_path: Path) -> None:
    groups = model_groups(parse_file(tmp_path, FILE).jobs)
    assert [[job.benchmark for job in group] for group in groups] == [
        ["shapes", "motion", "manifest"]
    ] * 2


def test_jobs_with_different_workers_are_in_different_groups(tmp_path: Path) -> None:
    text = "models: [demo]\nbenchmarks: [shapes, {benchmark: shapes, gpus_per_actor: 2}]"
    groups: Any = model_groups(parse_file(tmp_path, text).jobs)
    assert len(groups) == 2

"""A sweep's file and flags become one job for each model and benchmark."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pipelines.config.sweep_config import DEMO, SweepConfig, model_groups, parse_sweep


def jobs(tmp_path: Path, text: str, *argv: str) -> SweepConfig:
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


def test_every_model_meets_every_benchmark(tmp_path: Path) -> None:
    found = jobs(tmp_path, FILE)
    assert found.name == "mine"
    assert [(job.model, job.benchmark, job.kind) for job in found.jobs] == [
        (model, *bench)
        for model in ("demo", "some/model")
        for bench in (("shapes", "image"), ("motion", "video"), ("manifest", "video"))
    ]
    assert [job.limit for job in found.jobs] == [50, 90, 50, 70, 90, 70]
    assert [job.dtype for job in found.jobs] == ["auto"] * 3 + ["bfloat16"] * 3
    assert found.jobs[1].budgets == ("12.5%", "25%")
    assert found.jobs[1].frames == 4
    assert [len(job.points) for job in found.jobs] == [2, 3, 2] * 2


def test_flags_override_the_file(tmp_path: Path) -> None:
    found = jobs(
        tmp_path, FILE, "--limit", "5", "--model", "other", "--benchmark", "shapes", "--plan"
    )
    assert found.only_plan
    [job] = found.jobs
    assert (job.model, job.benchmark, job.limit, job.dtype) == ("other", "shapes", 5, "auto")


def test_a_schedule_and_budgets_replace_each_other(tmp_path: Path) -> None:
    text = "schedule: encoder=64\nmethods: [apet]\nbenchmarks: [shapes, {benchmark: shapes, split: train, budgets: [128]}]"
    first, second = jobs(tmp_path, text).jobs
    assert (first.schedule, first.budgets) == ("encoder=64", ())
    assert (second.schedule, second.budgets) == (None, ("128",))
    assert [job.budgets for job in jobs(tmp_path, text, "--budget", "32").jobs] == [
        ("32",),
        ("32",),
    ]


def test_without_arguments_it_is_the_demo() -> None:
    images, videos = parse_sweep([]).jobs
    assert (images.benchmark, videos.benchmark) == ("shapes", "motion")
    assert images.model == videos.model == "demo"
    assert images.limit == videos.limit == 300
    assert list(images.budgets) == DEMO["image"]
    assert list(videos.budgets) == DEMO["video"]
    assert len(images.points) == 1 + 3 * (len(images.methods) - 1)


def test_models_of_which_little_is_known_get_shares() -> None:
    [job] = parse_sweep(["--model", "some/model", "--data", "mine.jsonl"]).jobs
    assert job.budgets == ("33%", "22%", "11%")
    assert job.limit is None


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("models: demo", "give a list"),
        ("models: [{dtype: float32}]", "names no model; add 'model: ...'"),
        ("benchmarks: [shap]", "no benchmark 'shap'; did you mean 'shapes'"),
        (
            "benchmarks: [{benchmark: shapes, limmit: 3}]",
            "benchmark: there is no key 'limmit'; did you mean 'limit'",
        ),
        ("method: [nothing]", "no method 'nothing'"),
        ("- 1", "holds no keys and values"),
        ("budgets: [64]\nschedule: encoder=64", "exclude each other"),
        ("models: [{model: demo, output: elsewhere}]", "output is of the whole sweep"),
        ("benchmarks: [{data: x.jsonl, kind: audio}]", "'audio' is none of image, video"),
    ],
)
def test_what_is_wrong_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, says: str
) -> None:
    with pytest.raises(SystemExit) as ended:
        jobs(tmp_path, text)
    assert ended.value.code == 2
    assert says in capsys.readouterr().err


@pytest.mark.parametrize(
    "argv", [["--modle", "x"], ["a.yaml", "--config", "b.yaml"], ["no-such.yaml"]]
)
def test_wrong_commands_are_refused(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        parse_sweep(argv)
    assert ended.value.code == 2
    assert capsys.readouterr().err.startswith("sweep.py: ")


def test_one_model_is_loaded_once_for_all_benchmarks(tmp_path: Path) -> None:
    groups = model_groups(jobs(tmp_path, FILE).jobs)
    assert [[job.benchmark for job in group] for group in groups] == [
        ["shapes", "motion", "manifest"]
    ] * 2


def test_jobs_that_cannot_share_workers_do_not(tmp_path: Path) -> None:
    text = "models: [demo]\nbenchmarks: [shapes, {benchmark: shapes, gpus_per_actor: 2}]"
    found: Any = model_groups(jobs(tmp_path, text).jobs)
    assert len(found) == 2

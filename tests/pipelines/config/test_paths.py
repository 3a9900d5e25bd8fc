"""Resolved paths of a config."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from pipelines.config import paths
from pipelines.config.eval_config import EvalConfig
from pipelines.config.paths import resolve_paths


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's directory, and a home."""
    (tmp_path / "home").mkdir()
    (tmp_path / "demo/demo-llava").mkdir(parents=True)
    (tmp_path / "demo/demo-video-llava").mkdir()
    (tmp_path / "project").mkdir()
    monkeypatch.chdir(tmp_path / "project")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setattr(paths, "DEMO", tmp_path / "demo")
    return tmp_path


def resolved(kind: Any = "image", **given: Any) -> EvalConfig:
    return resolve_paths(EvalConfig.of(kind, **given))


def test_paths_are_relative_to_the_working_directory(here: Path) -> None:
    config = resolved(data="../project/q.jsonl", media_root="s3://b/photos", output="out/")
    assert config.data == f"{here}/project/q.jsonl"
    assert config.media_root == "s3://b/photos"
    assert config.output == f"{here}/project/out"
    assert config.tracking_uri == f"sqlite:///{here}/project/out/mlflow.db"
    assert config.model == f"{here}/demo/demo-llava"
    assert config.model_name == "demo-llava"
    assert resolved("video").model_name == "demo-video-llava"
    assert resolve_paths(config) == config


def test_model_is_a_folder_or_a_name_on_the_hub(here: Path) -> None:
    (here / "project/mine").mkdir()
    assert resolved(model="mine").model == f"{here}/project/mine"
    assert resolved(model="org/name").model == "org/name"
    with pytest.raises(ValueError, match="no such folder"):
        resolved(model="./nowhere")
    shutil.rmtree(here / "demo")
    with pytest.raises(ValueError, match="the demo model is not in"):
        resolved()


@pytest.mark.parametrize(
    ("given", "environment", "expected"),
    [
        (None, None, "sqlite:///{here}/project/results/mlflow.db"),
        (None, "http://host:5000", "http://host:5000"),
        ("http://other:1", "http://host:5000", "http://other:1"),
        ("sqlite:///runs.db", None, "sqlite:///{here}/project/runs.db"),
        ("runs.db", None, "sqlite:///{here}/project/runs.db"),
        ("sqlite:////abs/runs.db", None, "sqlite:////abs/runs.db"),
        ("databricks", None, "databricks"),
    ],
)
def test_tracking_uri_comes_from_flag_environment_or_output(
    given: str | None,
    environment: str | None,
    expected: str,
    here: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if environment:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", environment)
    assert resolved(tracking_uri=given).tracking_uri == expected.format(here=here)


def test_tracking_of_remote_answers_is_in_the_home_folder(here: Path) -> None:
    assert (
        resolved(output="s3://b/o").tracking_uri == f"sqlite:///{here}/home/apet-results/mlflow.db"
    )
    assert resolved(output=f"file://{here}/o").tracking_uri == f"sqlite:///{here}/o/mlflow.db"
    with pytest.raises(ValueError, match=r"sqlite:///mlruns/mlflow\.db"):
        resolved(tracking_uri="mlruns")


@pytest.mark.parametrize("by", ["environment", "directory"])
def test_submitted_job_writes_nothing_to_its_working_directory(
    by: str, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if by == "environment":
        monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    else:
        copy = here / "session/runtime_resources/working_dir_files/_ray_pkg_1"
        copy.mkdir(parents=True)
        monkeypatch.chdir(copy)
    Path("q.jsonl").touch()
    config = resolved(data="q.jsonl")
    assert config.output == f"{here}/home/apet-results"
    assert config.tracking_uri == f"sqlite:///{here}/home/apet-results/mlflow.db"
    assert config.data == str(Path.cwd() / "q.jsonl")
    assert resolved(output="/abs/o").output == "/abs/o"
    for wrong in (
        {"output": "out"},
        {"tracking_uri": "sqlite:///runs.db"},
        {"data": "other.jsonl"},
    ):
        with pytest.raises(ValueError, match=r"absolute path.*\$PWD/"):
            resolved(**wrong)

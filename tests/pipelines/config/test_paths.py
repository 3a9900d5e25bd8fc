"""What the user's paths mean in this process, and what a model's files are."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from pipelines.config import paths
from pipelines.config.eval_config import EvalConfig
from pipelines.config.paths import model_fingerprint, resolve_paths


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


def test_paths_are_relative_to_the_user(here: Path) -> None:
    config = resolved(data="../project/q.jsonl", media_root="s3://b/photos", output="out/")
    assert config.data == f"{here}/project/q.jsonl"
    assert config.media_root == "s3://b/photos"
    assert config.output == f"{here}/project/out"
    assert config.tracking_uri == f"sqlite:///{here}/project/out/mlflow.db"
    assert config.model == f"{here}/demo/demo-llava"
    assert config.model_name == "demo-llava"
    assert resolved("video").model_name == "demo-video-llava"
    assert resolve_paths(config) == config


def test_models_are_folders_or_names(here: Path) -> None:
    (here / "project/mine").mkdir()
    assert resolved(model="mine").model == f"{here}/project/mine"
    assert resolved(model="org/name").model == "org/name"
    with pytest.raises(ValueError, match="no such folder"):
        resolved(model="./nowhere")
    shutil.rmtree(here / "demo")
    with pytest.raises(ValueError, match="the demo model is not in"):
        resolved()


@pytest.mark.parametrize(
    ("given", "environment", "found"),
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
def test_where_tracking_goes(
    given: str | None,
    environment: str | None,
    found: str,
    here: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if environment:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", environment)
    assert resolved(tracking_uri=given).tracking_uri == found.format(here=here)


def test_tracking_beside_remote_answers_is_at_home(here: Path) -> None:
    assert (
        resolved(output="s3://b/o").tracking_uri == f"sqlite:///{here}/home/apet-results/mlflow.db"
    )
    assert resolved(output=f"file://{here}/o").tracking_uri == f"sqlite:///{here}/o/mlflow.db"
    with pytest.raises(ValueError, match=r"sqlite:///mlruns/mlflow\.db"):
        resolved(tracking_uri="mlruns")


@pytest.mark.parametrize("by", ["environment", "directory"])
def test_a_submitted_job_writes_nothing_where_it_vanishes(
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


def test_a_model_is_its_files_wherever_they_are(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    (folder / "part").mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "part/weights.safetensors").write_bytes(bytes(5 * 2**20))
    first = model_fingerprint(str(folder))
    assert model_fingerprint(str(shutil.copytree(folder, tmp_path / "copy"))) == first
    (folder / "README.md").write_text("words")
    (folder / ".cache").mkdir()
    (folder / ".cache/x").touch()
    assert model_fingerprint(str(folder)) == first
    seen = {first}
    for place in (0, 5 * 2**19, 5 * 2**20 - 2**17):  # a layer somewhere
        with (folder / "part/weights.safetensors").open("r+b") as file:
            file.seek(place)
            file.write(b"1" * 2**17)
        seen.add(model_fingerprint(str(folder)))
    (folder / "config.json").write_text("{ }")
    seen.add(model_fingerprint(str(folder)))
    (folder / "config.json").rename(folder / "other.json")
    seen.add(model_fingerprint(str(folder)))
    assert len(seen) == 6
    assert model_fingerprint("org/name", "v1") == "org/name@v1"
    assert model_fingerprint("org/name") == "org/name@main"

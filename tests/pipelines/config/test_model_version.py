"""Commits of models on the hub, which stay the same in all jobs with one output; fingerprints."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from huggingface_hub import HfApi, constants

from pipelines import job
from pipelines.config import model_version
from pipelines.config.eval_config import EvalConfig
from pipelines.config.model_version import model_fingerprint
from pipelines.inference.benchmark_job import BenchmarkJob
from pipelines.results.run_record import RunRecord

ONE, OTHER = "1" * 40, "2" * 40


class HubError(Exception):
    """An answer of the hub with this status."""

    def __init__(self, status: int) -> None:
        super().__init__(f"status {status}")
        self.response = SimpleNamespace(status_code=status)


@dataclass
class FakeHub:
    """A hub whose branches are at `sha`, and jobs with a model on it."""

    folder: Path
    sha: str | None = None  # None: it does not respond
    requests: int = 0

    def model_info(self, *_: object, **options: object) -> SimpleNamespace:
        self.requests += 1
        if self.sha is None:
            raise ConnectionError("no network")
        return SimpleNamespace(sha=self.sha)

    def new_job(self, output: Path, **values: Any) -> BenchmarkJob:
        """The job of a new process."""
        model_version._resolve.cache_clear()
        constants.HF_HUB_OFFLINE = False
        rows = self.folder / "rows.jsonl"
        rows.write_text(json.dumps({"id": "a", "media": "none.png", "question": "What?"}))
        values = {"data": str(rows), "output": str(output), "methods": ("vanilla",), **values}
        return BenchmarkJob.of(EvalConfig.of("image", model="org/m", **values))

    def start_job(self, output: Path, **values: Any) -> str:
        """Start the job of a new process. Returns the ID of its run."""
        started = self.new_job(output, **values)
        assert job.execute([[started]], RunRecord("job")) == "finished"
        return started.runs[0].run_id


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    fake = FakeHub(tmp_path)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(HfApi, "model_info", fake.model_info)
    monkeypatch.setattr("pipelines.config.model_defaults._model_config", lambda *_: {})
    # The tests only need jobs to start, not to answer anything.
    monkeypatch.setattr(job, "_run_group", lambda *_: ("finished", ""))
    monkeypatch.setattr(
        "pipelines.results.mlflow_tracker.Tracker",
        lambda *_: SimpleNamespace(watch=lambda *_: 0, stop=lambda: True),
    )
    yield fake
    model_version._resolve.cache_clear()


def test_resumed_job_keeps_its_commit_when_the_branch_moves_or_the_hub_is_down(
    hub: FakeHub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.sha, output = ONE, tmp_path / "results"
    first = hub.start_job(output)
    assert ONE not in capsys.readouterr().out
    for hub.sha in (OTHER, None):
        assert hub.start_job(output) == first
    assert hub.requests == 1
    assert f"org/m@main is pinned to {ONE}" in capsys.readouterr().out
    hub.sha = OTHER
    elsewhere = hub.start_job(tmp_path / "another")
    assert elsewhere != first
    assert hub.start_job(output, revision=OTHER) == elsewhere
    (output / "org--m@main.commit").unlink()
    assert hub.start_job(output) == elsewhere


def test_commit_of_another_revision_is_stored_in_its_own_file(hub: FakeHub, tmp_path: Path) -> None:
    hub.sha = ONE
    hub.start_job(tmp_path / "results", revision="refs/pr/1")
    files = [file.name for file in (tmp_path / "results").glob("*.commit")]
    assert files == ["org--m@refs--pr--1.commit"]


def test_job_that_does_not_start_stores_no_commit(hub: FakeHub, tmp_path: Path) -> None:
    """Neither a plan nor a command with missing data."""
    hub.sha, output = ONE, tmp_path / "results"
    early = hub.new_job(output)
    with pytest.raises(FileNotFoundError):
        hub.new_job(output, data=str(tmp_path / "nothing.jsonl"))
    assert not output.exists()
    hub.sha = OTHER
    hub.start_job(output)
    with pytest.raises(ValueError, match=f"another job .* with org/m@main at {OTHER}"):
        job.execute([[early]], RunRecord("early"))


def test_file_without_a_commit_is_an_error(hub: FakeHub, tmp_path: Path) -> None:
    (tmp_path / "org--m@main.commit").write_text("main")
    with pytest.raises(ValueError, match="does not contain a commit; delete it"):
        hub.new_job(tmp_path)


def test_without_the_hub_the_commit_in_the_cache_is_used(
    hub: FakeHub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output, repository = tmp_path / "results", tmp_path / "cache" / "models--org--m"
    # A job loads a commit, which leaves only a snapshot in the cache.
    (repository / "snapshots" / ONE).mkdir(parents=True)
    first = hub.start_job(output)
    assert f"using the local copy of org/m@main, commit {ONE}" in capsys.readouterr().out
    # The snapshot may not be the commit of another revision.
    assert hub.new_job(output, revision="v1").config.revision == "v1"
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(OTHER)
    (repository / "snapshots" / OTHER).mkdir()
    assert hub.start_job(output) == first
    assert hub.start_job(tmp_path / "another") == hub.start_job(output, revision=OTHER) != first


def test_job_without_a_known_commit_does_not_start(
    hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The hub gave its files but not its commit: a resumed job might use another model."""
    monkeypatch.setattr(
        "pipelines.inference.model_info.model_info",
        lambda *_: SimpleNamespace(check=lambda spec: None),
    )
    with pytest.raises(ValueError, match="cannot resolve org/m@main to a commit"):
        hub.new_job(tmp_path / "results").check()


@pytest.mark.parametrize(
    ("error", "offline"),
    [
        (ConnectionError("refused"), True),
        (TimeoutError("timed out"), True),
        (RuntimeError("an error of the HTTP library"), True),
        (HubError(503), True),
        (HubError(404), False),
        (HubError(401), False),
        (ValueError("not a valid name"), False),
    ],
    ids=str,
)
def test_models_come_from_the_cache_if_the_hub_does_not_answer(
    error: Exception, offline: bool, hub: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    def model_info(*_: object, **options: object) -> None:
        raise error

    monkeypatch.setattr(HfApi, "model_info", model_info)
    model_version.check_hub.cache_clear()
    model_version.check_hub("org/m", ONE)
    assert model_version.is_offline() == offline


def test_fingerprint_depends_on_the_files_not_on_their_path(tmp_path: Path) -> None:
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
    prints = {first}
    for offset in (0, 5 * 2**19, 5 * 2**20 - 2**17):  # one layer changes
        with (folder / "part/weights.safetensors").open("r+b") as file:
            file.seek(offset)
            file.write(b"1" * 2**17)
        prints.add(model_fingerprint(str(folder)))
    (folder / "config.json").write_text("{ }")
    prints.add(model_fingerprint(str(folder)))
    (folder / "config.json").rename(folder / "other.json")
    prints.add(model_fingerprint(str(folder)))
    assert len(prints) == 6
    assert model_fingerprint("org/name", "v1") == "org/name@v1"
    assert model_fingerprint("org/name") == "org/name@main"

"""At which commit a model on the hub is asked: the same one in all jobs with one output."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pipelines import job
from pipelines.config import hub
from pipelines.config.eval_config import EvalConfig
from pipelines.inference.benchmark_job import BenchmarkJob
from pipelines.results.run_record import RunRecord

ONE, OTHER = "1" * 40, "2" * 40


@dataclass
class Hub:
    """A hub whose branches stand at what the test says, and what this machine has of its models, nothing so far."""

    folder: Path
    sha: str | None = None  # None: it does not answer
    questions: int = 0

    def model_info(self, *_: object, **asked: object) -> SimpleNamespace:
        self.questions += 1
        if self.sha is None:
            raise ConnectionError("no network")
        return SimpleNamespace(sha=self.sha)

    def work(self, output: Path, **more: Any) -> BenchmarkJob:
        """What a new process has to do."""
        hub._found.cache_clear()
        rows = self.folder / "rows.jsonl"
        rows.write_text(json.dumps({"id": "a", "media": "none.png", "question": "What?"}))
        given = {"data": str(rows), "output": str(output), "methods": ("vanilla",), **more}
        return BenchmarkJob.of(EvalConfig.of("image", model="org/m", **given))

    def began(self, output: Path, **more: Any) -> str:
        """The folder of the run of a new process, which begins."""
        work = self.work(output, **more)
        assert job.carry_out([[work]], RunRecord("job")) == "finished"
        return work.units[0].run_id


@pytest.fixture
def at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    from huggingface_hub import HfApi, constants

    found = Hub(tmp_path)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(HfApi, "model_info", found.model_info)
    monkeypatch.setattr(
        job, "_group", lambda *_: ("finished", "")
    )  # beginning is all that matters here
    monkeypatch.setattr(
        "pipelines.results.mlflow_tracker.Tracker",
        lambda *_: SimpleNamespace(watch=lambda *_: 0, stop=lambda: True),
    )
    yield found
    hub._found.cache_clear()


def test_a_job_that_goes_on_asks_the_model_that_it_began_with(
    at: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also when its branch has moved, or the hub is down; and what is finished asks nobody."""
    at.sha, output = ONE, tmp_path / "results"
    first = at.began(output)
    assert ONE not in capsys.readouterr().out
    for at.sha in (OTHER, None):
        assert at.began(output) == first
    assert at.questions == 1
    assert f"org/m@main is at {ONE}" in capsys.readouterr().out
    at.sha = OTHER
    elsewhere = at.began(tmp_path / "another")
    assert elsewhere != first
    assert at.began(output, revision=OTHER) == elsewhere
    (output / "org--m@main.commit").unlink()
    assert at.began(output) == elsewhere


def test_a_tag_has_a_note_of_its_own(at: Hub, tmp_path: Path) -> None:
    at.sha = ONE
    at.began(tmp_path / "results", revision="refs/pr/1")
    assert [file.name for file in (tmp_path / "results").glob("*.commit")] == [
        "org--m@refs--pr--1.commit"
    ]


def test_who_does_not_begin_decides_nothing(at: Hub, tmp_path: Path) -> None:
    """A plan is only looked at, and data that is not there is a wrong command."""
    at.sha, output = ONE, tmp_path / "results"
    early = at.work(output)
    with pytest.raises(FileNotFoundError):
        at.work(output, data=str(tmp_path / "nothing.jsonl"))
    assert not output.exists()
    at.sha = OTHER
    at.began(output)
    with pytest.raises(
        ValueError, match=f"another job has begun meanwhile, with org/m@main at {OTHER}"
    ):
        job.carry_out([[early]], RunRecord("early"))


def test_a_note_that_is_none_is_refused(at: Hub, tmp_path: Path) -> None:
    (tmp_path / "org--m@main.commit").write_text("main")
    with pytest.raises(ValueError, match="holds no commit; delete it"):
        at.work(tmp_path)


def test_without_the_hub_a_model_is_what_this_machine_has_of_it(
    at: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output, repository = tmp_path / "results", tmp_path / "cache" / "models--org--m"
    (repository / "snapshots" / ONE).mkdir(parents=True)  # of a job, which loads a commit
    known = at.began(output)
    assert f"taken is what this machine has of it, {ONE}" in capsys.readouterr().out
    assert at.work(output, revision="v1").config.revision == "v1"  # which it may not be
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(OTHER)
    (repository / "snapshots" / OTHER).mkdir()
    assert at.began(output) == known
    assert at.began(tmp_path / "another") == at.began(output, revision=OTHER) != known


def test_a_job_does_not_begin_with_a_model_of_no_known_commit(
    at: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The hub gave its files, but not its commit: the same command might go on with another model."""
    monkeypatch.setattr(
        "pipelines.config.model_info.model_info",
        lambda *_: SimpleNamespace(refuse=lambda point: None),
    )
    with pytest.raises(ValueError, match="did not say which commit org/m@main is"):
        at.work(tmp_path / "results").refuse()

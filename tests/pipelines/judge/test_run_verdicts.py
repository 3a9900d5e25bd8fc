"""Verdicts on the answers of runs, and the command that judges runs."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from pipelines.judge import Unavailable, Verdict
from pipelines.judge.endpoint import KEY
from pipelines.judge.run_verdicts import MAX_CONSECUTIVE_FAILURES, judge_run, summarize
from pipelines.metrics.verdicts import Judge
from pipelines.metrics.word_match import Offline
from pipelines.results import answers
from pipelines.results.run_record import RunRecord
from tests.pipelines.judge.chat_server import SECRET, YES, ChatServer, Serve, make_run, replying
from tests.support import ROOT

RIGHT, WRONG = Verdict(True, 5, "r"), Verdict(False, 2)
MALFORMED = Verdict(None, None, "", "malformed: x")


class ScriptedJudge(Judge):
    name, prompt_hash, version = "scripted/x y", "abc", "7"  # type: ignore[assignment]

    def __init__(self, *verdicts: Verdict) -> None:
        self.verdicts = verdicts

    def judge(self, items: Any) -> Iterator[Verdict]:
        for _, verdict in zip(items, self.verdicts, strict=True):
            yield verdict


def test_verdicts_are_written_beside_the_answers_and_into_the_record(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", 6)
    error = {"status": "error", "error": "OSError: no file"}
    others = [
        {"row_id": "s-error", "question": "?", "reference": ["x"], **error},
        {"row_id": "t-open", "question": "?", "reference": [], "prediction": "x", "status": "ok"},
        {"row_id": "u-open", "question": "?", "prediction": "x", "status": "ok"},
    ]
    answers.AnswerParts(run, ["others"]).write(others)
    before = answers.read(run)
    outcome = judge_run(run, ScriptedJudge(RIGHT, WRONG, MALFORMED, RIGHT, RIGHT, WRONG))
    assert (outcome.rows, outcome.unjudged) == (5, 1)
    assert (outcome.unanswered, outcome.unreferenced) == (1, 2)
    assert outcome.accuracy is not None
    assert outcome.accuracy.value == 0.6
    assert outcome.score is not None
    assert outcome.score.value == pytest.approx(19 / 5)
    assert 0 <= outcome.score.low <= 19 / 5 <= outcome.score.high <= 5
    record = RunRecord.load(run)
    assert record.metrics["judge/accuracy"] == 0.6
    assert record.metrics["judge/accuracy_ci_low"] == outcome.accuracy.low
    assert record.metrics["judge/score"] == pytest.approx(3.8)
    assert record.metrics["judge/unjudged_malformed"] == 1
    assert record.metrics["accuracy"] == 0.5
    assert record.tags == {
        "method": "apet",
        "judge/name": "scripted/x y",
        "judge/prompt_hash": "abc",
        "judge/version": "7",
    }
    assert record.history[-1]["judge/accuracy"] == 0.6
    assert outcome.file == "verdicts-scripted-x-y-abc.arrow"
    verdicts = pa.ipc.open_file(run.read(outcome.file)).read_all()
    assert verdicts["row_id"].to_pylist() == [f"row-{number:03d}" for number in range(6)]
    assert verdicts["score"].to_pylist() == [5, 2, None, 5, 5, 2]
    assert verdicts["error"].to_pylist()[2] == "malformed: x"
    assert verdicts.schema.metadata[b"judge/name"] == b"scripted/x y"
    assert answers.read(run).equals(before)
    assert not run.exists("lock.json")


def test_second_judging_replaces_the_metrics(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", 4)
    judge_run(run, ScriptedJudge(MALFORMED, RIGHT, RIGHT, RIGHT))
    judge_run(run, ScriptedJudge(WRONG, WRONG, WRONG, WRONG))
    record = RunRecord.load(run)
    assert record.metrics["judge/accuracy"] == 0
    assert "judge/unjudged_malformed" not in record.metrics
    assert [entry["judge/accuracy"] for entry in record.history] == [1, 0]
    assert [entry["judge/unjudged_malformed"] for entry in record.history] == [1, 0]


def test_offline_metric_is_not_named_judge(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", 6)
    outcome = judge_run(run, Offline())
    record = RunRecord.load(run)
    assert record.metrics["offline/accuracy"] == pytest.approx(4 / 6)
    assert "offline/old" not in record.metrics
    assert not any(name.startswith("judge/") for name in [*record.metrics, *record.tags])
    assert "NOT the judge" in summarize("run", outcome)
    assert run.exists("verdicts-offline.arrow")


def test_judge_that_always_fails_is_given_up(tmp_path: Path) -> None:
    rows = MAX_CONSECUTIVE_FAILURES + 10
    run = make_run(tmp_path / "run", rows)
    before = run.read("record.json")
    message = f"no verdict {MAX_CONSECUTIVE_FAILURES} times in a row; the last time malformed: x"
    with pytest.raises(Unavailable, match=message):
        judge_run(run, ScriptedJudge(*[MALFORMED] * rows))
    assert run.read("record.json") == before
    assert not run.exists("lock.json")


def run_command(*arguments: str, key: str = "") -> subprocess.CompletedProcess[str]:
    env = {**os.environ, KEY: key, "PYTHONPATH": str(ROOT), "no_proxy": "127.0.0.1"}
    command = [sys.executable, str(ROOT / "jobs" / "judge.py"), *arguments]
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=120)


@pytest.mark.usefixtures("subprocesses")
def test_command_judges_two_runs_and_tracks_them(serve: Serve, tmp_path: Path) -> None:
    server = serve(replying("?", times=3))
    runs = [make_run(tmp_path / name, 6) for name in ("one", "two")]
    folders = [str(tmp_path / name) for name in ("one", "two")]
    command = [*folders, "--url", server.url, "--model", "gpt", "--concurrency", "1"]
    done = run_command(*command, key=SECRET)
    assert done.returncode == 0, done.stderr
    metrics = json.loads(done.stdout.splitlines()[-1])
    assert metrics["one"]["judge/unjudged"] == 1
    assert metrics["two"]["judge/accuracy"] == 1
    assert metrics["two"]["judge/version"] == "1 judge-0613"
    assert "accuracy  100.0 % [" in done.stdout
    assert "5 judged, 1 unjudged (1 malformed), 0 without an answer" in done.stdout
    assert len(server.bodies) == 9, "both runs have the same answers"
    records = "".join(str(run.read("record.json")) for run in runs)
    assert SECRET not in done.stdout + done.stderr + records
    assert (tmp_path / "judge-cache").is_dir()
    assert {file.suffix for file in (tmp_path / "one").iterdir()} == {".parquet", ".json", ".arrow"}
    tracking = ["--tracking-uri", f"sqlite:///{tmp_path}/mlflow.db"]
    tracked = run_command(*command, *tracking, key=SECRET)
    assert tracked.returncode == 0
    assert "mlflow    one: " in tracked.stdout
    assert len(server.bodies) == 9, "all replies are in the cache"


@pytest.mark.usefixtures("subprocesses")
def test_command_resumes_after_an_interrupt(serve: Serve, tmp_path: Path) -> None:
    def respond(server: ChatServer, handler: BaseHTTPRequestHandler, number: int) -> None:
        time.sleep(0.1)
        server.reply(handler, YES)

    server, run = serve(respond), make_run(tmp_path / "run", 60)
    options = ["--judge", "endpoint", "--url", server.url, "--model", "gpt", "--concurrency", "2"]
    command = [sys.executable, str(ROOT / "jobs" / "judge.py"), str(tmp_path / "run"), *options]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "no_proxy": "127.0.0.1"}
    # a shell ignores SIGINT for processes in the background, and children inherit that
    allow = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, env=env, text=True, preexec_fn=allow, **pipes) as process:
        while len(server.bodies) < 6:
            assert process.poll() is None, "it ended by itself"
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    assert stderr.startswith("interrupted; ")
    assert stderr.count("\n") == 1
    assert len(server.bodies) < 40
    assert not any(name.startswith(("verdicts", "lock")) for name in run.names())
    assert run_command(str(tmp_path / "run"), *options).returncode == 0
    assert len(server.bodies) == 60


@pytest.mark.usefixtures("subprocesses")
def test_command_refuses_wrong_input_with_one_line(tmp_path: Path) -> None:
    make_run(tmp_path / "run", 3)
    run = str(tmp_path / "run")
    for arguments, message in (
        ([str(tmp_path / "none")], "holds no answers; give the folders of runs"),
        (
            [run, "--url", "http://localhost:1/v1"],
            "--url is not for --judge offline; APET_JUDGE_API_KEY is not set",
        ),
        ([run, "--judge", "offline", "--cache", "x"], "--cache is not for --judge offline; "),
    ):
        done = run_command(*arguments)
        assert (done.returncode, done.stdout) == (2, "")
        assert message in done.stderr
        assert done.stderr.count("\n") == 1


@pytest.mark.usefixtures("subprocesses")
def test_command_without_a_key_is_offline(tmp_path: Path) -> None:
    make_run(tmp_path / "run", 6)
    done = run_command(str(tmp_path / "run"))
    assert done.returncode == 0, done.stderr
    assert "run: offline  (a metric, NOT the judge)" in done.stdout
    assert json.loads(done.stdout.splitlines()[-1])["run"]["offline/name"] == "offline"

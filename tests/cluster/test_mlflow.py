"""Records in a real MLflow: a database file, and a server that is down, hangs or comes back."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
import warnings
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from pipelines.results.lock import Lock
from pipelines.results.mlflow_experiment import MlflowExperiment
from pipelines.results.mlflow_tracker import Tracker, dashboard, replay
from pipelines.results.run_record import RunRecord, commit_of, git_commit
from pipelines.results.storage import Folder
from tests.support import ROOT

pytestmark = pytest.mark.usefixtures("subprocesses", "servers")
NUMBER = count()


@pytest.fixture(scope="session")
def database(tmp_path_factory: pytest.TempPathFactory) -> str:
    """One file for all tests, since creating it takes seconds. Each test has its own experiment."""
    return f"sqlite:///{tmp_path_factory.mktemp('mlflow') / 'deep' / 'mlflow.db'}"


@pytest.fixture
def experiment() -> str:
    return f"experiment-{next(NUMBER)}"


@pytest.fixture
def output(tmp_path: Path) -> Folder:
    return Folder.of(str(tmp_path / "results"))


def client(uri: str) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from mlflow import MlflowClient

        return MlflowClient(uri)


def runs(uri: str, experiment: str) -> dict[str, Any]:
    mlflow = client(uri)
    known = mlflow.get_experiment_by_name(experiment)
    found = mlflow.search_runs([known.experiment_id]) if known else []
    assert len({run.info.run_name for run in found}) == len(found), "a run exists twice"
    return {run.info.run_name: run for run in found}


def job_and_point(output: Folder) -> tuple[RunRecord, RunRecord]:
    """Records of a running job and its only run."""
    job = RunRecord("job", config={"model": "demo", "methods": ["vanilla", "apet"]})
    point = RunRecord(
        "shapes-demo-apet-64",
        parent={"id": job.id, "name": job.name},
        config={
            "model": "demo",
            "output": "s3://key:secret@bucket/x?token=1",
            "generation": {"seed": 0},
            "long": "x" * 9999,
        },
        tags={"model": "demo", "method": "apet", "budget": "64", "benchmark": "shapes"},
        dataset={
            "name": "shapes",
            "digest": "0123456789abcdef" * 4,
            "source": "s3://key:secret@bucket/manifest.jsonl",
        },
        artifacts=["config.yaml", "answers.table.json"],
    )
    folder = output.child(point.name)
    folder.write("config.yaml", b"model: demo\n")
    folder.write(
        "answers.table.json", json.dumps({"columns": ["row_id"], "data": [["row-1"]]}).encode()
    )
    job.save(output.child(job.name))
    point.save(folder)
    return job, point


def finish(output: Folder, job: RunRecord, point: RunRecord) -> None:
    point.rows = {"wanted": 200, "done": 200, "error": 1}
    point.end(
        "finished",
        {
            "accuracy": 0.5,
            "accuracy_ci_low": 0.4,
            "shapes.count: all?": 0.5,
            "prefill_tflops": float("nan"),
        },
    )
    point.save(output.child(point.name))
    job.end("failed", {"wall_s": 3.0}, "OSError: the disk is full")
    job.save(output.child(job.name))


def check(uri: str, experiment: str, job: RunRecord, point: RunRecord) -> None:
    """Check that MLflow has everything in the records exactly once."""
    mlflow = client(uri)
    found = runs(uri, experiment)
    assert found.keys() == {job.name, point.name}
    parent, child = found[job.name], found[point.name]
    assert child.data.tags["mlflow.parentRunId"] == parent.info.run_id
    assert (parent.info.status, child.info.status) == ("FAILED", "FINISHED")
    assert parent.data.tags["mlflow.note.content"] == "OSError: the disk is full"
    assert child.data.params["generation.seed"] == "0"
    assert child.data.params["output"] == "s3://***@bucket/x"
    assert child.data.params["long"] == "x" * 6000
    assert parent.data.params["methods"] == "vanilla, apet"
    assert child.data.tags.items() >= point.tags.items()
    assert {"mlflow.user", "mlflow.source.name"} <= child.data.tags.keys()
    assert child.data.tags.get("git_commit") == git_commit()
    assert (
        child.data.metrics.items()
        >= {"accuracy": 0.5, "accuracy_ci_low": 0.4, "shapes.count: all_": 0.5}.items()
    )
    assert "prefill_tflops" not in child.data.metrics
    assert parent.data.metrics["wall_s"] == 3.0
    assert "system/driver_memory_megabytes" in parent.data.metrics
    assert child.info.end_time == int(1000 * (point.ended or 0))
    progress = mlflow.get_metric_history(child.info.run_id, "rows_done")
    expected = [(p["step"], p["rows_done"], p["ts_ms"]) for p in point.history if "rows_done" in p]
    assert sorted((metric.step, metric.value, metric.timestamp) for metric in progress) == expected
    # One value at step 0, for which MLflow draws a bar, not a line.
    accuracy = mlflow.get_metric_history(child.info.run_id, "accuracy")
    assert [metric.step for metric in accuracy] == [0]
    assert [(d.dataset.name, d.dataset.digest) for d in child.inputs.dataset_inputs] == [
        ("shapes", point.dataset["digest"][:36])
    ]
    assert "secret" not in repr(child.to_dictionary())
    assert {entry.path for entry in mlflow.list_artifacts(child.info.run_id)} == set(
        point.artifacts
    )
    assert json.loads(child.data.tags["mlflow.loggedArtifacts"]) == [
        {"path": "answers.table.json", "type": "table"}
    ]
    local = mlflow.download_artifacts(child.info.run_id, "config.yaml")
    assert Path(local).read_bytes() == b"model: demo\n"


def track_job(
    output: Folder, uri: str, experiment: str, points: int = 120
) -> tuple[RunRecord, RunRecord, bool, float]:
    """Run a short job. Returns also whether MLflow is complete, and the job's longest wait."""
    messages: list[str] = []
    tracker = Tracker(uri, experiment, interval=0.2, say=messages.append)
    job, point = job_and_point(output)
    waits = []
    for record in (job, point):
        began = time.monotonic()
        tracker.watch(record, output.child(record.name))
        waits.append(time.monotonic() - began)
    for step in range(points):
        began = time.monotonic()
        point.log(step, {"rows_done": step, "samples_per_s": 3.5}, force=True)
        waits.append(time.monotonic() - began)
        time.sleep(0.005)
    finish(output, job, point)
    began = time.monotonic()
    complete = tracker.stop(60 if uri.startswith("sqlite") else 3)
    if not uri.startswith("sqlite"):
        waits.append(time.monotonic() - began)
    assert complete == (tracker.problem is None)
    for record in (job, point):
        record.save(output.child(record.name))
    return job, point, complete, max(waits)


def test_tracked_job_is_complete_in_mlflow_and_replay_changes_nothing(
    database: str,
    experiment: str,
    output: Folder,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(output.local.parent if output.local else ".")
    job, point, complete, longest_wait = track_job(output, database, experiment)
    assert complete
    assert longest_wait < 2
    assert capfd.readouterr() == ("", "")
    check(database, experiment, job, point)
    assert RunRecord.load(output.child(point.name)).mlflow == point.mlflow
    for _ in range(2):
        lines: list[str] = []
        assert replay(output.uri, say=lines.append)
        assert [line.split(":")[1].split()[0] for line in lines] == ["already", "already"]
    check(database, experiment, job, point)
    assert {path.name for path in Path.cwd().iterdir()} == {"results"}, (
        "MLflow left files in the current directory"
    )


@pytest.mark.usefixtures("servers")
def test_replay_brings_what_a_server_that_was_down_missed(
    database: str, experiment: str, output: Folder
) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        uri = f"http://user:secret@127.0.0.1:{free.getsockname()[1]}"
    job, point, complete, longest_wait = track_job(output, uri, experiment)
    assert not complete
    assert longest_wait < 5
    saved = (output.local or Path()) / point.name / "record.json"
    assert "secret" not in saved.read_text()
    assert "run_id" not in json.loads(saved.read_text())["mlflow"]
    lines: list[str] = []
    assert not replay(output.uri, say=lines.append)
    assert "its password is masked (***): give the full address with --tracking-uri" in lines[0]
    # The address as the job's last line shows it.
    assert not replay(output.uri, uri.replace("user:secret", "***"), say=lines.append)
    assert "its password is masked (***)" in lines[1]
    for word in ("copied", "already there"):
        lines = []
        assert replay(output.uri, database, experiment, say=lines.append)
        assert [word in line for line in lines] == [True, True]
        check(
            database,
            experiment,
            RunRecord.load(output.child(job.name)),
            RunRecord.load(output.child(point.name)),
        )


@pytest.mark.usefixtures("servers")
def test_job_does_not_wait_for_a_server_that_hangs(experiment: str, output: Folder) -> None:
    with socket.create_server(("127.0.0.1", 0)) as mute:  # accepts connections, never responds
        _, point, complete, longest_wait = track_job(
            output, f"http://127.0.0.1:{mute.getsockname()[1]}", experiment
        )
    assert not complete
    assert longest_wait < 5
    assert len(RunRecord.load(output.child(point.name)).history) == 120


def test_deleted_runs_are_created_again_from_the_records(
    experiment: str, output: Folder, tmp_path: Path, database: str
) -> None:
    job, point, complete, _ = track_job(output, database, experiment, points=5)
    assert complete
    mlflow = client(database)
    for run in runs(database, experiment).values():
        mlflow.delete_run(run.info.run_id)
    assert replay(output.uri, say=lambda text: None)
    check(database, experiment, job, point)


def test_replay_of_stale_records_creates_no_second_run(
    database: str, experiment: str, output: Folder, tmp_path: Path
) -> None:
    """A tracker that died before it noted its work sends everything again."""
    job, point, _, _ = track_job(output, database, experiment, points=5)
    for record in (job, point):
        stale = RunRecord.load(output.child(record.name))
        stale.mlflow = {}
        stale.save(output.child(record.name))
    assert replay(output.uri, database, experiment, say=lambda text: None)
    check(database, experiment, job, point)


def test_replay_trusts_no_server_that_only_a_record_names(
    output: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The author of a record.json must not get the login of the user who replays it."""
    synced_uris: list[str] = []
    monkeypatch.setattr(MlflowExperiment, "sync", lambda self, *_: synced_uris.append(self.uri))
    monkeypatch.setattr(MlflowExperiment, "initial_state", lambda self, state: dict(state))
    record = RunRecord("theirs", mlflow={"uri": "http://theirs.example"})
    record.save(output)
    messages: list[str] = []
    assert not replay(output.uri, say=messages.append)
    assert (
        "theirs: its record names http://theirs.example. Anybody can write a record" in messages[0]
    )
    assert "give it as --tracking-uri" in messages[0]
    assert synced_uris == []
    assert replay(output.uri, "http://theirs.example", say=messages.append)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://theirs.example")
    assert replay(output.uri, say=messages.append)
    assert synced_uris == ["http://theirs.example"] * 2
    RunRecord("ours", mlflow={"uri": "http://***@ours.example"}).save(output)
    assert not replay(output.uri, say=messages.append)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:secret@ours.example")
    assert replay(output.uri, say=messages.append)  # records leave out the password
    assert synced_uris[2:] == ["http://me:secret@ours.example"]


@pytest.mark.parametrize(
    "place",
    ["https://theirs.example/api", " https://theirs.example", "models:/theirs/1", "HTTP://x.y"],
)
def test_artifacts_go_to_no_server_that_a_database_names(
    place: str, database: str, experiment: str, output: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """MLflow's client would log in to the server with the files. Everything else is sent."""
    client(database).create_experiment(experiment, artifact_location=place)
    sent: list[object] = []
    monkeypatch.setattr("mlflow.MlflowClient.log_artifact", lambda *given: sent.append(given))
    record = RunRecord("theirs", artifacts=["config.yaml"])
    record.end("finished", {"accuracy": 0.5})
    record.save(output.child("theirs"))
    output.child("theirs").write("config.yaml", b"a: 1")
    messages: list[str] = []
    assert not replay(output.uri, database, experiment, say=messages.append)
    assert "may be sent your login; give that server's own address as --tracking-uri" in messages[0]
    assert sent == []
    run = runs(database, experiment)["theirs"]
    assert (run.info.status, run.data.metrics["accuracy"]) == ("FINISHED", 0.5)


def test_resumed_run_is_the_same_run_in_mlflow(
    database: str, experiment: str, output: Folder
) -> None:
    _, point, _, _ = track_job(output, database, experiment, points=5)
    first = runs(database, experiment)[point.name]
    again = RunRecord.load(output.child(point.name))
    again.resume()
    again.config["batch_size"] = 4
    # MLflow's params cannot change; the config file has the latest ones.
    again.config["model"] = "another"
    output.child(again.name).write("config.yaml", b"model: another\n")
    tracker = Tracker(database, experiment, interval=0.2)
    tracker.watch(again, output.child(again.name))
    again.log(6, {"rows_done": 6}, force=True)
    deadline = time.monotonic() + 30
    while again.mlflow["history"] < len(again.history) and time.monotonic() < deadline:
        time.sleep(0.1)
    now = runs(database, experiment)[point.name]
    assert (now.info.run_id, now.info.status) == (first.info.run_id, "RUNNING")
    again.end("killed", {"accuracy": 0.75})
    again.save(output.child(again.name))
    assert tracker.stop(60)
    now = runs(database, experiment)[point.name]
    assert now.info.status == "KILLED"
    assert now.data.metrics["accuracy"] == 0.75
    assert (now.data.params["model"], now.data.params["batch_size"]) == ("demo", "4")
    assert (
        Path(client(database).download_artifacts(now.info.run_id, "config.yaml")).read_bytes()
        == b"model: another\n"
    )


def test_run_with_too_many_errors_is_failed_in_mlflow(
    database: str, experiment: str, output: Folder
) -> None:
    record = RunRecord("full of errors")
    tracker = Tracker(database, experiment, interval=60)
    tracker.watch(record, output.child(record.name))
    record.end("finished", {"rows_error": 9}, "9 of 20 rows ended in an error")
    record.save(output.child(record.name))
    assert tracker.stop(60)
    assert description(database, experiment, record.name) == (
        "FAILED",
        "9 of 20 rows ended in an error",
    )
    record = end_again(output.child(record.name), database, experiment)
    assert description(database, experiment, record.name) == ("FINISHED", "")


def test_description_written_by_a_person_stays(
    database: str, experiment: str, output: Folder
) -> None:
    record = RunRecord("full of errors")
    record.end("finished", {"rows_error": 9}, "9 of 20 rows ended in an error")
    record.save(output.child(record.name))
    assert replay(output.uri, database, experiment, say=lambda text: None)
    run = runs(database, experiment)[record.name]
    client(database).set_tag(run.info.run_id, "mlflow.note.content", "a person's")
    end_again(output.child(record.name), database, experiment)
    assert description(database, experiment, record.name) == ("FINISHED", "a person's")
    end_again(output.child(record.name), database, experiment, "8 of 20 rows ended in an error")
    assert description(database, experiment, record.name) == ("FAILED", "a person's")


def description(database: str, experiment: str, name: str) -> tuple[str, str]:
    run = runs(database, experiment)[name]
    return run.info.status, run.data.tags["mlflow.note.content"]


def end_again(folder: Folder, database: str, experiment: str, message: str = "") -> RunRecord:
    """Load a run, end it again with a message, and replay it."""
    record = RunRecord.load(folder)
    record.end("finished", {"rows_error": 1}, message)
    record.save(folder)
    assert replay(folder.uri, database, experiment, say=lambda text: None)
    return record


def test_waiting_for_mlflow_lets_the_record_say_what_it_has(
    database: str, experiment: str, output: Folder
) -> None:
    record = RunRecord("failed")
    tracker = Tracker(database, experiment, interval=60)
    tracker.watch(record, output)
    wait_until(lambda: "run_id" in record.mlflow)
    record.end("failed", {"accuracy": 0.5}, "a worker died")
    tracker.wait(record)
    record.save(output)
    assert tracker.stop(60)
    lines: list[str] = []
    assert replay(output.uri, database, experiment, say=lines.append)
    assert "already there" in lines[0]


def test_tracker_writes_no_files(database: str, experiment: str, output: Folder) -> None:
    """A record may be another process's as soon as its lock is released."""
    job, point = job_and_point(output)
    tracker = Tracker(database, experiment, interval=0.05, say=lambda text: None)
    for record in (job, point):
        tracker.watch(record, output.child(record.name))
    output.child(point.name).write("record.json", b"another's")
    point.log(1, {"rows_done": 1}, force=True)
    wait_until(lambda: point.mlflow.get("history") == 1)
    finished = output.child(job.name).read("record.json")
    job.end("failed", message="its run is another job's")
    tracker.wait(job)
    tracker.drop(point)
    assert tracker.stop(60)
    assert output.child(point.name).read("record.json") == b"another's"
    assert output.child(job.name).read("record.json") == finished
    assert runs(database, experiment)[job.name].info.status == "FAILED"
    assert runs(database, experiment)[point.name].info.status == "RUNNING"


def lock_elsewhere(folder: Folder) -> None:
    folder.write(Lock.NAME, b"{}")


def test_replay_does_not_write_the_record_of_a_running_job(
    database: str, experiment: str, output: Folder
) -> None:
    RunRecord("running").save(output)
    lock_elsewhere(output)
    before = output.read("record.json")
    assert replay(output.uri, database, experiment, say=lambda text: None)
    assert output.read("record.json") == before
    assert runs(database, experiment).keys() == {"running"}


def test_unchanged_records_are_not_read_again(
    database: str, experiment: str, output: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sweep has hundreds of records, most of which are waiting or done."""
    read: list[int] = []
    intact = RunRecord.snapshot

    def count_snapshot(self: RunRecord) -> dict[str, Any]:
        read.append(len(self.history))
        return intact(self)

    record = RunRecord("still", parent={"id": "of a job", "name": "job"})
    tracker = Tracker(database, experiment, interval=0.02)
    tracker.watch(record, output.child(record.name))
    tracker.wait(record)
    monkeypatch.setattr(RunRecord, "snapshot", count_snapshot)
    time.sleep(0.5)
    assert read == []
    record.log(1, {"rows_done": 1}, force=True)
    wait_until(lambda: record.mlflow["history"] == 1)
    assert read[0] == 1
    assert tracker.stop(60)


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_missing_artifact_does_not_stop_the_rest(
    database: str, experiment: str, output: Folder
) -> None:
    record = RunRecord("lonely", artifacts=["config.yaml", "figures/accuracy.svg"])
    folder = output.child(record.name)
    folder.write("config.yaml", b"")
    record.end("finished", {"accuracy": 1.0})
    tracker = Tracker(database, experiment, interval=0.2, say=lambda text: None)
    tracker.watch(record, folder)
    assert not tracker.stop(60)
    record.save(folder)
    assert "artifacts" in (tracker.problem or "")
    run = runs(database, experiment)["lonely"]
    assert (run.info.status, run.data.metrics["accuracy"]) == ("FINISHED", 1.0)
    folder.child("figures").write("accuracy.svg", b"<svg/>")
    assert replay(output.uri, say=lambda text: None)
    mlflow = client(database)
    assert {entry.path for entry in mlflow.list_artifacts(run.info.run_id)} == {
        "config.yaml",
        "figures",
    }
    assert [entry.path for entry in mlflow.list_artifacts(run.info.run_id, "figures")] == [
        "figures/accuracy.svg"
    ]


def is_alive(uri: str) -> bool:
    try:
        with urllib.request.urlopen(f"{uri}/health", timeout=2) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


@pytest.fixture
def server(subprocesses: None, servers: None, tmp_path: Path, database: str) -> Iterator[Any]:
    """A real server that can be started late, suspended and resumed."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    client(database).search_experiments()  # creates the file if this is the first test
    shutil.copy(database.removeprefix("sqlite:///"), tmp_path / "server.db")
    environment = {**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true"}
    command = [
        sys.executable,
        "-m",
        "mlflow",
        "server",
        "--workers",
        "1",
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
    ]
    command += [
        "--backend-store-uri",
        f"sqlite:///{tmp_path}/server.db",
        "--artifacts-destination",
        str(tmp_path / "art"),
    ]
    processes: list[subprocess.Popen[bytes]] = []

    class Server:
        uri = f"http://127.0.0.1:{port}"

        def start(self) -> None:
            with open(tmp_path / "server.log", "wb") as log:
                processes.append(
                    subprocess.Popen(
                        command,
                        env=environment,
                        cwd=tmp_path,
                        stdout=log,
                        stderr=log,
                        start_new_session=True,
                    )
                )
            deadline = time.monotonic() + 180
            while not is_alive(self.uri):
                assert time.monotonic() < deadline, (tmp_path / "server.log").read_text()
                time.sleep(0.5)

        def signal(self, number: int) -> None:
            os.killpg(processes[0].pid, number)

    mlflow_server = Server()
    yield mlflow_server
    if processes:
        mlflow_server.signal(signal.SIGCONT)
        mlflow_server.signal(signal.SIGKILL)
        processes[0].wait(30)


def test_server_that_comes_back_gets_everything(
    server: Any, experiment: str, output: Folder
) -> None:
    """It is down at first, then up, then hangs while the job ends; finally it has everything."""
    messages: list[str] = []
    tracker = Tracker(server.uri, experiment, interval=0.2, say=messages.append)
    job, point = job_and_point(output)
    tracker.watch(job, output.child(job.name))
    tracker.watch(point, output.child(point.name))
    for step in range(60):
        point.log(step, {"rows_done": step}, force=True)
    server.start()
    assert len(messages) == 1
    assert "continues" in messages[0]
    deadline = time.monotonic() + 180
    while "responds again" not in messages[-1]:
        assert time.monotonic() < deadline, messages
        time.sleep(0.2)
    assert point.mlflow["history"] == 60
    server.signal(signal.SIGSTOP)
    for step in range(60, 120):
        point.log(step, {"rows_done": step}, force=True)
    finish(output, job, point)
    began = time.monotonic()
    assert not tracker.stop(2)
    assert time.monotonic() - began < 3
    command = re.search(
        r"python (jobs/track.py) <output>( --tracking-uri \S+) copies it there",
        tracker.problem or "",
    )
    assert command is not None
    server.signal(signal.SIGCONT)
    while not is_alive(server.uri):
        time.sleep(0.5)
    for word in ("copied", "already there"):
        done = subprocess.run(
            [sys.executable, str(ROOT / command[1]), output.uri, *command[2].split()],
            capture_output=True,
            text=True,
            check=False,
        )
        assert (done.returncode, done.stderr) == (0, ""), done
        assert [word in line for line in done.stdout.splitlines()] == [True, True]
    check(
        server.uri,
        experiment,
        RunRecord.load(output.child(job.name)),
        RunRecord.load(output.child(point.name)),
    )


def test_replay_of_a_folder_without_records_fails(output: Folder) -> None:
    lines: list[str] = []
    assert not replay(output.uri, say=lines.append)
    assert "no record.json" in lines[0]


def test_unreadable_record_does_not_stop_the_others(
    database: str, experiment: str, output: Folder
) -> None:
    output.child("broken").write("record.json", b'{"name": "bro')
    intact = RunRecord("intact")
    intact.end("finished")
    intact.save(output.child("intact"))
    lines: list[str] = []
    assert not replay(output.uri, database, experiment, say=lines.append)
    assert re.search("cannot read .*broken/record.json", lines[0])
    assert runs(database, experiment).keys() == {"intact"}


def test_history_of_a_week_has_a_few_thousand_points(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1_000_000.0
    monkeypatch.setattr(time, "time", lambda: now)
    monkeypatch.setattr(time, "monotonic", lambda: now)
    record = RunRecord("week", started=now)
    while now < 1_000_000 + 7 * 86_400:
        record.log(int(now), {"rows_done": now})
        record.log(int(now), {"system/cpu": 1.0})
        now += 2 if now < 1_010_000 else 60
    done = [point for point in record.history if "rows_done" in point]
    assert len(done) == len(record.history) / 2
    assert 500 < len(done) < 4000
    assert done[1]["ts_ms"] - done[0]["ts_ms"] <= 6000


@pytest.mark.parametrize("jump", [-30 * 86_400.0, 30 * 86_400.0])
def test_history_interval_is_independent_of_the_clock(
    jump: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    wall = steady = 1_000_000.0
    monkeypatch.setattr(time, "time", lambda: wall)
    monkeypatch.setattr(time, "monotonic", lambda: steady)
    record, steps = RunRecord("night"), []
    for second in range(60):
        if second == 20:
            wall += jump
        if second == 40:  # the job is started again
            record = RunRecord(**record.snapshot())
        if record.log(int(record.age), {"rows_done": second}):
            steps.append(second)
        wall, steady = wall + 1, steady + 1
    assert steps == list(range(0, 60, 5))
    assert [point["step"] for point in record.history] == [*range(0, 40, 5), *range(35, 55, 5)]


def test_loaded_record_equals_the_saved_one(output: Folder) -> None:
    job, point = job_and_point(output)
    point.log(1, {"rows_done": 1})
    point.save(output.child(point.name))
    again = RunRecord.load(output.child(point.name))
    assert again.snapshot() == point.snapshot()
    assert again.id == point.id != job.id


def test_dashboard_is_an_address_or_a_command_without_secrets(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert dashboard("http://u:p@mlflow:5000") == "http://***@mlflow:5000"
    assert dashboard("sqlite:////a b/mlflow.db").endswith(
        "mlflow ui --backend-store-uri 'sqlite:////a b/mlflow.db'"
    )


def test_commit_comes_from_git_or_from_the_image(tmp_path: Path) -> None:
    outer, inner = tmp_path / "outer", tmp_path / "outer" / "inner"
    inner.mkdir(parents=True)
    assert commit_of(inner) is None
    (inner / "COMMIT").write_text("\n")  # an image that was built without
    assert commit_of(inner) is None
    (inner / "COMMIT").write_text("0123abcd\n")
    assert commit_of(inner) == "0123abcd"
    git = ["git", "-C", str(outer), "-c", "user.name=x", "-c", "user.email=x@example.com"]
    subprocess.run([*git, "init", "--quiet"], check=True)
    subprocess.run([*git, "commit", "--quiet", "--allow-empty", "--message=x"], check=True)
    head = subprocess.run(
        [*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True
    ).stdout.strip()
    assert commit_of(outer) == head
    assert commit_of(inner) == "0123abcd"

"""MLflow that is not there: the job goes on, and it gets everything later."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Generator
from pathlib import Path

from mlflow import MlflowClient

from pipelines.results.mlflow_tracker import replay
from tests.faults.machines import PATIENCE
from tests.faults.scene import Night


def port() -> int:
    """A free one that stays free while no server has it: below those the system hands out, above Ray's workers'."""
    for number in random.sample(range(20_000, 30_000), 100):
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", number)):
            return number
    raise OSError("none of a hundred ports is free")


class Server:
    """A real MLflow in a process group of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.port = folder, port()
        self.uri = f"http://127.0.0.1:{self.port}"
        self.start()

    def start(self) -> None:
        command = [
            sys.executable,
            "-m",
            "mlflow",
            "server",
            "--workers",
            "1",
            "--host",
            "127.0.0.1",
        ]
        command += [
            "--port",
            str(self.port),
            "--backend-store-uri",
            f"sqlite:///{self.folder}/server.db",
        ]
        command += ["--artifacts-destination", str(self.folder / "artifacts")]
        with (self.folder / "server.log").open("ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
        end = time.monotonic() + PATIENCE
        while True:
            try:
                urllib.request.urlopen(f"{self.uri}/health", timeout=5).close()
                return
            except OSError:
                assert time.monotonic() < end, (self.folder / "server.log").read_text()
                time.sleep(0.2)

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


def _has_all(night: Night, uri: str) -> None:
    """One job and a run for each point, each with the numbers of its answers."""
    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name(night.folder.name)
    found = client.search_runs([experiment.experiment_id])
    assert len(found) == 1 + len(night.config().points)
    for run in found:
        if "mlflow.parentRunId" in run.data.tags:
            assert run.data.metrics["rows_total"] == len(night.names)
            assert run.data.metrics["rows_error"] == len(night.wrong)


def mlflow_down(night: Night) -> Generator[None, None, None]:
    """Nobody answers from the first moment to the last; the records are brought to another MLflow afterwards."""
    night.given["tracking_uri"] = f"http://127.0.0.1:{port()}"
    yield
    yield
    assert "The job goes on; what is missing is brought later" in night.job.said
    assert "python jobs/track.py" in night.job.said
    assert replay(str(night.output), night.theatre.mlflow)
    _has_all(night, night.theatre.mlflow)


def mlflow_killed(night: Night) -> Generator[None, None, None]:
    """It dies in the middle, and comes again when the job is over."""
    server = Server(night.folder)
    night.given["tracking_uri"] = server.uri
    yield
    try:
        night.in_a_batch()
        server.kill()
        yield
        assert "python jobs/track.py" in night.job.said
        server.start()
        assert replay(str(night.output), server.uri)
        _has_all(night, server.uri)
    finally:
        server.kill()

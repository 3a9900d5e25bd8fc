"""An MLflow server that is down: the job continues, and the server gets everything later."""

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
from tests.faults.machines import MAX_WAIT_S
from tests.faults.scenario import Scenario


def free_port() -> int:
    """A port that stays free while no server has it.

    It is below the ports that the system hands out, and above those of Ray's workers.
    """
    for number in random.sample(range(20_000, 30_000), 100):
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", number)):
            return number
    raise OSError("none of a hundred ports is free")


class MlflowServer:
    """A real MLflow server in its own process group."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.port = folder, free_port()
        self.uri = f"http://127.0.0.1:{self.port}"
        self.start()

    def start(self) -> None:
        command = [
            *(sys.executable, "-m", "mlflow", "server", "--workers", "1"),
            *("--host", "127.0.0.1", "--port", str(self.port)),
            *("--backend-store-uri", f"sqlite:///{self.folder}/server.db"),
            *("--artifacts-destination", str(self.folder / "artifacts")),
        ]
        with (self.folder / "server.log").open("ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
        end = time.monotonic() + MAX_WAIT_S
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


def _check_runs(scenario: Scenario, uri: str) -> None:
    """MLflow has one job and one run for each method, each with the numbers of its answers."""
    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name(scenario.folder.name)
    runs = client.search_runs([experiment.experiment_id])
    assert len(runs) == 1 + len(scenario.config().method_specs)
    for run in runs:
        if "mlflow.parentRunId" in run.data.tags:
            assert run.data.metrics["rows_total"] == len(scenario.rows)
            assert run.data.metrics["rows_error"] == len(scenario.expected_errors)


def mlflow_down(scenario: Scenario) -> Generator[None, None, None]:
    """No server answers during the whole job; its records are copied to another MLflow later."""
    scenario.overrides["tracking_uri"] = f"http://127.0.0.1:{free_port()}"
    yield
    yield
    assert "The job continues; what is missing is copied later" in scenario.job.log_text
    assert "python jobs/track.py" in scenario.job.log_text
    assert replay(str(scenario.output), scenario.testbed.tracking_uri)
    _check_runs(scenario, scenario.testbed.tracking_uri)


def mlflow_killed(scenario: Scenario) -> Generator[None, None, None]:
    """The server is killed while the job runs, and started again when the job has ended."""
    server = MlflowServer(scenario.folder)
    scenario.overrides["tracking_uri"] = server.uri
    yield
    try:
        scenario.wait_for_batch()
        server.kill()
        yield
        assert "python jobs/track.py" in scenario.job.log_text
        server.start()
        assert replay(str(scenario.output), server.uri)
        _check_runs(scenario, server.uri)
    finally:
        server.kill()

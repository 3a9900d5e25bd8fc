"""Shared set-up: no network, no leftovers, GPU tests only with a GPU, fast and slow tests apart.

A test is slow if it requests a fixture of SLOW_FIXTURES, and only then. The request cannot be
forgotten: a fast test that starts a process or a server fails with the name of the fixture.
"""

from __future__ import annotations

import os
import secrets
import shutil
import sys
from collections.abc import Callable, Generator, Iterator
from functools import cache
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

# Before transformers is imported: no test may reach for the hub.
os.environ["HF_HUB_OFFLINE"] = "1"
# Credentials of the S3 server below. Ray's workers inherit them.
os.environ |= {
    "AWS_ACCESS_KEY_ID": "k",
    "AWS_SECRET_ACCESS_KEY": "s",
    "AWS_REGION": "us-east-1",
}
# Before Ray is imported: its ports are open to every user of the machine. No usage statistics.
os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
# An MLflow server would start seven processes for jobs that no test uses.
os.environ["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] = "false"
# Before torch and numpy are imported: with matrices this small, more threads only wait.
os.environ["OMP_NUM_THREADS"] = "1"

import pytest
import torch
from hypothesis import settings

from tests.support import ROOT

# A test that fails on one machine fails on all of them.
settings.register_profile("repeatable", derandomize=True)
settings.load_profile("repeatable")

SLOW_FIXTURES = {
    "cluster": "an embedded Ray",
    "subprocesses": "permission to start processes",
    "servers": "permission to listen on a port: S3, MLflow, PostgreSQL, HTTP",
    "browser": "a path to Chromium or Chrome",
    "latex": "a path to pdflatex",
    "demo_model": "a trained checkpoint of the demo, which takes long to answer a whole test set",
    "long_running": "permission to take more than 10 s",
}
"""Fixtures that make a test slow, and what each one is."""

ALLOWED_PROGRAMS = {"git", "ldconfig", "gcc", "ld", "uname"}
"""Programs that fast tests may start: run records ask git for the commit, and libraries look for
other libraries."""

PROCESS_EVENTS = {"subprocess.Popen", "os.fork", "os.posix_spawn", "os.system", "multiprocessing"}
"""Audit events of a new process. `multiprocessing` has none: `_audited_start` raises it."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if is_slow(item):
            item.add_marker("slow")
        if item.get_closest_marker("gpu") and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


def is_slow(item: pytest.Item) -> bool:
    return not SLOW_FIXTURES.keys().isdisjoint(getattr(item, "fixturenames", ()))


class FastTestGuard:
    """Makes a fast test fail when it starts a process or a server."""

    def __init__(self) -> None:
        self.enabled = False
        sys.addaudithook(self.audit)

    def audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.enabled:
            return
        if event in PROCESS_EVENTS and program(event, arguments) not in ALLOWED_PROGRAMS:
            pytest.fail(
                f"A fast test started a process ({event} {arguments}): request the fixture"
                " `subprocesses`, or `cluster` for Ray, which makes the test slow"
            )
        # urllib3 binds to ("::1", 0) when it is imported, to find out whether there is IPv6
        if event == "socket.bind" and arguments[1] != ("::1", 0):
            pytest.fail(
                f"A fast test listens on {arguments[1]}: request the fixture `servers`, which"
                " makes the test slow"
            )


def program(event: str, arguments: tuple[Any, ...]) -> str:
    """Name of the program that an audit event starts, empty if unknown."""
    if event != "subprocess.Popen":
        return ""
    executable, command, *_ = arguments
    return Path(os.fsdecode(executable or command[0])).name


guard = FastTestGuard()
_start = BaseProcess.start


def _audited_start(process: BaseProcess) -> None:
    sys.audit("multiprocessing", process.name)
    _start(process)


BaseProcess.start = _audited_start  # type: ignore[method-assign]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    guard.enabled = not is_slow(item)
    try:
        return (yield)
    finally:
        guard.enabled = False


@pytest.fixture(scope="session")
def subprocesses() -> None:
    """Permission to start processes."""


@pytest.fixture(scope="session")
def servers() -> None:
    """Permission to listen on a port of this machine."""


@pytest.fixture(scope="session")
def long_running() -> None:
    """Permission to take more than 10 s."""


@pytest.fixture(scope="session")
def browser() -> str:
    """Path to Chromium or Chrome; skips the test where there is none."""
    for name in ("chromium", "chromium-browser", "google-chrome"):
        if path := shutil.which(name):
            return path
    pytest.skip("needs chromium or google-chrome on the PATH")


@pytest.fixture(scope="session")
def latex() -> str:
    """Path to pdflatex; skips the test where there is none."""
    if path := shutil.which("pdflatex"):
        return path
    pytest.skip("needs pdflatex on the PATH, with array, booktabs and graphicx")


@pytest.fixture(scope="session")
def cluster() -> Iterator[str]:
    """Address of an embedded Ray that all tests of a process share.

    It has one CPU: a job then has one actor with one thread, and one process that reads. Every
    process imports torch before it starts to work.
    """
    import ray

    # On a busy machine Ray may take longer to start than it allows itself.
    for attempt in range(3):
        try:
            ray.init(
                address="local",
                num_cpus=1,
                include_dashboard=False,
                object_store_memory=500_000_000,
            )
            break
        except Exception:
            ray.shutdown()
            if attempt == 2:
                raise
    yield ray.get_runtime_context().gcs_address
    ray.shutdown()


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Saves a tiny model of a family in the layout of the real ones; returns its folder."""
    from tests.support import tiny

    @cache
    def saved(family: str) -> Path:
        return Path(tiny.save(family, tmp_path_factory.mktemp(family)))

    return saved


@pytest.fixture(scope="session")
def demo_model() -> Callable[[str], tuple[Any, Any]]:
    """Loads a trained model of the demo and its processor, by the name of its folder in demo/."""
    from demo.training.evaluation import load

    return cache(lambda name: load(ROOT / "demo" / name))


@pytest.fixture
def bucket(servers: None) -> Iterator[str]:
    """Query string for URIs of an S3 server that holds one empty bucket, `apet`."""
    from moto.s3.models import s3_backends
    from moto.server import ThreadedMotoServer

    from pipelines.results.storage import locate

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    # All servers of a process share their contents.
    s3_backends.reset()
    host, port = server.get_host_and_port()
    query = f"endpoint_override={host}:{port}&scheme=http&allow_bucket_creation=true"
    system, _ = locate(f"s3://apet/x?{query}")
    system.create_dir("apet")
    yield query
    server.stop()

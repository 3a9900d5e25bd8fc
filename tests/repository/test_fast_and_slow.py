"""The fast and the slow tests together are all tests, and a fast test cannot start anything."""

from __future__ import annotations

import multiprocessing
import re
import shlex
import socket
import subprocess
import sys

import pytest

from tests.conftest import is_slow
from tests.support import ROOT

MAKEFILE = (ROOT / "Makefile").read_text()


def options(name: str) -> list[str]:
    """Value of a variable in the Makefile, split as a shell does."""
    [value] = re.findall(rf"^{name} := (.*)$", MAKEFILE, re.MULTILINE)
    return shlex.split(value)


def commands(target: str) -> list[str]:
    """Prerequisites and commands of a target in the Makefile."""
    [prerequisites, body] = re.findall(rf"^{target}:(.*)\n((?:\t.*\n)+)", MAKEFILE, re.MULTILINE)[0]
    return [*prerequisites.split(), *(line.strip().lstrip("@") for line in body.splitlines())]


def test_make_test_all_runs_every_test_exactly_once() -> None:
    """Each test has the marker or not, and neither command names folders, so nothing is left."""
    assert commands("test") == [".venv/ready", "$(BIN)/python -m pytest $(FAST)"]
    assert commands("test-all") == ["test", "$(BIN)/python -m pytest $(SLOW)"]
    fast, slow = options("FAST"), options("SLOW")
    assert fast[:2] == ["-m", "not slow"]
    assert slow[:2] == ["-m", "slow"]
    assert {word for word in (*fast[2:], *slow[2:]) if word.startswith("--")} <= {
        "--numprocesses",
        "--dist",
    }


def test_items_are_marked_slow_by_their_fixtures(request: pytest.FixtureRequest) -> None:
    assert {item.name: bool(item.get_closest_marker("slow")) for item in request.session.items} == {
        item.name: is_slow(item) for item in request.session.items
    }
    assert not is_slow(request.node)


def test_a_fast_test_cannot_start_a_process() -> None:
    with pytest.raises(pytest.fail.Exception, match="request the fixture `subprocesses`"):
        subprocess.run([sys.executable, "-c", ""], check=True)
    process = multiprocessing.get_context("spawn").Process(target=print)
    with pytest.raises(pytest.fail.Exception, match="request the fixture `subprocesses`"):
        process.start()


def test_a_fast_test_cannot_start_a_server() -> None:
    with (
        socket.socket() as server,
        pytest.raises(pytest.fail.Exception, match="request the fixture `servers`"),
    ):
        server.bind(("127.0.0.1", 0))


def test_a_slow_test_may_start_both(subprocesses: None, servers: None) -> None:
    subprocess.run([sys.executable, "-c", ""], check=True)
    socket.create_server(("127.0.0.1", 0)).close()

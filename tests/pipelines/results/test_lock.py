"""One writer at a time, and none that is dead."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipelines.results.lock import Lock, Locked
from pipelines.results.storage import Folder


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder.of(str(tmp_path / "run"))


def test_one_writer_at_a_time(folder: Folder) -> None:
    with Lock(folder):
        with pytest.raises(Locked, match=f"process {os.getpid()}"), Lock(folder):
            pass
        assert folder.exists(Lock.NAME)
    assert not folder.exists(Lock.NAME)
    with Lock(folder):
        pass


@pytest.mark.usefixtures("subprocesses")
def test_a_dead_writers_lock_is_taken_over(folder: Folder) -> None:
    code = f"""
import os, signal
from pipelines.results.lock import Lock
from pipelines.results.storage import Folder
Lock(Folder({folder.uri!r})).__enter__()
os.kill(os.getpid(), signal.SIGKILL)
"""
    subprocess.run([sys.executable, "-c", code], check=False)
    assert folder.exists(Lock.NAME)
    with Lock(folder):
        assert json.loads(folder.read(Lock.NAME))["pid"] == os.getpid()


def test_a_writer_elsewhere_is_watched(folder: Folder, capsys: pytest.CaptureFixture[str]) -> None:
    there = {"host": "elsewhere", "boot": "", "pid": 1, "token": "x", "beat": 4}
    folder.write(Lock.NAME, json.dumps(there).encode())
    with Lock(folder, patience=0.3):  # its lock does not change: it is gone
        pass
    assert "elsewhere" in capsys.readouterr().out

    class Alive(Lock):
        def _read_owner(self) -> dict[str, object]:  # type: ignore[override]
            there["beat"] = int(str(there["beat"])) + 1
            return dict(there)

    folder.write(Lock.NAME, json.dumps(there).encode())
    with pytest.raises(Locked, match="elsewhere"), Alive(folder, patience=0.3):
        pass


def test_who_lost_the_lock_leaves_it_alone_and_is_told(
    folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A machine that slept longer than others are patient wakes up and finds a successor."""
    monkeypatch.setattr(Lock, "BEAT", 0.02)
    with Lock(folder) as sleeper:
        sleeper.check()
        until(lambda: holder(folder)["beat"] > 0)  # it is its own, so it beats
        successor = json.dumps(
            {"host": "elsewhere", "boot": "", "pid": 1, "token": "another", "beat": 7}
        ).encode()
        folder.write(Lock.NAME, successor)
        until(lambda: not sleeper._heartbeat.is_alive())
        assert folder.read(Lock.NAME) == successor
        with pytest.raises(Locked, match="taken over"):
            sleeper.check()
        folder.delete(
            Lock.NAME
        )  # the successor has done its work: the run is not the sleeper's again
        with pytest.raises(Locked, match="taken over"):
            sleeper.check()
        folder.write(Lock.NAME, successor)
    assert folder.read(Lock.NAME) == successor


def test_a_store_that_does_not_answer_takes_no_lock_away(
    folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def silent(self: Folder, name: str) -> bytes:
        raise OSError("no answer")

    with Lock(folder) as lock:
        with monkeypatch.context() as patch:
            patch.setattr(Folder, "read", silent)
            lock.check()
        lock.check()


def holder(folder: Folder) -> Any:
    return json.loads(folder.read(Lock.NAME))


def until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.01)

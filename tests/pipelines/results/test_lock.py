"""Locks of runs: one writer at a time, and no dead process blocks one."""

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


def test_second_writer_is_refused_until_release(folder: Folder) -> None:
    with Lock(folder):
        with pytest.raises(Locked, match=f"process {os.getpid()}"), Lock(folder):
            pass
        assert folder.exists(Lock.NAME)
    assert not folder.exists(Lock.NAME)
    with Lock(folder):
        pass


@pytest.mark.usefixtures("subprocesses")
def test_lock_of_dead_process_is_taken_over(folder: Folder) -> None:
    code = f"""
import os, signal
from pipelines.results.lock import Lock
from pipelines.results.storage import Folder
Lock(Folder({folder.uri!r})).__enter__()
os.kill(os.getpid(), signal.SIGKILL)
"""
    subprocess.run([sys.executable, "-c", code], check=False)
    assert folder.exists(Lock.NAME)
    assert not Lock(folder).is_held_by_another()
    with Lock(folder):
        assert json.loads(folder.read(Lock.NAME))["pid"] == os.getpid()


def test_lock_of_another_machine_is_taken_over_unless_it_changes(
    folder: Folder, capsys: pytest.CaptureFixture[str]
) -> None:
    other = {"host": "elsewhere", "boot": "", "pid": 1, "token": "x", "beat": 4}
    folder.write(Lock.NAME, json.dumps(other).encode())
    assert Lock(folder).is_held_by_another()
    with Lock(folder, patience=0.3):  # the lock does not change: its owner is dead
        pass
    assert "elsewhere" in capsys.readouterr().out

    class Alive(Lock):
        def _read_owner(self) -> dict[str, object]:  # type: ignore[override]
            other["beat"] = int(str(other["beat"])) + 1
            return dict(other)

    folder.write(Lock.NAME, json.dumps(other).encode())
    with pytest.raises(Locked, match="elsewhere"), Alive(folder, patience=0.3):
        pass


def test_suspended_owner_leaves_the_lock_to_its_successor(
    folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A machine suspended for longer than `patience` finds a successor when it wakes up."""
    monkeypatch.setattr(Lock, "HEARTBEAT_S", 0.02)
    with Lock(folder) as suspended:
        suspended.check()
        wait_until(lambda: lock_content(folder)["beat"] > 0)  # it owns the lock, so it updates it
        successor = json.dumps(
            {"host": "elsewhere", "boot": "", "pid": 1, "token": "another", "beat": 7}
        ).encode()
        folder.write(Lock.NAME, successor)
        wait_until(lambda: not suspended._heartbeat.is_alive())
        assert folder.read(Lock.NAME) == successor
        with pytest.raises(Locked, match="taken over"):
            suspended.check()
        folder.delete(
            Lock.NAME
        )  # the successor is done: the run still does not belong to the suspended owner
        with pytest.raises(Locked, match="taken over"):
            suspended.check()
        folder.write(Lock.NAME, successor)
    assert folder.read(Lock.NAME) == successor


def test_check_passes_if_the_store_does_not_respond(
    folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: Folder, name: str) -> bytes:
        raise OSError("no answer")

    with Lock(folder) as lock:
        with monkeypatch.context() as patch:
            patch.setattr(Folder, "read", fail)
            lock.check()
        lock.check()


def lock_content(folder: Folder) -> Any:
    return json.loads(folder.read(Lock.NAME))


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)

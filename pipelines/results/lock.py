"""Who writes into a run: one process at a time, on any file system, and a dead one holds nothing up."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
import uuid
from pathlib import Path
from typing import Any, Self

from pipelines.results.storage import Folder
from pipelines.text import redacted


class Locked(Exception):
    """Another process works on the run."""


class Lock:
    """`with Lock(folder):` nobody else writes into this run.

    The lock is a file that says who holds it and that changes every few seconds. A holder on this machine is gone
    when its process is; one elsewhere, when the file has not changed for `patience` seconds. No clocks are compared.
    A holder that was only asleep finds the lock gone or another's when it wakes: it leaves the lock alone, and its
    `check` says so.
    """

    NAME = "lock.json"
    BEAT = 10.0

    def __init__(self, folder: Folder, patience: float = 60.0) -> None:
        self.folder, self.patience = folder, patience
        self._me = {"host": socket.gethostname(), "boot": _boot(), "pid": os.getpid(), "token": uuid.uuid4().hex}
        self._me["born"] = _born(os.getpid())
        self._stop, self._lost = threading.Event(), threading.Event()
        self._heart = threading.Thread(target=self._beats, name="run-lock", daemon=True)

    def __enter__(self) -> Self:
        while not self._take():
            holder = self._holder()
            if holder is not None and not self._gone(holder):
                where = f"process {holder.get('pid')} on {holder.get('host')}"
                raise Locked(
                    f"{redacted(self.folder.uri)} is being written by {where}; wait for it or stop it,"
                    f" or delete {self.NAME} there if that process is no more"
                )
            self._clear(holder)
        self._heart.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        self._heart.join()
        if self._held():
            self.folder.delete(self.NAME)

    def others(self) -> bool:
        """Does another process hold the lock, as far as one look can tell? Elsewhere it may be dead."""
        holder = self._holder()
        if holder is None:
            return False
        return not self._near(holder) or (holder.get("pid") != self._me["pid"] and not self._dead(holder))

    def check(self) -> None:
        """Locked if the run is another's by now: who held it must not write there any more."""
        with contextlib.suppress(OSError):  # a store that does not answer says nothing about who holds it
            self._look()
        if self._lost.is_set():
            raise Locked(
                f"{redacted(self.folder.uri)} was taken over by another process while this one did not move, or its"
                f" {self.NAME} was deleted; this one stops, and what it has answered is kept"
            )

    def _look(self) -> None:
        if not self._held():
            self._lost.set()  # for good: what was written since may be another's

    def _held(self) -> bool:
        return (self._holder() or {}).get("token") == self._me["token"]

    def _take(self) -> bool:
        """Write the lock unless there is one."""
        local = self.folder.local
        data = json.dumps({**self._me, "beat": 0}).encode()
        if local is not None:
            local.mkdir(parents=True, exist_ok=True)
            mine = local / f".{self.NAME}.{self._me['token']}.tmp"
            mine.write_bytes(data)
            try:
                os.link(mine, local / self.NAME)  # fails if the name is taken, and is never seen half written
                return True
            except FileExistsError:
                return False
            finally:
                mine.unlink()
        if self.folder.exists(self.NAME):
            return False
        self.folder.write(self.NAME, data)
        time.sleep(2)  # an object store has no "unless there is one": of two that wrote, the later one stays
        return self._held()

    def _holder(self) -> dict[str, Any] | None:
        try:
            found = json.loads(self.folder.read(self.NAME))
        except FileNotFoundError:
            return None
        except ValueError:
            return {}
        return found if isinstance(found, dict) else {}

    def _near(self, holder: dict[str, Any]) -> bool:
        """Is it a process of this machine?"""
        return holder.get("host") == self._me["host"] and holder.get("boot") == self._me["boot"]

    def _dead(self, holder: dict[str, Any]) -> bool:
        return _born(int(holder.get("pid", 0))) != holder.get("born")

    def _gone(self, holder: dict[str, Any]) -> bool:
        if self._near(holder):
            return self._dead(holder)
        print(
            f"{redacted(self.folder.uri)} has the lock of {holder.get('host')}:"
            f" watching {self.patience:.0f} s if it is alive ..."
        )
        end = time.monotonic() + self.patience
        while time.monotonic() < end:
            time.sleep(min(2.0, self.patience))
            if self._holder() != holder:
                return False
        return True

    def _clear(self, holder: dict[str, Any] | None) -> None:
        """Remove a dead holder's lock: of several that try, one removes it."""
        if holder is None:
            return
        aside = f".{self.NAME}.{uuid.uuid4().hex[:8]}.tmp"
        with contextlib.suppress(FileNotFoundError):
            self.folder.rename(self.NAME, aside)
            self.folder.delete(aside)

    def _beats(self) -> None:
        beat = 0
        while not self._stop.wait(self.BEAT):
            beat += 1
            with contextlib.suppress(OSError):  # a store that does not answer now may do so at the next beat
                self._look()
                if self._lost.is_set():
                    return
                self.folder.write(self.NAME, json.dumps({**self._me, "beat": beat}).encode())


def _boot() -> str:
    path = Path("/proc/sys/kernel/random/boot_id")
    return path.read_text().strip() if path.exists() else ""


def _born(pid: int) -> str | None:
    """When a process of this machine was started, None if there is none: tells it from a later one of that number."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except OSError:
        pass
    if Path("/proc").exists():
        return None
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except PermissionError:
        pass
    return "unknown"

"""A lock for a run, on any file system: one process writes at a time, a dead one blocks nobody."""

import contextlib
import json
import os
import socket
import threading
import time
import uuid
from pathlib import Path
from typing import Any, Self

import psutil

from pipelines.results.storage import Folder

STORE_SETTLE_S = 2.0  # after writing to an object store, until the last of two writers is known
POLL_S = 2.0  # between two looks at the lock of another machine


class Locked(OSError):
    """Another process writes into the run."""


class Lock:
    """Gives exclusive access to a run: `with Lock(folder): ...`.

    The lock is a file that names its owner and changes every few seconds. An owner on this machine
    is dead when its process is; one on another machine, when the file has not changed for
    `patience` seconds. Clocks are never compared. An owner that was only suspended finds the lock
    gone, or taken, when it wakes up: it leaves the lock alone, and `check` raises.
    """

    NAME = "lock.json"
    HEARTBEAT_S = 10.0  # seconds between two changes of the file

    def __init__(self, folder: Folder, patience: float = 60.0) -> None:
        self.folder, self.patience = folder, patience
        self._owner = {
            "host": socket.gethostname(),
            "boot": _boot_id(),
            "pid": os.getpid(),
            "token": uuid.uuid4().hex,
            "born": _start_time(os.getpid()),
        }
        self._released = threading.Event()
        self._heartbeat = threading.Thread(target=self._beat, name="run-lock", daemon=True)

    def __enter__(self) -> Self:
        while not self._acquire():
            owner = self._read_owner()
            if owner is None:  # released in the meantime
                continue
            if not self._is_dead(owner):
                raise Locked(
                    f"{self.folder} is being written by process {owner.get('pid')} on"
                    f" {owner.get('host')}; wait for it or stop it, or delete {self.NAME} there if"
                    " that process no longer exists"
                )
            self.folder.delete(self.NAME)
        self._heartbeat.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._released.set()
        self._heartbeat.join()
        if self._is_held():
            self.folder.delete(self.NAME)

    def is_held_by_another(self) -> bool:
        """Whether another process has the lock; one on another machine may be dead."""
        owner = self._read_owner()
        return owner is not None and not (self._is_local(owner) and not _process_exists(owner))

    @property
    def is_lost(self) -> bool:
        """Whether the last heartbeat found the lock gone, or another process's."""
        return not self._heartbeat.is_alive()

    def check(self) -> None:
        """Raise Locked if another process has taken over the run: this one must stop writing."""
        try:
            is_held = self._is_held()
        except OSError:  # a store that does not respond does not name an owner
            return
        if not is_held:
            raise Locked(
                f"{self.folder} was taken over by another process while this one did not respond,"
                f" or its {self.NAME} was deleted; this process stops, its answers are kept"
            )

    def _is_held(self) -> bool:
        return (self._read_owner() or {}).get("token") == self._owner["token"]

    def _acquire(self) -> bool:
        """Write the lock unless there is one."""
        local = self.folder.local
        data = json.dumps({**self._owner, "beat": 0}).encode()
        if local is None:
            if self.folder.exists(self.NAME):
                return False
            # Object stores cannot write "unless it exists": of two writers the last one wins.
            self.folder.write(self.NAME, data)
            time.sleep(STORE_SETTLE_S)
            return self._is_held()
        local.mkdir(parents=True, exist_ok=True)
        temporary = local / f".{self.NAME}.{self._owner['token']}.tmp"
        temporary.write_bytes(data)
        try:
            # A link fails if the name exists, and the file is never visible half written.
            os.link(temporary, local / self.NAME)
            return True
        except FileExistsError:
            return False
        finally:
            temporary.unlink()

    def _read_owner(self) -> dict[str, Any] | None:
        try:
            owner = json.loads(self.folder.read(self.NAME))
        except FileNotFoundError:
            return None
        except ValueError:
            return {}
        return owner if isinstance(owner, dict) else {}

    def _is_local(self, owner: dict[str, Any]) -> bool:
        return all(owner.get(key) == self._owner[key] for key in ("host", "boot"))

    def _is_dead(self, owner: dict[str, Any]) -> bool:
        if self._is_local(owner):
            return not _process_exists(owner)
        print(
            f"{self.folder} is locked by {owner.get('host')}:"
            f" watching for {self.patience:.0f} s whether it is alive ..."
        )
        end = time.monotonic() + self.patience
        while time.monotonic() < end:
            time.sleep(min(POLL_S, self.patience))
            if self._read_owner() != owner:
                return False
        return True

    def _beat(self) -> None:
        beat = 0
        while not self._released.wait(self.HEARTBEAT_S):
            beat += 1
            # A store that does not respond now may do so at the next beat.
            with contextlib.suppress(OSError):
                if not self._is_held():
                    return
                self.folder.write(self.NAME, json.dumps({**self._owner, "beat": beat}).encode())


def _process_exists(owner: dict[str, Any]) -> bool:
    return _start_time(int(owner.get("pid", 0))) == owner.get("born")


def _boot_id() -> str:
    path = Path("/proc/sys/kernel/random/boot_id")
    return path.read_text().strip() if path.exists() else ""


def _start_time(pid: int) -> str | None:
    """Start time of a process of this machine, None if there is none.

    It tells the process from a later one with the same number.
    """
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except OSError:
        is_linux = Path("/proc").exists()
        return "unknown" if not is_linux and psutil.pid_exists(pid) else None

"""The answers of one run on disk: Parquet parts that are whole or not there, and each row once.

A part is written in one act, so whoever is killed leaves no half answers; what is answered is what can be read.
A run goes on from there (`settle`), under a lock that a dead owner does not hold (`Lock`).
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipelines.rows import ANSWERS, described
from pipelines.storage import Folder, redacted

Mask = NDArray[np.bool_]
TORN = ".torn"  # what a part that cannot be read is renamed to end in


class Block:
    """The answers to one block of rows, in parts that are numbered, so that a second attempt finds the first's."""

    def __init__(self, folder: Folder, row_ids: Sequence[str]) -> None:
        self.folder = folder
        self._name = hashlib.sha256("\n".join(row_ids).encode()).hexdigest()[:16]
        self._next = 0

    def answered(self) -> set[str]:
        """Rows that an earlier attempt, whose actor died, has written already."""
        found: set[str] = set()
        while self.folder.exists(self._part()):
            with contextlib.suppress(Torn):  # by a machine that went down: its rows are not answered
                found.update(_column(self.folder, self._part(), "row_id").to_pylist())
            self._next += 1
        return found

    def write(self, rows: Sequence[dict[str, Any]]) -> None:
        """Write the next part."""
        while self.folder.exists(self._part()):  # an earlier part was torn: those after it stay
            self._next += 1
        if rows:
            self.folder.write(self._part(), _parquet(pa.Table.from_pylist(list(rows), schema=ANSWERS)))
            self._next += 1

    def _part(self) -> str:
        return f"answers-{self._name}-{self._next}.parquet"


def settle(folder: Folder, *, retry_errors: bool = False) -> pa.Array:
    """Make a run's folder sound and say which rows are answered: (row_id, ...).

    Only under the run's lock. Parts that cannot be read are set aside, and of rows that are there twice, which a
    worker cut off from the cluster can cause, one is kept. `retry_errors` forgets the rows that ended in an error.
    """
    parts: list[tuple[str, Mask]] = []  # name, and which of its rows stay
    seen: list[pa.Array] = []  # the row ids of those
    for name in folder.names():
        if name.startswith(".answers-") and name.endswith(".tmp"):
            folder.delete(name)
        if not name.endswith(".parquet"):
            continue
        try:
            ids = _column(folder, name, "row_id")
            fine = pc.equal(_column(folder, name, "status"), "ok") if retry_errors else np.ones(len(ids))
        except Torn as error:
            print(f"{name} in {redacted(folder.uri)} cannot be read, its rows are asked again: {described(error)}")
            folder.rename(name, name + TORN)
            continue
        keep = np.asarray(fine, dtype=bool)
        parts.append((name, keep))
        seen.append(ids if keep.all() else ids.filter(pa.array(keep)))
    found = pa.chunked_array(seen, pa.string())
    first, start = ~_repeated(found), 0
    for name, keep in parts:
        end = start + int(keep.sum())
        keep[keep], start = first[start:end], end
        if not keep.all():
            rest = _table(folder, name, None).filter(pa.array(keep))
            folder.write(name, _parquet(rest)) if rest.num_rows else folder.delete(name)
    return (found if first.all() else found.filter(pa.array(first))).combine_chunks()


def _repeated(ids: pa.ChunkedArray) -> Mask:
    """Which ids were there before. Only those whose hashes meet are compared: a set of ten million takes gigabytes."""
    hashes = np.fromiter((hash(text) for chunk in ids.chunks for text in chunk.to_pylist()), np.int64, len(ids))
    ordered = np.sort(hashes)
    meeting = np.isin(hashes, ordered[1:][ordered[1:] == ordered[:-1]])
    found, known = np.zeros(len(ids), dtype=bool), set()
    for place in np.flatnonzero(meeting):
        row_id = ids[int(place)].as_py()
        found[place] = row_id in known
        known.add(row_id)
    return found


def read(folder: Folder, columns: Sequence[str] | None = None) -> pa.Table:
    """All answers of a run, sorted by row_id."""
    table = pa.concat_tables([_no_answers(columns), *batches(folder, columns)])
    return table.sort_by("row_id") if "row_id" in table.column_names else table


def batches(folder: Folder, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
    """The answers part by part, for what must not hold all of them."""
    for name in _parts(folder):
        yield _table(folder, name, columns)


def sample(folder: Folder, parts: int = 16) -> pa.Table:
    """All columns of some of the answers, from parts all over the run."""
    names = _parts(folder)
    places = sorted({round(at * (len(names) - 1) / (parts - 1)) for at in range(parts)}) if names else []
    return pa.concat_tables([_no_answers(None), *(_table(folder, names[place], None) for place in places)])


def _parts(folder: Folder) -> list[str]:
    return [name for name in folder.names() if name.endswith(".parquet")]


def _table(folder: Folder, name: str, columns: Sequence[str] | None) -> pa.Table:
    """A part; null is what it has no column for. `read_table` would import pandas, which a finished run need not."""
    with folder.open(name) as file:
        found = pq.ParquetFile(file, pre_buffer=True).read(columns=list(columns or ANSWERS.names))
    return pa.concat_tables([_no_answers(columns), found], promote_options="default")


def _no_answers(columns: Sequence[str] | None) -> pa.Table:
    return pa.Table.from_batches([], schema=pa.schema([ANSWERS.field(name) for name in columns or ANSWERS.names]))


class Torn(Exception):
    """A part that is no Parquet, or only the beginning of one. (A store that does not answer is an OSError.)"""


def _column(folder: Folder, name: str, column: str) -> pa.Array:
    try:
        with folder.open(name) as file:
            return pq.read_table(file, columns=[column])[column].combine_chunks()
    except pa.ArrowInvalid as error:
        raise Torn(str(error)) from error
    except OSError as error:
        if "deserialize" in str(error).lower():  # what pyarrow says of a damaged footer
            raise Torn(str(error)) from error
        raise


def _parquet(table: pa.Table) -> bytes:
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd")
    return sink.getvalue()


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

    def _gone(self, holder: dict[str, Any]) -> bool:
        if holder.get("host") == self._me["host"] and holder.get("boot") == self._me["boot"]:
            return _born(int(holder.get("pid", 0))) != holder.get("born")
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

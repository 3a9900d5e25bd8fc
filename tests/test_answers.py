"""Answers on disk: whole or not there, each row once, one writer at a time."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines import answers
from pipelines.answers import Block, Lock, Locked, batches, read, settle
from pipelines.rows import ANSWERS
from pipelines.storage import Folder


def answer(row_id: str, status: str = "ok", **more: object) -> dict[str, object]:
    return {"row_id": row_id, "status": status, "prediction": f"answer to {row_id}", **more}


def write(folder: Folder, *row_ids: str, status: str = "ok") -> None:
    Block(folder, row_ids).write([answer(row_id, status) for row_id in row_ids])


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder.of(str(tmp_path / "run"))


def test_a_folder_that_is_not_there_has_no_answers(folder: Folder) -> None:
    assert settle(folder).to_pylist() == []
    assert read(folder).num_rows == 0


def test_what_is_written_is_read(folder: Folder) -> None:
    write(folder, "b", "a")
    write(folder, "c")
    assert settle(folder).to_pylist() == ["a", "b", "c"] or sorted(settle(folder).to_pylist()) == ["a", "b", "c"]
    assert read(folder)["row_id"].to_pylist() == ["a", "b", "c"]
    assert sorted(row for part in batches(folder, ["row_id"]) for row in part["row_id"].to_pylist()) == ["a", "b", "c"]


def test_what_a_part_has_no_column_for_is_null(folder: Folder) -> None:
    """As parts of an earlier version are."""
    write(folder, "a")
    assert folder.local is not None
    pq.write_table(pa.table({"row_id": ["b"], "status": ["ok"], "since_dropped": [1]}), folder.local / "b.parquet")
    assert settle(folder).to_pylist() == ["a", "b"]
    assert read(folder, ["row_id", "error", "media"]).to_pylist()[1] == {"row_id": "b", "error": None, "media": None}
    assert read(folder).schema.equals(ANSWERS)


def test_a_second_attempt_at_a_block_finds_what_the_first_wrote(folder: Folder) -> None:
    first = Block(folder, ["a", "b", "c"])
    first.write([answer("a")])
    first.write([answer("b")])
    second = Block(folder, ["a", "b", "c"])
    assert second.answered() == {"a", "b"}
    second.write([answer("c")])
    assert sorted(settle(folder).to_pylist()) == ["a", "b", "c"]
    assert Block(folder, ["a", "b"]).answered() == set()  # another block


@pytest.mark.parametrize("cut", [0, 7, 200])
def test_a_torn_part_is_set_aside_and_its_rows_are_asked_again(folder: Folder, cut: int) -> None:
    write(folder, "a")
    write(folder, "b", "c")
    assert folder.local is not None
    torn = folder.local / sorted(folder.names())[0]
    lost = pq.read_table(torn)["row_id"].to_pylist()
    torn.write_bytes(torn.read_bytes()[:cut])
    assert sorted(settle(folder).to_pylist()) == sorted({"a", "b", "c"} - set(lost))
    assert not torn.exists()
    assert (folder.local / f"{torn.name}.torn").exists()


def test_a_row_that_is_there_twice_is_kept_once(folder: Folder) -> None:
    write(folder, "a", "b")
    write(folder, "b", "c")
    write(folder, "c")
    assert sorted(settle(folder).to_pylist()) == ["a", "b", "c"]
    assert read(folder)["row_id"].to_pylist() == ["a", "b", "c"]


def test_any_mixture_of_parts_is_settled_as_row_by_row(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    """Repeated rows within and across parts, errors among them; also where all hashes are the same."""
    for flat in (False, True):
        if flat:
            monkeypatch.setattr(answers, "hash", lambda text: 7, raising=False)
        for retry in (False, True):
            dice, expected = random.Random(retry), []
            for name in folder.names():
                folder.delete(name)
            for number in range(12):
                rows = [answer(f"{dice.randrange(60)}", dice.choice(["ok", "error"])) for _ in range(10)]
                Block(folder, [f"block {number}"]).write(rows)
            for part in sorted(folder.names()):
                table = pq.read_table(f"{folder.uri}/{part}", columns=["row_id", "status"])
                rows = [row for row in table.to_pylist() if row["status"] == "ok" or not retry]
                for row in rows:
                    if row["row_id"] not in {one["row_id"] for one in expected}:
                        expected.append(row)
            assert settle(folder, retry_errors=retry).to_pylist() == [row["row_id"] for row in expected]
            found = [row for part in batches(folder, ["row_id", "status"]) for row in part.to_pylist()]
            assert found == expected


def test_errors_are_taken_again_if_asked_for(folder: Folder) -> None:
    write(folder, "a", "b")
    write(folder, "c", status="error")
    assert sorted(settle(folder).to_pylist()) == ["a", "b", "c"]
    assert sorted(settle(folder, retry_errors=True).to_pylist()) == ["a", "b"]
    write(folder, "c")
    assert sorted(settle(folder, retry_errors=True).to_pylist()) == ["a", "b", "c"]


def test_a_killed_writers_leftovers_go(folder: Folder) -> None:
    write(folder, "a")
    assert folder.local is not None
    (folder.local / ".answers-x-0.parquet.1234.tmp").write_bytes(b"half")
    settle(folder)
    assert [name for name in os.listdir(folder.local) if name.endswith(".tmp")] == []


def test_one_writer_at_a_time(folder: Folder) -> None:
    with Lock(folder):
        with pytest.raises(Locked, match=f"process {os.getpid()}"), Lock(folder):
            pass
        assert folder.exists(Lock.NAME)
    assert not folder.exists(Lock.NAME)
    with Lock(folder):
        pass


def test_a_dead_writers_lock_is_taken_over(folder: Folder) -> None:
    code = f"""
import os, signal
from pipelines.answers import Lock
from pipelines.rows import ANSWERS
from pipelines.storage import Folder
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
        def _holder(self) -> dict[str, object]:  # type: ignore[override]
            there["beat"] = int(str(there["beat"])) + 1
            return dict(there)

    folder.write(Lock.NAME, json.dumps(there).encode())
    with pytest.raises(Locked, match="elsewhere"), Alive(folder, patience=0.3):
        pass


def test_who_lost_the_lock_leaves_it_alone_and_is_told(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that slept longer than others are patient wakes up and finds a successor."""
    monkeypatch.setattr(Lock, "BEAT", 0.02)
    with Lock(folder) as sleeper:
        sleeper.check()
        until(lambda: holder(folder)["beat"] > 0)  # it is its own, so it beats
        successor = json.dumps({"host": "elsewhere", "boot": "", "pid": 1, "token": "another", "beat": 7}).encode()
        folder.write(Lock.NAME, successor)
        until(lambda: not sleeper._heart.is_alive())
        assert folder.read(Lock.NAME) == successor
        with pytest.raises(Locked, match="taken over"):
            sleeper.check()
        folder.delete(Lock.NAME)  # the successor has done its work: the run is not the sleeper's again
        with pytest.raises(Locked, match="taken over"):
            sleeper.check()
        folder.write(Lock.NAME, successor)
    assert folder.read(Lock.NAME) == successor


def test_a_store_that_does_not_answer_takes_no_lock_away(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
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

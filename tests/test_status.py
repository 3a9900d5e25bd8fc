"""What goes wrong ends a job with one line, which says what to do, and an exit status."""

from __future__ import annotations

import errno
import os

import pytest

from pipelines.lock import Locked
from pipelines.run import _raised, guarded

FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/out/answers.parquet")


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (ValueError("--budget"), 2),
        (FileNotFoundError("no such data"), 2),
        (Locked("another"), 1),
        (FULL, 1),
        (KeyboardInterrupt(), 130),
    ],
)
def test_one_line_and_a_status(error: BaseException, status: int, capsys: pytest.CaptureFixture[str]) -> None:
    with guarded() as ended:
        raise error
    assert ended.code == status
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_a_full_disk_says_what_to_do() -> None:
    assert _raised(FULL).endswith("'/out/answers.parquet'; make room there")
    worker = RuntimeError(f"Traceback (most recent call last):\n  File ...\nOSError: {FULL}")
    assert _raised(worker).startswith("OSError: [Errno 28] No space left on device")
    assert _raised(worker).endswith("; make room there")

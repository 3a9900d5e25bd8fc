"""Errors end a job with one line that says what to do, and an exit status."""

from __future__ import annotations

import errno
import os

import pytest

from pipelines.config.command_line import one_line_errors
from pipelines.job import root_cause
from pipelines.results.lock import Locked

FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/out/answers.parquet")


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ValueError("--budget"), 2),
        (FileNotFoundError("no such data"), 2),
        (Locked("another"), 1),
        (FULL, 1),
        (KeyboardInterrupt(), 130),
    ],
)
def test_error_becomes_one_line_and_an_exit_status(
    error: BaseException, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    @one_line_errors("error")
    def fail() -> int:
        raise error

    assert fail() == code
    assert len(capsys.readouterr().err.splitlines()) == 1


RAY_TRACEBACK = """\x1b[36mray::MapWorker(MapBatches(Worker)).submit()\x1b[39m (pid=4, ip=192.0.2.2)
  File "/apet/pipelines/results/storage.py", line 128, in write
    file.write(data)
OSError: [Errno 28] No space left on device

The above exception was the direct cause of the following exception:

\x1b[36mray::MapWorker(MapBatches(Worker)).submit()\x1b[39m (pid=4, ip=192.0.2.2)
  File "/ray/data/map_transformer.py", line 312, in __next__
    raise UserCodeException("UDF failed to process a data block.") from e
ray.exceptions.UserCodeException: UDF failed to process a data block.
To change retry attempts, configure `ray.data.DataContext.get_current()`"""


def test_root_cause_of_a_full_disk_says_what_to_do() -> None:
    assert root_cause(FULL).endswith("'/out/answers.parquet'; make room on that disk")
    assert root_cause(RuntimeError(RAY_TRACEBACK)) == (
        "OSError: [Errno 28] No space left on device; make room on that disk"
    )

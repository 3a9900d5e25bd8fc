"""What goes wrong ends a job with one line, which says what to do, and an exit status."""

from __future__ import annotations

import errno
import os

import pytest

from pipelines.job import _raised, guarded
from pipelines.results.lock import Locked

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
def test_one_line_and_a_status(
    error: BaseException, status: int, capsys: pytest.CaptureFixture[str]
) -> None:
    with guarded() as ended:
        raise error
    assert ended.code == status
    assert len(capsys.readouterr().err.splitlines()) == 1


AS_RAY_SAYS_IT = """\x1b[36mray::MapWorker(MapBatches(Answerer)).submit()\x1b[39m (pid=47, ip=192.0.2.2)
  File "/apet/pipelines/results/storage.py", line 128, in write
    file.write(data)
OSError: [Errno 28] No space left on device

The above exception was the direct cause of the following exception:

\x1b[36mray::MapWorker(MapBatches(Answerer)).submit()\x1b[39m (pid=47, ip=192.0.2.2)
  File "/ray/data/map_transformer.py", line 312, in __next__
    raise UserCodeException("UDF failed to process a data block.") from e
ray.exceptions.UserCodeException: UDF failed to process a data block.
To change retry attempts, configure `ray.data.DataContext.get_current()`"""


def test_a_full_disk_says_what_to_do() -> None:
    assert _raised(FULL).endswith("'/out/answers.parquet'; make room on that disk")
    assert _raised(RuntimeError(AS_RAY_SAYS_IT)) == (
        "OSError: [Errno 28] No space left on device; make room on that disk"
    )

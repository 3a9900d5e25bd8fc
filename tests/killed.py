"""A driver that is killed in the middle of its work, as a machine that goes down would."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parent.parent


def kill(command: Sequence[str], output: Path, parts: int) -> None:
    """Run a command of this repository, and kill it once so many parts of answers lie below `output`."""
    log = output.with_suffix(".txt")
    with log.open("w") as said:
        driver = subprocess.Popen(command, cwd=ROOT, stdout=said, stderr=said)
    try:
        deadline = time.monotonic() + 600
        while len(list(output.glob("*/*.parquet"))) < parts:
            assert driver.poll() is None, log.read_text()
            assert time.monotonic() < deadline, f"no answers to kill it over: {log.read_text()}"
            time.sleep(0.02)
    finally:
        driver.kill()
        driver.wait()

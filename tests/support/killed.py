"""A driver that is killed in the middle of its work, as a machine that goes down would."""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from tests.support import ROOT


def kill(
    command: Sequence[str], output: Path, parts: int, how: signal.Signals = signal.SIGKILL
) -> int:
    """Run a command of this repository, and kill it once so many parts of answers lie below `output`: its status."""
    log = output.with_suffix(".txt")
    with log.open("w") as said:
        # whoever runs the tests may ignore Ctrl-C, and children inherit that
        heeds = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
        driver = subprocess.Popen(command, cwd=ROOT, stdout=said, stderr=said, preexec_fn=heeds)
    try:
        deadline = time.monotonic() + 600
        while len(list(output.glob("*/*.parquet"))) < parts:
            assert driver.poll() is None, log.read_text()
            assert time.monotonic() < deadline, f"no answers to kill it over: {log.read_text()}"
            time.sleep(0.02)
        driver.send_signal(how)
        return driver.wait(timeout=120)
    finally:
        driver.kill()
        driver.wait()

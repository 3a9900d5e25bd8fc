"""Run a command of this repository and interrupt it in the middle of its work."""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from tests.support import ROOT

MAX_WAIT_S = 600


def interrupt_after(
    parts: int, command: Sequence[str], output: Path, sent: signal.Signals = signal.SIGKILL
) -> int:
    """Send a signal once this many files of answers exist below `output`; return the exit status.

    The output of the command is in a text file beside `output`.
    """
    log = output.with_suffix(".txt")
    with log.open("w") as file:
        # The shell that runs the tests may ignore Ctrl-C, which children inherit.
        restore = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
        driver = subprocess.Popen(command, cwd=ROOT, stdout=file, stderr=file, preexec_fn=restore)
    try:
        deadline = time.monotonic() + MAX_WAIT_S
        while len(list(output.glob("*/*.parquet"))) < parts:
            assert driver.poll() is None, log.read_text()
            assert time.monotonic() < deadline, f"no answers yet: {log.read_text()}"
            time.sleep(0.02)
        driver.send_signal(sent)
        return driver.wait(timeout=120)
    finally:
        driver.kill()
        driver.wait()

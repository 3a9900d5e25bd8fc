"""What the finished tower says of the training pictures, on disk: the second stage reads each many times."""

from __future__ import annotations

import logging
import time
from pathlib import Path

import numpy as np
from torch import nn

from demo.training.first import look
from demo.training.subject import Subject

_log = logging.getLogger(__name__)
_TELL = 200  # pictures


def cache(subject: Subject, tower: nn.Module, folder: Path, count: int, age: int) -> np.ndarray:
    """Features (count, frames, CLS + patches, width) float16, memory-mapped; a killed call goes on where it was.

    They are of a tower of that `age` in steps: those of a younger one are removed.
    """
    one = look(tower, subject, 0)
    file, marker = folder / f"features-{age}-{count}.npy", folder / f"features-{age}-{count}.done"
    if not file.exists():
        for other in folder.glob("features-*"):
            other.unlink()
        np.lib.format.open_memmap(file, "w+", one.dtype, (count, *one.shape)).flush()
    table = np.lib.format.open_memmap(file, "r+")
    done = int(marker.read_text()) if marker.exists() else 0
    began, first = time.monotonic(), done
    for number in range(done, count):
        table[number] = look(tower, subject, number)
        if (number + 1) % _TELL == 0 or number + 1 == count:
            table.flush()
            marker.write_text(str(number + 1))
            pace = (number + 1 - first) / (time.monotonic() - began)
            _log.info("features %d/%d, %.1f pictures/s", number + 1, count, pace)
    return np.load(file, mmap_mode="r")

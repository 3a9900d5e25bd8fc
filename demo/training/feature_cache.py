"""Features of the training pictures from the finished tower, on disk: each is read many times."""

import logging
import time
from pathlib import Path

import numpy as np
from torch import nn

from demo.training.tasks import Task
from demo.training.tower_stage import features_of

_log = logging.getLogger(__name__)
_LOG_EVERY = 200  # pictures


def cached_features(task: Task, tower: nn.Module, folder: Path, count: int, age: int) -> np.ndarray:
    """Features (count, frames, CLS + patches, width) in float16, memory-mapped.

    An interrupted call continues. `age` is the tower's in steps; features of another age are
    deleted.
    """
    one = features_of(tower, task, 0)
    file, marker = folder / f"features-{age}-{count}.npy", folder / f"features-{age}-{count}.done"
    if not file.exists():
        for other in folder.glob("features-*"):
            other.unlink()
        np.lib.format.open_memmap(file, "w+", one.dtype, (count, *one.shape)).flush()
    table = np.lib.format.open_memmap(file, "r+")
    done = int(marker.read_text()) if marker.exists() else 0
    began, first = time.monotonic(), done
    for number in range(done, count):
        table[number] = features_of(tower, task, number)
        if (number + 1) % _LOG_EVERY == 0 or number + 1 == count:
            table.flush()
            marker.write_text(str(number + 1))
            pace = (number + 1 - first) / (time.monotonic() - began)
            _log.info("features %d/%d, %.1f pictures/s", number + 1, count, pace)
    return np.load(file, mmap_mode="r")

"""A real worker that is slow enough to be interrupted and fails at chosen rows."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NoReturn

import torch

from pipelines.inference.engines.transformers import TransformersEngine
from pipelines.inference.worker import InferenceWorker

MIN_BATCH_S = 0.2  # so that a fault can happen in the middle of a batch


class ShiftedClock:
    """The module `time` with a wall clock that is off by the seconds in a file, if it exists."""

    def __init__(self, file: Path) -> None:
        self._file = file

    def time(self) -> float:
        return time.time() + (float(self._file.read_text()) if self._file.exists() else 0.0)

    def __getattr__(self, name: str) -> Any:
        return getattr(time, name)


def follow_clock(file: Path) -> None:
    """Make all modules of `pipelines` in this process use the clock of a file."""
    for name, module in list(sys.modules.items()):
        if name.startswith("pipelines") and getattr(module, "time", None) is time:
            module.time = ShiftedClock(file)  # type: ignore[attr-defined]


def raise_error() -> NoReturn:
    raise ArithmeticError("this row is wrong")


def hang() -> None:
    time.sleep(10_000)


def allocate_too_much() -> None:
    torch.empty(1 << 60)  # the allocator refuses


def kill_process() -> None:
    os.kill(os.getpid(), signal.SIGKILL)  # as the kernel does when memory runs out


def exceed_device_memory() -> NoReturn:
    raise torch.OutOfMemoryError("too many rows at once")


FAILURES: dict[str, Callable[[], None]] = {
    "row_raises": raise_error,
    "row_hangs": hang,
    "row_out_of_memory": allocate_too_much,
    "row_kills_worker": kill_process,
    "batch_out_of_memory": exceed_device_memory,
}
"""The action at a row, by the name of the fault. The last happens in batches of several rows."""


def faulty_worker(folder: Path, row_faults: Mapping[str, str]) -> type[InferenceWorker]:
    """Make the worker class of one scenario.

    folder: where workers leave notes, and where the test leaves `hold` (start no block) and `clock`
    row_faults: name of a fault in FAILURES, by row
    """

    class FaultyEngine(TransformersEngine):
        def load(self) -> None:
            import ray

            context = ray.get_runtime_context()
            devices = f"{ray.get_gpu_ids()} {os.environ.get('CUDA_VISIBLE_DEVICES')}"
            file = folder / "devices" / str(context.get_actor_id())
            file.write_text(f"{context.get_node_id()} {devices}")
            follow_clock(folder / "clock")
            super().load()

        def answer(self, config: Any, method: Any, rows: Sequence[Any], *args: Any) -> Any:
            names = [row.row_id for row in rows]
            if names != ["warm-up"]:
                (folder / "batches" / f"{time.monotonic_ns():020}-{os.getpid()}").touch()
                time.sleep(MIN_BATCH_S)
            for name in names:
                fault = row_faults.get(name)
                if fault is None or (fault == "batch_out_of_memory" and len(rows) == 1):
                    continue
                note_injection(folder, name)
                FAILURES[fault]()
            return super().answer(config, method, rows, *args)

    class FaultyWorker(InferenceWorker):
        engine_class = FaultyEngine

        def __call__(self, block: Any) -> Any:
            while (folder / "hold").exists():
                time.sleep(0.05)
            return super().__call__(block)

    return FaultyWorker


def note_injection(folder: Path, row: str) -> None:
    """Note when a fault happened to a row for the first time."""
    note = folder / "injections" / row
    if not note.exists():
        note.write_text(str(datetime.now(UTC).timestamp()))

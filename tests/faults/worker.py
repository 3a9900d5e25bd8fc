"""The worker of the nights: the real one, made slow enough to be hit, and that does at some rows what it is told."""

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

PAUSE = 0.2  # seconds that a batch takes at least


class Clock:
    """The module `time`, with a wall clock that is off by the seconds that a file says, if there is one."""

    def __init__(self, file: Path) -> None:
        self._file = file

    def time(self) -> float:
        return time.time() + (float(self._file.read_text()) if self._file.exists() else 0.0)

    def __getattr__(self, name: str) -> Any:
        return getattr(time, name)


def clock_of(file: Path) -> None:
    """From now on the pipeline's modules in this process go by that clock."""
    for name, module in list(sys.modules.items()):
        if name.startswith("pipelines") and getattr(module, "time", None) is time:
            module.time = Clock(file)  # type: ignore[attr-defined]


def worker(folder: Path, acts: Mapping[str, str]) -> type[InferenceWorker]:
    """The class of one night's workers."""

    def raises() -> NoReturn:
        raise ArithmeticError("this row is wrong")

    def hangs() -> None:
        time.sleep(10_000)

    def memory() -> None:
        torch.empty(1 << 60)  # the allocator's own refusal

    def killed() -> None:
        os.kill(os.getpid(), signal.SIGKILL)  # as the kernel does where memory is out

    known: dict[str, Callable[[], None]] = {
        "raises": raises,
        "hangs": hangs,
        "memory": memory,
        "killed": killed,
    }

    class FaultyEngine(TransformersEngine):
        def load(self) -> None:
            import ray

            context = ray.get_runtime_context()
            devices = f"{ray.get_gpu_ids()} {os.environ.get('CUDA_VISIBLE_DEVICES')}"
            file = folder / "devices" / str(context.get_actor_id())
            file.write_text(f"{context.get_node_id()} {devices}")
            clock_of(folder / "clock")
            super().load()

        def answer(self, config: Any, method: Any, rows: Sequence[Any], *args: Any) -> Any:
            names = [row.row_id for row in rows]
            if names != ["warm-up"]:
                (folder / "busy" / f"{time.monotonic_ns():020}-{os.getpid()}").touch()
                time.sleep(PAUSE)
            for name in names:
                act = acts.get(name)
                if act is None or (act == "crowded" and len(rows) == 1):
                    continue
                note = folder / "hits" / name
                if not note.exists():
                    note.write_text(str(datetime.now(UTC).timestamp()))
                if act == "crowded":
                    raise torch.OutOfMemoryError("too many rows at once")
                known[act]()
            return super().answer(config, method, rows, *args)

    class FaultyWorker(InferenceWorker):
        engine_class = FaultyEngine

        def __call__(self, block: Any) -> Any:
            while (folder / "hold").exists():
                time.sleep(0.05)
            return super().__call__(block)

    return FaultyWorker

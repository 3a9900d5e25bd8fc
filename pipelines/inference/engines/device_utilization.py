"""How busy a worker keeps its device: the share of the time from its first answers to its last that batches took.

On a GPU between device events, which are read when they have passed: nothing waits for them. A batch lasts there from
when the GPU could begin with it to when it was done with the last of it: gaps between the kernels of one batch are in
it, and are what a profile shows. Of a model on several GPUs it is the first one's. Elsewhere it is wall time.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from pipelines.inference.failure_tracker import BusyTime


class DeviceUtilization:
    """One worker's. Its first batch begins the steady state by ending; batches that overlap count once."""

    def __init__(self, device: torch.device) -> None:
        self._gpu = device.type == "cuda"
        self._last: Any = None  # when the latest known batch ended
        self._open: deque[tuple[Any, Any]] = deque()  # batches that are not counted yet
        self._shift = BusyTime(gpu=self._gpu)

    @contextmanager
    def batch(self) -> Iterator[None]:
        began = self._now()
        try:
            yield
        finally:
            self._open.append((began, self._now()))

    def told(self) -> BusyTime:
        """What has passed since this was last asked."""
        while self._open and self._passed(self._open[0][1]):
            began, ended = self._open.popleft()
            if self._last is None:
                self._last = ended
            elif (more := self._between(self._last, ended)) > 0:
                self._shift.whole_s += more
                self._shift.busy_s += more - max(0.0, self._between(self._last, began))
                self._last = ended
        told, self._shift = self._shift, BusyTime(gpu=self._gpu)
        return told

    def _now(self) -> Any:
        return (
            torch.cuda.current_stream().record_event(torch.cuda.Event(enable_timing=True))
            if self._gpu
            else clock()
        )

    def _passed(self, mark: Any) -> bool:
        return bool(mark.query()) if self._gpu else True

    def _between(self, earlier: Any, later: Any) -> float:
        return earlier.elapsed_time(later) / 1000 if self._gpu else later - earlier


def clock() -> float:
    return time.perf_counter()

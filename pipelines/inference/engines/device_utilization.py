"""How busy a worker keeps its device: the share of its steady state that batches took.

The steady state lasts from the end of a worker's first batch to the end of its last. On a GPU,
times are read from device events once they have passed, so nothing waits for them. A batch lasts
from when the GPU could start it until it has finished it: gaps between its kernels count as busy,
and are what a profile shows. For a model on several GPUs the first one is measured. On a CPU it is
wall time.
"""

import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from pipelines.inference.progress import BusyTime


class DeviceUtilization:
    """Measures one worker. Batches that overlap count once."""

    def __init__(self, device: torch.device) -> None:
        self._gpu = device.type == "cuda"
        self._last_end: Any = None  # of the latest batch that was counted
        self._pending: deque[tuple[Any, Any]] = deque()  # (begin, end) of batches not counted yet
        self._busy_time = BusyTime(gpu=self._gpu)

    @contextmanager
    def batch(self) -> Iterator[None]:
        began = self._mark()
        try:
            yield
        finally:
            self._pending.append((began, self._mark()))

    def drain(self) -> BusyTime:
        """The time since the last call."""
        while self._pending and self._has_passed(self._pending[0][1]):
            began, ended = self._pending.popleft()
            if self._last_end is None:
                self._last_end = ended
            elif (elapsed := self._seconds(self._last_end, ended)) > 0:
                idle = max(0.0, self._seconds(self._last_end, began))
                self._busy_time.total_s += elapsed
                self._busy_time.busy_s += elapsed - idle
                self._last_end = ended
        busy_time, self._busy_time = self._busy_time, BusyTime(gpu=self._gpu)
        return busy_time

    def _mark(self) -> Any:
        if not self._gpu:
            return clock()
        event = torch.cuda.Event(enable_timing=True)
        return torch.cuda.current_stream().record_event(event)

    def _has_passed(self, mark: Any) -> bool:
        return bool(mark.query()) if self._gpu else True

    def _seconds(self, earlier: Any, later: Any) -> float:
        return float(earlier.elapsed_time(later) / 1000 if self._gpu else later - earlier)


def clock() -> float:
    return time.perf_counter()

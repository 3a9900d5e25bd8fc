"""Time that a device spent on something, without waiting for it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch


class Stopwatch:
    """On a GPU time between device events, which are read when somebody asks; elsewhere wall time."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.spent = 0.0
        self.events: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []

    @contextmanager
    def running(self) -> Iterator[None]:
        if self.device.type == "cuda":
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            stream = torch.cuda.current_stream(self.device)
            start.record(stream)
            yield
            end.record(stream)
            self.events.append((start, end))
        else:
            before = time.perf_counter()
            yield
            self.spent += 1e3 * (time.perf_counter() - before)

    @property
    def ms(self) -> float:
        for start, end in self.events:
            end.synchronize()
            self.spent += start.elapsed_time(end)
        self.events.clear()
        return self.spent

"""Measure the time that a device spends on something, without waiting for it."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch


class Stopwatch:
    """Measures the time between device events on a GPU, and wall time elsewhere."""

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
            start_s = time.perf_counter()
            yield
            self.spent += 1e3 * (time.perf_counter() - start_s)

    @property
    def ms(self) -> float:
        """The time measured so far. On a GPU, this waits for the events."""
        for start, end in self.events:
            end.synchronize()
            self.spent += start.elapsed_time(end)
        self.events.clear()
        return self.spent

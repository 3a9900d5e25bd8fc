"""Time and memory of calls on a device, shared by the benchmarks."""

import ctypes
import math
import os
import statistics
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

SAMPLING_S = 0.0005  # between two looks at a process' memory


def default_device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def describe(device: torch.device) -> str:
    """The hardware of a device, for the head of a table."""
    if device.type == "cuda":
        return torch.cuda.get_device_name()
    return f"{torch.get_num_threads()} CPU threads"


def title(device: torch.device) -> str:
    return f"torch {torch.__version__}, {describe(device)}, load {os.getloadavg()[0]:.1f}"


def time_ms(call: Callable[[], object], device: torch.device) -> float:
    """Wall time of one call; on a GPU the time between device events."""
    if device.type == "cuda":
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        call()
        end.record()
        end.synchronize()
        return start.elapsed_time(end)
    before = time.perf_counter()
    call()
    return 1e3 * (time.perf_counter() - before)


def median_ms(
    calls: Mapping[str, Callable[[], object]], repeat: int, device: torch.device
) -> dict[str, float]:
    """Median times of several calls, taken in turn so that other load hits all of them alike."""
    for call in calls.values():
        call()
    turns = [{name: time_ms(call, device) for name, call in calls.items()} for _ in range(repeat)]
    return {name: statistics.median(turn[name] for turn in turns) for name in calls}


def resident_mib() -> float:
    """Memory of this process; NaN where there is no /proc."""
    statm = Path("/proc/self/statm")
    if not statm.exists():
        return math.nan
    return int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def peak_mib(
    call: Callable[[], object], device: torch.device, interval_s: float = SAMPLING_S
) -> float:
    """Most memory that a call held beyond what was held before; on a CPU sampled by a thread."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    # glibc keeps freed memory, which would hide what the call needs.
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim:
        trim(0)
    samples, done = [resident_mib()], threading.Event()

    def sample() -> None:
        while not done.wait(interval_s):
            samples.append(resident_mib())

    sampler = threading.Thread(target=sample)
    sampler.start()
    try:
        call()
    finally:
        done.set()
        sampler.join()
    return max(samples) - samples[0]

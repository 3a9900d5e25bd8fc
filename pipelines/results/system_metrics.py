"""How busy this machine and this process are, by the names that MLflow's own system metrics have."""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path

_STAT, _MEMORY, _OWN = Path("/proc/stat"), Path("/proc/meminfo"), Path("/proc/self/statm")


class SystemMetrics:
    """Read at intervals; shares are of the time since the last reading. Machine-wide numbers need Linux."""

    def __init__(self) -> None:
        self._machine = _ticks()
        self._process = time.process_time()
        self._at = time.monotonic()

    def read(self) -> dict[str, float]:
        found: dict[str, float] = {}
        at, process, machine = time.monotonic(), time.process_time(), _ticks()
        if at > self._at:
            found["system/driver_cpu_percentage"] = 100 * (process - self._process) / (at - self._at)
        if machine and self._machine:
            busy, whole = (now - before for now, before in zip(machine, self._machine, strict=True))
            if whole > 0:
                found["system/cpu_utilization_percentage"] = 100 * busy / whole
        self._at, self._process, self._machine = at, process, machine
        if _MEMORY.exists():
            lines = (line.split() for line in _MEMORY.read_text().splitlines())
            memory = {words[0].rstrip(":"): int(words[1]) * 1024 for words in lines if len(words) > 1}
            used = memory["MemTotal"] - memory["MemAvailable"]
            found["system/system_memory_usage_megabytes"] = used / 1e6
            found["system/system_memory_usage_percentage"] = 100 * used / memory["MemTotal"]
            found["system/driver_memory_megabytes"] = (
                int(_OWN.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6
            )
        return {name: round(value, 1) for name, value in found.items()}


def _ticks() -> tuple[int, int] | None:
    """Of all cores since boot: ticks that were not idle, and all."""
    if not _STAT.exists():
        return None
    user, nice, system, idle, waiting, *rest = (int(word) for word in _STAT.read_text().splitlines()[0].split()[1:9])
    whole = user + nice + system + idle + waiting + sum(rest)
    return whole - idle - waiting, whole


def gpu_metrics() -> dict[str, float]:
    """Of this process's GPU; nothing without one. How busy it is takes nvidia-ml-py, which the extra `gpu` brings."""
    import torch

    if not torch.cuda.is_available():
        return {}
    free, total = torch.cuda.mem_get_info()
    found = {
        "system/gpu_memory_usage_megabytes": (total - free) / 1e6,
        "system/gpu_memory_usage_percentage": 100 * (total - free) / total,
    }
    with contextlib.suppress(ImportError, RuntimeError):
        found["system/gpu_utilization_percentage"] = float(torch.cuda.utilization())
    return found

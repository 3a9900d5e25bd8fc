"""CPU, memory and GPU usage, under the names of MLflow's own system metrics."""

import contextlib

import psutil


class SystemMetrics:
    """Usage of this machine and of this process (the driver); CPU usage is since the last reading.

    psutil counts CPU time per thread that asks: create and read an instance in the same thread.
    """

    def __init__(self) -> None:
        self._process = psutil.Process()
        self.read()

    def read(self) -> dict[str, float]:
        memory = psutil.virtual_memory()
        values = {
            "system/driver_cpu_percentage": self._process.cpu_percent(),
            "system/cpu_utilization_percentage": psutil.cpu_percent(),
            "system/system_memory_usage_megabytes": (memory.total - memory.available) / 1e6,
            "system/system_memory_usage_percentage": memory.percent,
            "system/driver_memory_megabytes": self._process.memory_info().rss / 1e6,
        }
        return {name: round(value, 1) for name, value in values.items()}


def gpu_metrics() -> dict[str, float]:
    """Usage of this process's GPU; empty without one. Utilization needs the extra `gpu` (NVML)."""
    import torch

    if not torch.cuda.is_available():
        return {}
    free, total = torch.cuda.mem_get_info()
    values = {
        "system/gpu_memory_usage_megabytes": (total - free) / 1e6,
        "system/gpu_memory_usage_percentage": 100 * (total - free) / total,
    }
    with contextlib.suppress(ImportError, RuntimeError):
        values["system/gpu_utilization_percentage"] = float(torch.cuda.utilization())
    return values

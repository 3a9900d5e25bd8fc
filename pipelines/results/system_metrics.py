"""CPU, memory and GPU usage, under the names of MLflow's own system metrics."""

import contextlib

import psutil


def driver_metrics() -> dict[str, float]:
    """Usage of this machine since the last reading, and memory of this process, the driver."""
    memory = psutil.virtual_memory()
    return {
        "system/cpu_utilization_percentage": psutil.cpu_percent(),
        "system/system_memory_usage_percentage": memory.percent,
        "system/driver_memory_megabytes": round(psutil.Process().memory_info().rss / 1e6, 1),
    }


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

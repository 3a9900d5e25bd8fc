"""Where the time of a prefill goes, for speed.py: torch's profiler, summed up in a few groups."""

import re
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile, record_function

from apet import attach
from apet.methods.base import Method
from apet.stopwatch import Stopwatch

COMPRESSION = "apet: compression"
GROUPS = ("matmul", "attention", "compression", "copy", "other")

# An operation outside compression belongs to the first group whose pattern its name matches.
PATTERNS = {
    "attention": r"attention|flash|fmha|softmax|varlen",
    "matmul": r"mm$|mm_|matmul|linear|gemm|conv|nvjet|cutlass",
    "copy": r"copy|cat$|clone|index|gather|scatter|memcpy|memset|fill|zero|_to_|embedding",
}


@torch.inference_mode()
def shares(model: Any, method: Method, inputs: dict[str, Tensor]) -> tuple[float, dict[str, float]]:
    """Milliseconds of all operations of one prefill on its device, and the share of each group."""
    gpu = model.device.type == "cuda"
    attached = nullcontext() if method.name == "vanilla" else attach(model, method)
    with attached, recorded_compression():
        model(**inputs, use_cache=True, logits_to_keep=1)  # the first call is slower
        activities = [ProfilerActivity.CPU, *[ProfilerActivity.CUDA] * gpu]
        with profile(activities=activities) as profiler:
            model(**inputs, use_cache=True, logits_to_keep=1)
            if gpu:
                torch.cuda.synchronize()
    times: Counter[str] = Counter()
    for event in profiler.events():
        # The time of a GPU kernel counts for the operation on the CPU that launched it.
        if str(event.device_type) == "DeviceType.CPU":
            times[group_of(event)] += (
                event.self_device_time_total if gpu else event.self_cpu_time_total
            )
    total = sum(times.values())
    return total / 1e3, {name: times[name] / total for name in GROUPS}


def group_of(event: Any) -> str:
    parent = event
    while parent is not None:
        if parent.name == COMPRESSION:
            return "compression"
        parent = parent.cpu_parent
    name = event.name.lower()
    matches = (group for group, pattern in PATTERNS.items() if re.search(pattern, name))
    return next(matches, "other")


@contextmanager
def recorded_compression() -> Iterator[None]:
    """Record all that runs under a stopwatch as compression in the profile."""
    original = Stopwatch.running

    @contextmanager
    def running(self: Stopwatch) -> Iterator[None]:
        with original(self), record_function(COMPRESSION):
            yield

    Stopwatch.running = running  # type: ignore[method-assign]
    try:
        yield
    finally:
        Stopwatch.running = original  # type: ignore[method-assign]

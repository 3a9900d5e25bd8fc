"""Where the time of a prefill goes, for bench_speed.py: torch's profiler, summed up in a few groups of operations."""

from __future__ import annotations

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
GROUPS = {  # of what is not compression, the first whose pattern is found in an operation's name
    "attention": r"attention|flash|fmha|softmax|varlen",
    "matmul": r"mm$|mm_|matmul|linear|gemm|conv|nvjet|cutlass",
    "copy": r"copy|cat$|clone|index|gather|scatter|memcpy|memset|fill|zero|_to_|embedding",
}


@torch.inference_mode()
def shares(model: Any, method: Method, inputs: dict[str, Tensor]) -> tuple[float, dict[str, float]]:
    """Milliseconds of all operations of one prefill on its device, and the share of each group."""
    gpu = model.device.type == "cuda"
    attached = nullcontext() if method.name == "vanilla" else attach(model, method)
    with attached, named_compression():
        model(**inputs, use_cache=True, logits_to_keep=1)  # the first is slower
        with profile(activities=[ProfilerActivity.CPU, *[ProfilerActivity.CUDA] * gpu]) as seen:
            model(**inputs, use_cache=True, logits_to_keep=1)
            if gpu:
                torch.cuda.synchronize()
    spent: Counter[str] = Counter()
    for event in seen.events():
        if (
            str(event.device_type) == "DeviceType.CPU"
        ):  # what a kernel took is counted to the operation it is of
            spent[group(event)] += (
                event.self_device_time_total if gpu else event.self_cpu_time_total
            )
    whole = sum(spent.values())
    return whole / 1e3, {
        name: spent[name] / whole
        for name in ("matmul", "attention", "compression", "copy", "other")
    }


def group(event: Any) -> str:
    above = event
    while above is not None:
        if above.name == COMPRESSION:
            return "compression"
        above = above.cpu_parent
    return next(
        (name for name, known in GROUPS.items() if re.search(known, event.name.lower())), "other"
    )


@contextmanager
def named_compression() -> Iterator[None]:
    """What runs under a stopwatch is compression: so the profile shall call it."""
    plain = Stopwatch.running

    @contextmanager
    def running(self: Stopwatch) -> Iterator[None]:
        with plain(self), record_function(COMPRESSION):
            yield

    Stopwatch.running = running  # type: ignore[method-assign]
    try:
        yield
    finally:
        Stopwatch.running = plain  # type: ignore[method-assign]

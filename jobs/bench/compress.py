"""How fast is `apet.compress`? Against the textbook sequence of steps, on the shapes that models have.

    python jobs/bench/compress.py            # a table, and one JSON line last
    python jobs/bench/compress.py --repeat 20

The textbook is ApET written step by step in batched torch, as one would after reading the paper: per-step
distances, a solve, top-k, and the cosine of every dropped with every kept token, either broadcast to
N x K x D as the authors' release does it, or as a product of normalised matrices. It computes in the input's
dtype; ours accumulates in float64. All three must keep the same tokens.

On a GPU ours are Triton kernels. A second table sets them beside our own torch path and the textbook in bfloat16, on
batches as large as a GPU takes: launched one by one, replayed as a CUDA graph, and of pictures that all differ in size.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import math
import os
import statistics
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from apet import compress
from apet.core.fused import usable

SHAPES = [  # groups, tokens, width, kept
    (1, 576, 1024, 64),
    (8, 576, 1024, 64),
    (5, 576, 1024, 32),
    (8, 256, 4096, 32),
    (1, 2880, 1024, 160),
    (1, 96, 4096, 32),
]
LONG = [(2048, 512), (4096, 512), (8192, 512), (16_384, 1024)]  # tokens, kept
BATCHES = [  # groups, tokens, width, kept: both sites of LLaVA-1.5, Video-LLaVA's frames, Qwen2.5-VL's pictures
    (64, 576, 1024, 96),
    (64, 96, 4096, 32),
    (256, 256, 4096, 32),
    (32, 740, 3584, 111),
    (8, 2048, 4096, 205),
]
BASIS = 10


def textbook(tokens: Tensor, keep: int, broadcast: bool) -> tuple[Tensor, Tensor]:
    """Kept tokens (B, K, D) and their indices (B, K), one step of the paper after the other."""
    batch, count, width = tokens.shape
    rows = torch.arange(batch, device=tokens.device)
    pick = (tokens - tokens.mean(1, keepdim=True)).square().sum(-1).argmax(1)
    picks, nearest = [pick], torch.full((batch, count), torch.inf, device=tokens.device)
    for _ in range(BASIS - 1):
        nearest = torch.minimum(nearest, (tokens - tokens[rows, pick][:, None]).square().sum(-1))
        pick = nearest.argmax(1)
        picks.append(pick)
    basis = torch.stack(picks, 1)
    anchor = tokens.gather(1, basis[..., None].expand(-1, -1, width))
    weights = torch.linalg.solve(anchor @ anchor.mT, anchor @ tokens.mT).mT
    error = (tokens - weights @ anchor).norm(dim=-1)
    index = error.scatter(1, basis, torch.inf).topk(keep).indices.sort(1).values
    dropped = torch.ones(batch, count, dtype=torch.bool, device=tokens.device).scatter(
        1, index, False
    )
    others = tokens[dropped].view(batch, count - keep, width)
    kept = tokens.gather(1, index[..., None].expand(-1, -1, width))
    if broadcast:
        cosine = F.cosine_similarity(others[:, :, None], kept[:, None], dim=-1)
    else:
        cosine = F.normalize(others, dim=-1) @ F.normalize(kept, dim=-1).mT
    target = cosine.argmax(2)
    members = torch.ones(batch, keep, device=tokens.device).scatter_add(
        1, target, torch.ones(target.shape, device=tokens.device)
    )
    total = kept.scatter_add(1, target[..., None].expand(-1, -1, width), others)
    return total / members[..., None], index


def time_ms(call: Callable[[], object], device: torch.device) -> float:
    """Wall time of one call; on a GPU between device events."""
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
    ways: dict[str, Callable[[], object]], repeat: int, device: torch.device
) -> dict[str, float]:
    """Median times of several ways to do a thing, taken in turn so that a busy moment hits all alike."""
    for way in ways.values():
        way()
    times = [{name: time_ms(way, device) for name, way in ways.items()} for _ in range(repeat)]
    return {name: statistics.median(turn[name] for turn in times) for name in ways}


def resident_mib() -> float:
    """Memory of this process; Linux says, elsewhere it is unknown."""
    statm = Path("/proc/self/statm")
    return (
        int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20
        if statm.exists()
        else math.nan
    )


def peak_mib(call: Callable[[], object], device: torch.device, interval: float = 0.0005) -> float:
    """The most memory that `call` held beside what there was before it; on a CPU looked up every `interval` s."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    trim = getattr(
        ctypes.CDLL(None), "malloc_trim", None
    )  # glibc: memory freed earlier would hide what we need
    if trim:
        trim(0)
    seen, done = [resident_mib()], threading.Event()

    def watch() -> None:
        while not done.wait(interval):
            seen.append(resident_mib())

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        call()
    finally:
        done.set()
        watcher.join()
    return max(seen) - seen[0]


def compare(shape: tuple[int, int, int, int], device: torch.device, repeat: int) -> dict[str, Any]:
    """Ours and both textbooks on one shape."""
    groups, count, width, keep = shape
    tokens = normal(groups, count, width).to(device)
    ways: dict[str, Callable[[], object]] = {
        "ours": lambda: compress(tokens, keep, BASIS),
        "broadcast": lambda: textbook(tokens, keep, broadcast=True),
        "matmul": lambda: textbook(tokens, keep, broadcast=False),
    }
    ms = median_ms(ways, repeat, device)
    ours = compress(tokens, keep, BASIS)
    merged, index = textbook(tokens, keep, broadcast=True)
    return {
        "device": device.type,
        "shape": shape,
        "ms": ms,
        "peak_mib": {name: peak_mib(way, device) for name, way in ways.items()},
        "ratio": ms["broadcast"] / ms["ours"],
        "ratio_matmul": ms["matmul"] / ms["ours"],
        "same_tokens": torch.equal(ours.index, index),
        "largest_difference": float((ours.tokens - merged).abs().max()),
    }


def grow(device: torch.device, repeat: int) -> list[dict[str, Any]]:
    """Ours on single groups of growing length, width 1,024, timed in turns so that all meet the same disturbance."""
    groups = {(count, keep): normal(1, count, 1024).to(device) for count, keep in LONG}
    ways = {
        f"{count}": partial(compress, group, keep, BASIS) for (count, keep), group in groups.items()
    }
    ms = median_ms(ways, repeat, device)
    return [
        {
            "device": device.type,
            "count": count,
            "keep": keep,
            "ms": ms[f"{count}"],
            "peak_mib": peak_mib(ways[f"{count}"], device),
        }
        for count, keep in LONG
    ]


def replayed(tokens: Tensor, keep: int) -> Callable[[], object]:
    """The same compression as a CUDA graph."""
    compress(tokens, keep, BASIS, check=False)  # what compiles must do so before
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        compress(tokens, keep, BASIS, check=False)
    return graph.replay


def fuse(shape: tuple[int, int, int, int], device: torch.device, repeat: int) -> dict[str, Any]:
    """The Triton kernels against our torch path and the textbook, in bfloat16; `device` is a GPU."""
    groups, count, width, keep = shape
    tokens = normal(groups, count, width).to(device, torch.bfloat16)
    uneven = [tokens[place, : max(keep + 1, count - place)] for place in range(groups)]
    ways: dict[str, Callable[[], object]] = {
        "kernels": lambda: compress(tokens, keep, BASIS, check=False),
        "torch": lambda: compress(tokens, keep, BASIS, check=False, kernels=False),
        "textbook": lambda: textbook(tokens.float(), keep, broadcast=False),
        "uneven": lambda: compress(uneven, keep, BASIS, check=False),
        "uneven_torch": lambda: compress(uneven, keep, BASIS, check=False, kernels=False),
    }
    fused = usable(tokens)
    if fused:
        ways["graph"] = replayed(tokens, keep)
    ms = median_ms(ways, repeat, device)
    one, other = compress(tokens, keep, BASIS), compress(tokens, keep, BASIS, kernels=False)
    return {
        "shape": shape,
        "ms": ms,
        "fused": fused,
        "same_tokens": torch.equal(one.index, other.index),
    }


def print_fused(found: list[dict[str, Any]]) -> None:
    print(
        "\nbfloat16                            kernels  as graph     torch  textbook |  uneven     torch    same"
    )
    print(
        "groups x tokens x width -> kept          ms        ms        ms        ms |      ms        ms  tokens"
    )
    for one in found:
        ms = one["ms"]
        graph = f"{ms['graph']:9.2f}" if one["fused"] else f"{'no':>9}"
        print(
            f"{'{} x {} x {} -> {}'.format(*one['shape']):31} {ms['kernels']:11.2f} {graph} {ms['torch']:9.2f}"
            f" {ms['textbook']:9.2f} | {ms['uneven']:7.2f} {ms['uneven_torch']:9.2f}"
            f" {'yes' if one['same_tokens'] else 'NO':>7}"
        )
    if not all(one["fused"] for one in found):
        print("Triton does not work here: 'kernels' are the torch path")


def normal(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--repeat", type=int, default=5, help="timed calls of which the median counts (default 5)"
    )
    repeat = parser.parse_args().repeat
    devices = [torch.device("cpu")] + [torch.device("cuda")] * torch.cuda.is_available()
    where = f"{torch.get_num_threads()} CPU threads" + (
        f", {torch.cuda.get_device_name()}" if devices[1:] else ""
    )
    print(f"torch {torch.__version__}, {where}; float32, basis {BASIS}, median of {repeat}\n")
    print(
        "                                       ours   broadcast textbook     matmul textbook       same     peak MiB"
    )
    print(
        "groups x tokens x width -> kept          ms        ms    ratio        ms     ratio   tokens  ours/broadcast/mm"
    )
    compared, grown = [], []
    for device in devices:
        for shape in SHAPES:
            found = compare(shape, device, repeat)
            compared.append(found)
            ms, peak = found["ms"], found["peak_mib"]
            name = "{} x {} x {} -> {}".format(*shape) + (" gpu" if device.type == "cuda" else "")
            print(
                f"{name:31} {ms['ours']:11.1f} {ms['broadcast']:9.1f} {found['ratio']:7.1f}x"
                f" {ms['matmul']:9.1f} {found['ratio_matmul']:8.2f}x {'yes' if found['same_tokens'] else 'NO':>8}"
                f"  {peak['ours']:.0f} / {peak['broadcast']:.0f} / {peak['matmul']:.0f}"
            )
    print("\none long group, width 1024             ms   x the one before   peak MiB")
    for device in devices:
        for found in grow(device, repeat):
            same = (
                grown and grown[-1]["keep"] == found["keep"] and grown[-1]["device"] == device.type
            )
            factor = f"{found['ms'] / grown[-1]['ms']:17.2f}x" if same else " " * 18
            grown.append(found)
            name = f"{found['count']} -> {found['keep']}" + (
                " gpu" if device.type == "cuda" else ""
            )
            print(f"{name:31} {found['ms']:11.1f} {factor} {found['peak_mib']:10.0f}")
    fused = [fuse(shape, device, repeat) for device in devices[1:] for shape in BATCHES]
    if fused:
        print_fused(fused)
    found = {"bench": "compress", "torch": torch.__version__, "where": where}
    print(json.dumps({**found, "shapes": compared, "long": grown, "fused": fused}))


if __name__ == "__main__":
    main()

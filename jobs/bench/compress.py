"""Compare `apet.compress` with the textbook sequence of steps, on the shapes that models have.

    python jobs/bench/compress.py
    python jobs/bench/compress.py --repeat 20

The textbook is ApET written step by step in batched torch, as one would after reading the paper:
distances per step, a solve, top-k, and the cosine of every dropped with every kept token, either
broadcast to N x K x D as in the authors' release, or as a product of normalised matrices. It
computes in the input's dtype; ours accumulates in float64. All three must keep the same tokens.

On a GPU ours are Triton kernels. A second table compares them with our own torch path and the
textbook in bfloat16, on batches as large as a GPU takes: launched one by one, replayed as a CUDA
graph, and with pictures that all differ in size.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from apet import compress
from apet.core.triton_launch import kernels_usable
from jobs.bench.common import argument_parser, print_json
from jobs.bench.timing import describe, median_ms, peak_mib

Shape = tuple[int, int, int, int]  # groups, tokens, width, kept

SHAPES: list[Shape] = [
    (1, 576, 1024, 64),
    (8, 576, 1024, 64),
    (5, 576, 1024, 32),
    (8, 256, 4096, 32),
    (1, 2880, 1024, 160),
    (1, 96, 4096, 32),
]
# Both sites of LLaVA-1.5, the frames of Video-LLaVA, the pictures of Qwen2.5-VL.
GPU_SHAPES: list[Shape] = [
    (64, 576, 1024, 96),
    (64, 96, 4096, 32),
    (256, 256, 4096, 32),
    (32, 740, 3584, 111),
    (8, 2048, 4096, 205),
]
LONG_GROUPS = [(2048, 512), (4096, 512), (8192, 512), (16_384, 1024)]  # tokens, kept
LONG_WIDTH = 1024
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
    is_dropped = torch.ones(batch, count, dtype=torch.bool, device=tokens.device)
    is_dropped = is_dropped.scatter(1, index, False)
    dropped = tokens[is_dropped].view(batch, count - keep, width)
    kept = tokens.gather(1, index[..., None].expand(-1, -1, width))
    if broadcast:
        cosine = F.cosine_similarity(dropped[:, :, None], kept[:, None], dim=-1)
    else:
        cosine = F.normalize(dropped, dim=-1) @ F.normalize(kept, dim=-1).mT
    target = cosine.argmax(2)
    ones = torch.ones(target.shape, device=tokens.device)
    members = torch.ones(batch, keep, device=tokens.device).scatter_add(1, target, ones)
    total = kept.scatter_add(1, target[..., None].expand(-1, -1, width), dropped)
    return total / members[..., None], index


def normal(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def compare(shape: Shape, device: torch.device, repeat: int) -> dict[str, Any]:
    """Time and memory of ours and of both textbooks on one shape."""
    groups, count, width, keep = shape
    tokens = normal(groups, count, width).to(device)
    calls: dict[str, Callable[[], object]] = {
        "ours": lambda: compress(tokens, keep, BASIS),
        "broadcast": lambda: textbook(tokens, keep, broadcast=True),
        "matmul": lambda: textbook(tokens, keep, broadcast=False),
    }
    ms = median_ms(calls, repeat, device)
    ours = compress(tokens, keep, BASIS)
    merged, index = textbook(tokens, keep, broadcast=True)
    return {
        "device": device.type,
        "shape": shape,
        "ms": ms,
        "peak_mib": {name: peak_mib(call, device) for name, call in calls.items()},
        "ratio": ms["broadcast"] / ms["ours"],
        "ratio_matmul": ms["matmul"] / ms["ours"],
        "same_tokens": torch.equal(ours.index, index),
        "largest_difference": float((ours.tokens - merged).abs().max()),
    }


def measure_growth(device: torch.device, repeat: int) -> list[dict[str, Any]]:
    """Time and memory of ours on single groups of growing length."""
    calls = {
        f"{count}": partial(compress, normal(1, count, LONG_WIDTH).to(device), keep, BASIS)
        for count, keep in LONG_GROUPS
    }
    ms = median_ms(calls, repeat, device)
    return [
        {
            "device": device.type,
            "count": count,
            "keep": keep,
            "ms": ms[f"{count}"],
            "peak_mib": peak_mib(calls[f"{count}"], device),
        }
        for count, keep in LONG_GROUPS
    ]


def cuda_graph(tokens: Tensor, keep: int) -> Callable[[], object]:
    """The compression captured as a CUDA graph: a call replays it."""
    compress(tokens, keep, BASIS, check=False)  # compiles what a capture must not
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        compress(tokens, keep, BASIS, check=False)
    return graph.replay


def compare_kernels(shape: Shape, device: torch.device, repeat: int) -> dict[str, Any]:
    """Time the Triton kernels, our torch path and the textbook in bfloat16 on a GPU."""
    groups, count, width, keep = shape
    tokens = normal(groups, count, width).to(device, torch.bfloat16)
    uneven = [tokens[group, : max(keep + 1, count - group)] for group in range(groups)]
    calls: dict[str, Callable[[], object]] = {
        "kernels": lambda: compress(tokens, keep, BASIS, check=False),
        "torch": lambda: compress(tokens, keep, BASIS, check=False, kernels=False),
        "textbook": lambda: textbook(tokens.float(), keep, broadcast=False),
        "uneven": lambda: compress(uneven, keep, BASIS, check=False),
        "uneven_torch": lambda: compress(uneven, keep, BASIS, check=False, kernels=False),
    }
    fused = kernels_usable(tokens)
    if fused:
        calls["graph"] = cuda_graph(tokens, keep)
    ms = median_ms(calls, repeat, device)
    kernels, plain = compress(tokens, keep, BASIS), compress(tokens, keep, BASIS, kernels=False)
    return {
        "shape": shape,
        "ms": ms,
        "fused": fused,
        "same_tokens": torch.equal(kernels.index, plain.index),
    }


def label(shape: Shape) -> str:
    return "{} x {} x {} -> {}".format(*shape)


def yes_or_no(value: bool) -> str:
    return "yes" if value else "NO"


COMPARISON_HEAD = (
    f"{'ours':>43}   broadcast textbook     matmul textbook       same     peak MiB\n"
    f"{'groups x tokens x width -> kept':41}ms        ms    ratio        ms     ratio"
    "   tokens  ours/broadcast/mm"
)
KERNELS_HEAD = (
    f"\n{'bfloat16':36}kernels  as graph     torch  textbook |  uneven     torch    same\n"
    f"{'groups x tokens x width -> kept':41}ms        ms        ms        ms"
    " |      ms        ms  tokens"
)


def print_comparison(row: dict[str, Any]) -> None:
    ms, peak = row["ms"], row["peak_mib"]
    name = label(row["shape"]) + (" gpu" if row["device"] == "cuda" else "")
    print(
        f"{name:31} {ms['ours']:11.1f} {ms['broadcast']:9.1f} {row['ratio']:7.1f}x"
        f" {ms['matmul']:9.1f} {row['ratio_matmul']:8.2f}x {yes_or_no(row['same_tokens']):>8}"
        f"  {peak['ours']:.0f} / {peak['broadcast']:.0f} / {peak['matmul']:.0f}"
    )


def print_growth(rows: list[dict[str, Any]]) -> None:
    previous = None
    for row in rows:
        is_comparable = previous is not None and previous["keep"] == row["keep"]
        factor = f"{row['ms'] / previous['ms']:17.2f}x" if previous and is_comparable else " " * 18
        name = f"{row['count']} -> {row['keep']}" + (" gpu" if row["device"] == "cuda" else "")
        print(f"{name:31} {row['ms']:11.1f} {factor} {row['peak_mib']:10.0f}")
        previous = row


def print_kernels(rows: list[dict[str, Any]]) -> None:
    print(KERNELS_HEAD)
    for row in rows:
        ms = row["ms"]
        graph = f"{ms['graph']:9.2f}" if row["fused"] else f"{'no':>9}"
        print(
            f"{label(row['shape']):31} {ms['kernels']:11.2f} {graph} {ms['torch']:9.2f}"
            f" {ms['textbook']:9.2f} | {ms['uneven']:7.2f} {ms['uneven_torch']:9.2f}"
            f" {yes_or_no(row['same_tokens']):>7}"
        )
    if not all(row["fused"] for row in rows):
        print("Triton does not work here: 'kernels' are the torch path")


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument(
        "--repeat", type=int, default=5, help="timed calls, of which the median counts (default 5)"
    )
    repeat = parser.parse_args().repeat
    gpus = [torch.device("cuda")] if torch.cuda.is_available() else []
    devices = [torch.device("cpu"), *gpus]
    where = ", ".join(map(describe, devices))
    print(f"torch {torch.__version__}, {where}; float32, basis {BASIS}, median of {repeat}\n")
    print(COMPARISON_HEAD)
    compared, grown = [], []
    for device in devices:
        for shape in SHAPES:
            compared.append(compare(shape, device, repeat))
            print_comparison(compared[-1])
    print("\none long group, width 1024             ms   x the one before   peak MiB")
    for device in devices:
        rows = measure_growth(device, repeat)
        print_growth(rows)
        grown += rows
    fused = [compare_kernels(shape, device, repeat) for device in gpus for shape in GPU_SHAPES]
    if fused:
        print_kernels(fused)
    versions = {"torch": torch.__version__, "where": where}
    print_json("compress", **versions, shapes=compared, long=grown, fused=fused)


if __name__ == "__main__":
    main()

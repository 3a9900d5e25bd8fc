"""ApET for groups of any sizes in one set of kernel launches, where Triton can be used.

There are some thirty launches, however many groups there are and however they differ. The numbers
of tokens and of kept tokens are known on the host, so nothing waits for the device and a CUDA graph
can be captured. The launches that pick the basis run one after another, because each pick depends
on all of the previous launch; each fills the GPU. `basis`, `approximation_error`, `gram` and
`merge` do the same in plain torch: for everything else, and as the reference of the tests.
"""

import os
import warnings
from collections.abc import Sequence
from functools import cache
from importlib.util import find_spec
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from apet.core.approximation_error import ERROR_TOLERANCE, squared_error
from apet.core.basis import farthest_points
from apet.core.gram import Gram, stable_topk
from apet.core.group_layout import GroupLayout

# a * b + c in one rounding. Triton's default is about to change.
FUSION = {"enable_fp_fusion": True}


class FlatCompressed(NamedTuple):
    """The result for all groups, one after the other; or for a batch: (B, K, D), (B, K), (B, N)."""

    tokens: Tensor  # (sum of K, D) float64
    kept_index: Tensor  # (sum of K,) within the group, ascending
    error: Tensor  # (sum of N,) float64, squared
    slot: Tensor  # (sum of N,) within the group; -1: dropped
    squares: Tensor  # (sum of N,) float64: squared norms of the tokens


def kernels_usable(tokens: Tensor) -> bool:
    """True on a GPU where Triton works (or under its interpreter), unless gradients are needed."""
    if tokens.numel() == 0 or (tokens.requires_grad and torch.is_grad_enabled()):
        return False
    return os.environ.get("TRITON_INTERPRET") == "1" or (
        tokens.is_cuda and _kernels_work(tokens.device, tokens.dtype)
    )


@cache
def _kernels_work(device: torch.device, dtype: torch.dtype) -> bool:
    """Compile the kernels and compare them with torch: once a process, waits for the GPU."""
    if find_spec("triton") is None:
        return False
    if torch.cuda.is_current_stream_capturing():
        raise RuntimeError(
            "a CUDA graph is being captured and ApET's kernels are not compiled; call compress"
            " once before the capture"
        )
    sample = torch.randn(2, 100, 72, generator=torch.Generator().manual_seed(0)).to(device, dtype)
    gram = Gram(sample)
    basis = farthest_points(gram, 10, 0)
    score = squared_error(gram, basis).scatter(1, basis, torch.inf)
    expected = stable_topk(score, 30, ERROR_TOLERANCE * gram.squares)
    try:
        layout = GroupLayout.from_sizes([100] * 2, [30] * 2, [10] * 2, device)
        result = launch_flat(sample.flatten(0, 1), layout, merge=True)
        if torch.equal(result.kept_index, expected.flatten()) and bool(
            result.tokens.isfinite().all()
        ):
            return True
        problem = "they keep other tokens than the torch path"
    # No C compiler, an old GPU, a Triton that does not fit: the torch path works in every case.
    except Exception as error:
        problem = f"{type(error).__name__}: {error}"
    warnings.warn(f"ApET's Triton kernels are not used on {device}: {problem}", stacklevel=3)
    return False


def launch_batches(
    batches: Sequence[Tensor], keeps: Sequence[int], bases: Sequence[int], merge: bool
) -> list[FlatCompressed]:
    """Compress batches of equal groups (B_i, N_i, D), of one device and dtype, together."""
    counts, sizes = [len(tokens) for tokens in batches], [tokens.shape[1] for tokens in batches]

    def per_group(values: Sequence[int]) -> list[int]:
        return [value for value, count in zip(values, counts, strict=True) for _ in range(count)]

    flat = [tokens.flatten(0, 1) for tokens in batches]
    tokens = torch.cat(flat) if len(flat) > 1 else flat[0]
    layout = GroupLayout.from_sizes(
        per_group(sizes), per_group(keeps), per_group(bases), tokens.device
    )
    slots = [count * keep for count, keep in zip(counts, keeps, strict=True)]
    rows = [count * size for count, size in zip(counts, sizes, strict=True)]
    columns = [
        column.split(lengths)
        for column, lengths in zip(
            launch_flat(tokens, layout, merge), (slots, slots, rows, rows, rows), strict=True
        )
    ]
    return [
        FlatCompressed(*(column.unflatten(0, (count, -1)) for column in batch))
        for count, *batch in zip(counts, *columns, strict=True)
    ]


@torch.no_grad()
def launch_flat(tokens: Tensor, layout: GroupLayout, merge: bool) -> FlatCompressed:
    """Steps 1 to 4 of `apet.core.compression` for flat tokens (T, D).

    Each group must keep fewer tokens than it has.
    """
    tokens = tokens.contiguous()
    with torch.cuda.device_of(tokens):  # where Triton launches
        error, score, squares = _errors(tokens, layout)
        kept = _top_rows(score, squares, layout)
        index = kept - layout.starts[layout.group_of_slot]
        slot = torch.full_like(layout.group_of_token, -1)
        own = torch.arange(len(kept), device=kept.device)
        slot[kept] = own - layout.slot_starts[layout.group_of_slot]
        means = _merge(tokens, layout, squares, kept, slot) if merge else tokens[kept].double()
    return FlatCompressed(means, index, error, slot, squares)


def _errors(tokens: Tensor, layout: GroupLayout) -> tuple[Tensor, Tensor, Tensor]:
    """Squared errors (T,), the same with inf for the basis, and squared norms."""
    from apet.core import triton_kernels as kernels

    count, width = tokens.shape
    tiles = len(layout.group_of_tile)
    means = tokens.new_empty(len(layout.keeps), width, dtype=torch.float64)
    squares, error, score = (means.new_empty(count) for _ in range(3))
    explained = means.new_empty(layout.picks, count)
    # Distance, noise, and each tile's low and high, twice: a step reads the results of the previous
    # one while other programs of the same step write.
    old, new = ([means.new_empty(size) for size in (count, count, tiles, tiles)] for _ in range(2))
    where = layout.starts, layout.tile_starts, layout.group_of_tile
    blocks = -(-width // kernels.COLUMNS.value)
    kernels.group_means[len(layout.keeps), blocks](tokens, layout.starts, means, width, **FUSION)
    kernels.distances_to_mean[(tiles,)](tokens, means, *where, squares, *old, width, **FUSION)
    for step in range(1, layout.picks + 1):
        inputs = tokens, *where, layout.bases, squares, *old
        outputs = *new, explained, error, score
        kernels.next_pick[(tiles,)](*inputs, *outputs, step, count, width, **FUSION)
        old, new = new, old
    return error, score, squares


def _top_rows(score: Tensor, squares: Tensor, layout: GroupLayout) -> Tensor:
    """Rows (sum of keeps,) of each group's largest scores, first among equals: `stable_topk`."""
    order = score.argsort(descending=True)
    order = order[layout.group_of_token[order].argsort(stable=True)]  # by group, largest first
    last = score[order[layout.starts[:-1] + layout.keeps - 1]][layout.group_of_token]
    # Without NaN, a group that holds NaN keeps as many tokens as any other.
    noise = (ERROR_TOLERANCE * squares).nan_to_num()
    sure = score > last + noise
    tied = (score >= last - noise) & ~sure
    # How many of either kind come before each group.
    before = F.pad(torch.stack([sure, tied]).cumsum(1), (1, 0))[:, layout.starts]
    room = layout.keeps - before[0].diff()
    rank = tied.cumsum(0) - before[1, :-1][layout.group_of_token]
    kept = sure | (tied & (rank <= room[layout.group_of_token]))
    return kept.byte().argsort(descending=True, stable=True)[: len(layout.group_of_slot)]


def _merge(
    tokens: Tensor, layout: GroupLayout, squares: Tensor, kept: Tensor, slot: Tensor
) -> Tensor:
    """Fill in `slot` (T,) for dropped tokens; returns the mean of each slot, (sum of keeps, D)."""
    from apet.core import triton_kernels as kernels

    width = tokens.shape[1]
    where = layout.starts, layout.tile_starts, layout.slot_starts, layout.group_of_tile
    kernels.nearest_kept[(len(layout.group_of_tile),)](
        tokens, *where, squares, kept, slot, width, **FUSION
    )
    slots, members = (slot + layout.slot_starts[layout.group_of_token]).sort(stable=True)
    bounds = torch.searchsorted(slots, torch.arange(len(kept) + 1, device=kept.device))
    means = torch.empty(len(kept), width, dtype=torch.float64, device=tokens.device)
    blocks = -(-width // kernels.COLUMNS.value)
    kernels.slot_means[len(kept), blocks](tokens, members, bounds, means, width, **FUSION)
    return means

"""ApET for groups of any sizes in one set of launches: what `compress` does where Triton can be used.

Some thirty launches in all, however many groups there are and however they differ. How many tokens there are and how
many stay is known on the host, so nothing waits for the device and a CUDA graph can be captured. The launches that
pick the basis come one after another because each pick needs all of the one before, and fill the GPU each.
`basis`, `error`, `gram` and `merge` are the same in plain torch, for everything else, and what this is tested against.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from functools import cache
from importlib.util import find_spec
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from apet.core.basis import farthest_points
from apet.core.error import UNSURE, squared_error
from apet.core.gram import Gram, largest

TILE = 32  # tokens that one program works on
FUSION = {
    "enable_fp_fusion": True
}  # a * b + c in one rounding; Triton is about to change what it does if not told


class Groups(NamedTuple):
    """Where G groups lie in T flat tokens, how many each keeps and from how many it is explained.

    To capture a CUDA graph, make it before where groups differ (the graph needs it as long as it lives).
    """

    picks: int  # the largest basis
    starts: Tensor  # (G + 1,) of their tokens
    tile_starts: Tensor  # (G + 1,) of their tiles
    slot_starts: Tensor  # (G + 1,) of what they keep
    keeps: Tensor  # (G,)
    bases: Tensor  # (G,)
    of_token: Tensor  # (T,) the group of each token
    of_tile: Tensor  # (tiles,) and of each tile
    of_slot: Tensor  # (sum of keeps,) and of each slot

    @classmethod
    def of(
        cls, sizes: Sequence[int], keeps: Sequence[int], bases: Sequence[int], device: torch.device
    ) -> Groups:
        columns = sizes, [-(-size // TILE) for size in sizes], keeps
        starts = [F.pad(_column(column, device).cumsum(0), (1, 0)) for column in columns]
        owners = [
            torch.searchsorted(begin[1:], torch.arange(sum(column), device=device), right=True)
            for begin, column in zip(starts, columns, strict=True)
        ]
        return cls(
            max(bases),
            starts[0],
            starts[1],
            starts[2],
            _column(keeps, device),
            _column(bases, device),
            *owners,
        )


class Outcome(NamedTuple):
    """What is left of all groups, one after the other; or of a batch: (B, K, D), (B, K) and (B, N)."""

    tokens: Tensor  # (sum of K, D) float64
    places: Tensor  # (sum of K,) within the group, ascending
    error: Tensor  # (sum of N,) float64, squared
    slot: Tensor  # (sum of N,) within the group; -1: dropped
    squares: Tensor  # (sum of N,) float64: of the tokens' norms


def usable(tokens: Tensor) -> bool:
    """On a GPU that Triton works on (or anywhere under its interpreter), if no gradient is wanted."""
    if tokens.numel() == 0 or (tokens.requires_grad and torch.is_grad_enabled()):
        return False
    return os.environ.get("TRITON_INTERPRET") == "1" or (
        tokens.is_cuda and _works(tokens.device, tokens.dtype)
    )


@cache
def _works(device: torch.device, dtype: torch.dtype) -> bool:
    """Once a process: do the kernels compile here, and keep what the torch path keeps? Waits for the device."""
    if find_spec("triton") is None:
        return False
    if torch.cuda.is_current_stream_capturing():
        raise RuntimeError(
            "a CUDA graph is being captured; call compress once before, so that its kernels are there"
        )
    sample = torch.randn(2, 100, 72, generator=torch.Generator().manual_seed(0)).to(device, dtype)
    gram = Gram(sample)
    basis = farthest_points(gram, 10, 0)
    want = largest(
        squared_error(gram, basis).scatter(1, basis, torch.inf), 30, UNSURE * gram.squares
    )
    try:
        found = compress_flat(
            sample.flatten(0, 1), Groups.of([100] * 2, [30] * 2, [10] * 2, device), merge=True
        )
        if torch.equal(found.places, want.flatten()) and bool(found.tokens.isfinite().all()):
            return True
        problem = "they keep other tokens than the torch path"
    except Exception as error:  # no C compiler, an old GPU, a Triton that does not fit: all are one to whoever waits
        problem = f"{type(error).__name__}: {error}"
    warnings.warn(f"ApET's Triton kernels are not used on {device}: {problem}", stacklevel=3)
    return False


def compress_together(
    batches: Sequence[Tensor], keeps: Sequence[int], bases: Sequence[int], merge: bool
) -> list[Outcome]:
    """Batches of equal groups (B_i, N_i, D), of one device and dtype, in one set of launches."""
    counts, sizes = [len(tokens) for tokens in batches], [tokens.shape[1] for tokens in batches]

    def each(values: Sequence[int]) -> list[int]:
        return [value for value, count in zip(values, counts, strict=True) for _ in range(count)]

    flat = [tokens.flatten(0, 1) for tokens in batches]
    tokens = torch.cat(flat) if len(flat) > 1 else flat[0]
    out = compress_flat(
        tokens, Groups.of(each(sizes), each(keeps), each(bases), tokens.device), merge
    )
    kept = [count * keep for count, keep in zip(counts, keeps, strict=True)]
    were = [count * size for count, size in zip(counts, sizes, strict=True)]
    columns = [
        part.split(rows) for part, rows in zip(out, (kept, kept, were, were, were), strict=True)
    ]
    return [
        Outcome(*(part.unflatten(0, (count, -1)) for part in parts))
        for count, *parts in zip(counts, *columns, strict=True)
    ]


@torch.no_grad()
def compress_flat(tokens: Tensor, groups: Groups, merge: bool) -> Outcome:
    """Steps 1 to 4 of `apet.core.compression` for tokens (T, D) of many groups. Each keeps fewer tokens than it has."""
    tokens = tokens.contiguous()
    with torch.cuda.device_of(tokens):  # where Triton launches
        error, score, squares = _errors(tokens, groups)
        kept = _keep(score, squares, groups)
        places = kept - groups.starts[groups.of_slot]
        slot = torch.full_like(groups.of_token, -1)
        slot[kept] = (
            torch.arange(len(kept), device=kept.device) - groups.slot_starts[groups.of_slot]
        )
        left = _merge(tokens, groups, squares, kept, slot) if merge else tokens[kept].double()
    return Outcome(left, places, error, slot, squares)


def _errors(tokens: Tensor, groups: Groups) -> tuple[Tensor, Tensor, Tensor]:
    """Squared errors (T,), the same with inf for the basis, and squared norms."""
    from apet.core import kernels

    count, width = tokens.shape
    tiles = len(groups.of_tile)
    means = tokens.new_empty(len(groups.keeps), width, dtype=torch.float64)
    squares, error, score = (means.new_empty(count) for _ in range(3))
    explained = means.new_empty(groups.picks, count)
    # Far, noise, low and high, twice: a step reads what the one before left while others of its programs write.
    now, then = ([means.new_empty(size) for size in (count, count, tiles, tiles)] for _ in range(2))
    where = groups.starts, groups.tile_starts, groups.of_tile
    blocks = -(-width // kernels.COLUMNS.value)
    kernels.group_means[len(groups.keeps), blocks](tokens, groups.starts, means, width, **FUSION)
    kernels.from_mean[(tiles,)](tokens, means, *where, squares, *now, width, **FUSION)
    for step in range(1, groups.picks + 1):
        kernels.next_pick[(tiles,)](
            tokens,
            *where,
            groups.bases,
            squares,
            *now,
            *then,
            explained,
            error,
            score,
            step,
            count,
            width,
            **FUSION,
        )
        now, then = then, now
    return error, score, squares


def _keep(score: Tensor, squares: Tensor, groups: Groups) -> Tensor:
    """Rows (sum of keeps,) of the tokens with the largest scores of each group, of equals the first: `gram.largest`."""
    order = score.argsort(descending=True)
    order = order[groups.of_token[order].argsort(stable=True)]  # group by group, the largest first
    last = score[order[groups.starts[:-1] + groups.keeps - 1]][groups.of_token]
    noise = (
        UNSURE * squares
    ).nan_to_num()  # so that of a group with NaN as many are kept as of any other
    sure = score > last + noise
    tied = (score >= last - noise) & ~sure
    until = F.pad(torch.stack([sure, tied]).cumsum(1), (1, 0))[
        :, groups.starts
    ]  # before each group
    room = groups.keeps - until[0].diff()
    rank = tied.cumsum(0) - until[1, :-1][groups.of_token]
    kept = sure | (tied & (rank <= room[groups.of_token]))
    return kept.byte().argsort(descending=True, stable=True)[: len(groups.of_slot)]


def _merge(tokens: Tensor, groups: Groups, squares: Tensor, kept: Tensor, slot: Tensor) -> Tensor:
    """Put dropped tokens into the slots (T,) of kept ones; the mean of each slot, (sum of keeps, D)."""
    from apet.core import kernels

    width = tokens.shape[1]
    where = groups.starts, groups.tile_starts, groups.slot_starts, groups.of_tile
    kernels.nearest_kept[(len(groups.of_tile),)](
        tokens, *where, squares, kept, slot, width, **FUSION
    )
    sorted_slots, members = (slot + groups.slot_starts[groups.of_token]).sort(stable=True)
    bounds = torch.searchsorted(sorted_slots, torch.arange(len(kept) + 1, device=kept.device))
    means = torch.empty(len(kept), width, dtype=torch.float64, device=tokens.device)
    blocks = -(-width // kernels.COLUMNS.value)
    kernels.slot_means[len(kept), blocks](tokens, members, bounds, means, width, **FUSION)
    return means


def _column(values: Sequence[int], device: torch.device) -> Tensor:
    """Numbers of the host; equal ones are not copied, so that a CUDA graph can make them itself."""
    if len(set(values)) == 1:
        return torch.full((len(values),), values[0], device=device)
    return torch.tensor(values).to(device, non_blocking=True)

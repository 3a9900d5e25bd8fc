"""The layout of groups of different sizes in one flat tensor of tokens, as the kernels read it."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from apet.device import copy_async

TILE = 32  # tokens that one program of a kernel works on


class GroupLayout(NamedTuple):
    """Where G groups lie in T flat tokens, and how many tokens each keeps and has as its basis.

    Make it before the capture of a CUDA graph if groups differ; the graph needs it while it lives.
    """

    picks: int  # the largest basis
    starts: Tensor  # (G + 1,) each group's first token
    tile_starts: Tensor  # (G + 1,) its first tile
    slot_starts: Tensor  # (G + 1,) its first kept token
    keeps: Tensor  # (G,)
    bases: Tensor  # (G,)
    group_of_token: Tensor  # (T,)
    group_of_tile: Tensor  # (tiles,)
    group_of_slot: Tensor  # (sum of keeps,)

    @classmethod
    def from_sizes(
        cls, sizes: Sequence[int], keeps: Sequence[int], bases: Sequence[int], device: torch.device
    ) -> GroupLayout:
        counts = sizes, [-(-size // TILE) for size in sizes], keeps
        starts = [list(accumulate(count, initial=0)) for count in counts]
        columns = _to_device([*starts, list(keeps), list(bases)], device)
        owners = [
            torch.searchsorted(start[1:], torch.arange(sum(count), device=device), right=True)
            for start, count in zip(columns, counts, strict=False)
        ]
        return cls._make([max(bases), *columns, *owners])


def _to_device(columns: Sequence[Sequence[int]], device: torch.device) -> Sequence[Tensor]:
    """Columns of numbers from the host, in one copy.

    Those of equal groups are computed on the device, so that a CUDA graph can create them.
    """
    steps = [{second - first for first, second in pairwise(column)} for column in columns]
    if all(len(step) <= 1 for step in steps):
        return [
            torch.arange(len(column), device=device) * next(iter(step), 0) + column[0]
            for column, step in zip(columns, steps, strict=True)
        ]
    flat = torch.tensor([number for column in columns for number in column])
    copied: Sequence[Tensor] = copy_async(flat, device).split([len(column) for column in columns])
    return copied

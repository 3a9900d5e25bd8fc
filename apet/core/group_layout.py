"""The layout of groups of different sizes in one flat tensor of tokens, as the kernels read it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

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
        starts = [F.pad(_to_device(count, device).cumsum(0), (1, 0)) for count in counts]
        owners = [
            torch.searchsorted(start[1:], torch.arange(sum(count), device=device), right=True)
            for start, count in zip(starts, counts, strict=True)
        ]
        values = *starts, _to_device(keeps, device), _to_device(bases, device), *owners
        return cls._make([max(bases), *values])


def _to_device(values: Sequence[int], device: torch.device) -> Tensor:
    """Numbers from the host. Equal ones are not copied, so that a CUDA graph can create them."""
    if len(set(values)) == 1:
        return torch.full((len(values),), values[0], device=device)
    return torch.tensor(values).to(device, non_blocking=True)

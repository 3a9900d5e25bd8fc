"""What is left of a batch of sequences of different lengths once tokens are dropped, and where each of them went."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


class Shortened:
    """A padded sequence (B, S) without some of its tokens: (B, S'), padded on the same side.

    alive:   (B, S) bool on the device: tokens that stay
    lengths: how many those are in each row, on the host
    """

    def __init__(self, alive: Tensor, lengths: Sequence[int], right: bool) -> None:
        width = max(lengths)
        order = alive.byte().argsort(dim=1, descending=right, stable=True)
        self.source = (
            order[:, :width] if right else order[:, -width:]
        )  # (B, S') the column that each comes from
        self.valid = alive.gather(1, self.source)  # (B, S') bool
        place, counts = torch.arange(width), torch.tensor(lengths)[:, None]
        self.layout = (
            place < counts if right else place >= width - counts
        )  # (B, S') `valid`, on the host
        offset = 0 if right else width - alive.sum(dim=1, keepdim=True)
        self.place = (
            alive.cumsum(dim=1) - 1 + offset
        )  # (B, S) where each goes; of no meaning for those that do not

    def rows(self, sequence: Tensor) -> Tensor:
        """What stays of (..., B, S, D); a leading dimension of one may stand for B."""
        *lead, _, _, width = sequence.shape
        batch, count = self.source.shape
        index = self.source[..., None].expand(*lead, batch, count, width)
        return sequence.expand(*lead, batch, -1, -1).gather(-2, index)

    def last(self, sequence: Tensor) -> Tensor:
        """What stays of (..., B, S)."""
        return self.rows(sequence[..., None])[..., 0]

"""A batch of sequences of different lengths after tokens were dropped."""

from collections.abc import Sequence

import torch
from torch import Tensor


class ShortenedBatch:
    """A padded batch (B, S) without some of its tokens: (B, S'), padded on the same side.

    alive:   (B, S) bool on the device: tokens that stay
    lengths: the number of those in each row, on the host

    source:      (B, S') the column that each token comes from
    valid:       (B, S') bool: not padding; `layout` is the same on the host
    destination: (B, S) the column that each token goes to; meaningless for dropped tokens
    """

    def __init__(self, alive: Tensor, lengths: Sequence[int], right: bool) -> None:
        width = max(lengths)
        order = alive.byte().argsort(dim=1, descending=right, stable=True)
        self.source = order[:, :width] if right else order[:, -width:]
        self.valid = alive.gather(1, self.source)
        columns, counts = torch.arange(width), torch.tensor(lengths)[:, None]
        self.layout = columns < counts if right else columns >= width - counts
        offset = 0 if right else width - alive.sum(dim=1, keepdim=True)
        self.destination = alive.cumsum(dim=1) - 1 + offset

    def take(self, sequence: Tensor) -> Tensor:
        """The vectors of (..., B, S, D) that stay; a leading dimension of one may stand for B."""
        *lead, _, _, width = sequence.shape
        batch, count = self.source.shape
        index = self.source[..., None].expand(*lead, batch, count, width)
        return sequence.expand(*lead, batch, -1, -1).gather(-2, index)

    def take_scalars(self, sequence: Tensor) -> Tensor:
        """The numbers of (..., B, S) that stay."""
        return self.take(sequence[..., None])[..., 0]

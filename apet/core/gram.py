"""Inner products of the tokens of a group: the one thing that every step of ApET reads.

Distances, approximation errors and cosines all come from rows of S = V V^T, so only the rows of basis and kept
tokens are ever computed (cost N (M + K) D, never N x N). They are accumulated in float64, and numbers that differ
by less than the noise of such a sum count as equal, so that ties break towards the lower index whatever the
batch, the matrix kernel or the device did to the last bits.
"""

from __future__ import annotations

import torch
from torch import Tensor

NOISE = (
    2.0**-48
)  # of the terms summed: 16 x the rounding of one operation, far below any difference that matters


class Gram:
    """The tokens of B equally large groups, (B, N, D), and rows of their Gram matrices."""

    def __init__(self, tokens: Tensor) -> None:
        self.tokens = tokens.double()
        self.norms = torch.linalg.vector_norm(self.tokens, dim=-1)  # (B, N)
        self.squares = self.norms.square()

    def rows(self, index: Tensor) -> Tensor:
        """Inner products of the tokens at `index` (B, R) with all: (B, R, N)."""
        return torch.bmm(gather(self.tokens, index), self.tokens.mT)

    def distances(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """Squared distances (B, R, N) of the tokens at `index` (B, R) to all, and the noise in them."""
        ends = self.squares.gather(1, index)[..., None] + self.squares[:, None]
        return (ends - 2 * self.rows(index)).clamp_(min=0), NOISE * ends

    def distances_to_mean(self) -> tuple[Tensor, Tensor]:
        """Squared distance (B, N) of every token to the mean of its group, and the noise in it."""
        mean = self.tokens.mean(dim=1, keepdim=True)
        ends = self.squares + mean.square().sum(-1)
        return (ends - 2 * torch.bmm(mean, self.tokens.mT)[:, 0]).clamp_(min=0), NOISE * ends


def gather(tokens: Tensor, index: Tensor) -> Tensor:
    """The tokens (B, N, D) at `index` (B, R), as (B, R, D)."""
    return tokens[
        torch.arange(len(tokens), device=index.device)[:, None], index
    ]  # copies rows, where gather copies items


def first_largest(value: Tensor, noise: Tensor | float) -> Tensor:
    """Index of the largest value along the last dimension, of equals the first: (.., 1).

    Equal is whatever the noise of either could explain: a small token's distance may lie within a large one's noise.
    """
    if isinstance(noise, Tensor) and noise.shape[-1] > 1:
        return (
            (value + noise >= (value - noise).amax(-1, keepdim=True))
            .byte()
            .argmax(-1, keepdim=True)
        )
    return (value >= value.amax(-1, keepdim=True) - 2 * noise).byte().argmax(-1, keepdim=True)


def largest(value: Tensor, count: int, noise: Tensor | float) -> Tensor:
    """Ascending indices (B, count) of the `count` largest of `value` (B, N), of equals the first."""
    last = value.topk(count).values[:, -1:]
    above = (value >= last - noise).byte() + (value > last + noise).byte()
    return above.sort(dim=1, descending=True, stable=True).indices[:, :count].sort(dim=1).values

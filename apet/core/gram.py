"""Inner products of the tokens of a group, which every step of ApET reads.

Distances, approximation errors and cosines all come from rows of S = V V^T. Only the rows of basis
and kept tokens are ever computed: the cost is N (M + K) D, never N x N. Sums are accumulated in
float64, and numbers that differ by less than the noise of such a sum count as equal. Ties therefore
break towards the lower index, whatever the batch, the matrix kernel or the device did to the last
bits.
"""

import torch
from torch import Tensor

# Noise of a sum, as a share of the terms summed: 16 x the rounding of one operation, and far below
# any difference that matters.
NOISE = 2.0**-48


class Gram:
    """The tokens of B equally large groups, (B, N, D), and rows of their Gram matrices."""

    def __init__(self, tokens: Tensor) -> None:
        self.tokens = tokens.double()
        self.norms = torch.linalg.vector_norm(self.tokens, dim=-1)  # (B, N)
        self.squares = self.norms.square()

    def rows(self, index: Tensor) -> Tensor:
        """Inner products of the tokens at `index` (B, R) with all tokens: (B, R, N)."""
        return torch.bmm(gather(self.tokens, index), self.tokens.mT)

    def distances(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """Squared distances (B, R, N) of the tokens at `index` (B, R) to all, and their noise."""
        squares = self.squares.gather(1, index)[..., None] + self.squares[:, None]
        return (squares - 2 * self.rows(index)).clamp_(min=0), NOISE * squares

    def distances_to_mean(self) -> tuple[Tensor, Tensor]:
        """Squared distance (B, N) of every token to the mean of its group, and its noise."""
        mean = self.tokens.mean(dim=1, keepdim=True)
        squares = self.squares + mean.square().sum(-1)
        products = torch.bmm(mean, self.tokens.mT)[:, 0]
        return (squares - 2 * products).clamp_(min=0), NOISE * squares


def gather(tokens: Tensor, index: Tensor) -> Tensor:
    """The tokens (B, N, D) at `index` (B, R), as (B, R, D)."""
    # Indexing copies rows; `torch.gather` would copy single numbers.
    return tokens[torch.arange(len(tokens), device=index.device)[:, None], index]


def first_argmax(value: Tensor, noise: Tensor | float) -> Tensor:
    """Index of the largest value along the last dimension, the first among equals: (.., 1).

    Two values are equal if the noise of either could explain the difference: the distance of a
    small token may lie within the noise of a large token's distance.
    """
    if isinstance(noise, Tensor) and noise.shape[-1] > 1:
        reaches_top = value + noise >= (value - noise).amax(-1, keepdim=True)
    else:
        reaches_top = value >= value.amax(-1, keepdim=True) - 2 * noise
    return reaches_top.byte().argmax(-1, keepdim=True)


def stable_topk(value: Tensor, count: int, noise: Tensor | float) -> Tensor:
    """Ascending indices (B, count) of the largest of `value` (B, N), the first among equals."""
    last = value.topk(count).values[:, -1:]
    above = (value >= last - noise).byte() + (value > last + noise).byte()
    return above.sort(dim=1, descending=True, stable=True).indices[:, :count].sort(dim=1).values

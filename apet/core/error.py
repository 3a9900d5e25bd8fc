"""The approximation error of every token: what is left of it when the basis has explained what it can."""

from __future__ import annotations

import torch
from torch import Tensor

from apet.core.gram import Gram

DEPENDENT = (
    2.0**-34
)  # a squared share: a pick this near the span of earlier ones (8e-6 of its norm) adds nothing
UNSURE = (
    2.0**-40
)  # squared errors closer than this share of the token's square (1e-6 of its norm) are equal


@torch.no_grad()  # it chooses; what is chosen can be differentiated
def squared_error(gram: Gram, basis: Tensor) -> Tensor:
    """||v - B a||^2 with the best a, for every token v: (B, N), from the Gram rows of `basis` (B, M).

    The basis is made orthogonal as it grows: each pick's row loses what earlier picks explain, and a pick with
    nothing left is skipped. That is pivoted Cholesky, and stands the nearly dependent tokens that real features
    are full of, where factorising S_BB (or adding a ridge to it) does not.
    """
    rows = gram.rows(basis)  # (B, M, N)
    explained = torch.zeros_like(rows)  # orthonormal directions, seen from each token
    for step in range(basis.shape[1]):
        pick = basis[:, step, None]
        known = explained[:, :step]
        at_pick = known.gather(2, pick[:, None].expand(-1, step, -1))  # (B, step, 1)
        row = rows[:, step] - (at_pick * known).sum(dim=1)
        pivot = row.gather(1, pick)
        usable = pivot > DEPENDENT * gram.squares.gather(1, pick)
        explained[:, step] = torch.where(
            usable, row / pivot.clamp(min=torch.finfo(row.dtype).tiny).sqrt(), 0.0
        )
    left: Tensor = gram.squares - explained.square().sum(dim=1)
    return left.where(left > UNSURE * gram.squares, 0.0)

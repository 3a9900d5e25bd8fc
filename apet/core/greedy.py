"""A basis that grows by what it cannot say yet: pivoted Cholesky over the rows of a Gram matrix."""

from __future__ import annotations

import torch
from torch import Tensor

from apet.core.error import DEPENDENT, UNSURE
from apet.core.gram import Gram, first_largest


@torch.no_grad()
def greedy_basis(gram: Gram, size: int) -> Tensor:
    """The token with the largest residual with respect to all picks so far, again and again: (B, size), as picked.

    The first is the longest token: nothing explains any of it yet. A token within 8e-6 of its norm of the span of
    the picks counts as explained; once all are, the rest of the picks are the first tokens that remain.
    Costs N size D for the rows and N size^2 to make them orthogonal.
    """
    batch, count = gram.norms.shape
    left, free = gram.squares, torch.zeros_like(gram.norms)
    explained = gram.tokens.new_empty(
        batch, size, count
    )  # orthonormal directions, seen from each token
    picks: list[Tensor] = []
    for step in range(size):
        pick = first_largest(left + free, UNSURE * gram.squares)
        picks.append(pick)
        free = free.scatter(1, pick, -torch.inf)
        pivot = left.gather(1, pick)
        known = explained[:, :step]
        at_pick = known.gather(2, pick[:, None].expand(-1, step, -1))
        row = (gram.rows(pick) - torch.bmm(at_pick.mT, known))[:, 0]
        direction = torch.where(
            pivot > 0, row / pivot.clamp(min=torch.finfo(row.dtype).tiny).sqrt(), 0.0
        )
        explained[:, step] = direction
        left = left - direction.square()
        left = left.where(left > DEPENDENT * gram.squares, 0.0)
    return torch.cat(picks, dim=1)

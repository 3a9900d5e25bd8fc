"""A basis that grows by the token it approximates worst: pivoted Cholesky over Gram rows."""

import torch
from torch import Tensor

from apet.core.approximation_error import DEPENDENCE_TOLERANCE, ERROR_TOLERANCE
from apet.core.gram import Gram, first_argmax


@torch.no_grad()
def greedy_basis(gram: Gram, size: int) -> Tensor:
    """Pick, `size` times, the token with the largest residual: (B, size), in the order of picking.

    The first pick is the longest token, since nothing explains any token yet. A token within 8e-6
    of its norm from the span of the picks counts as explained; once all are, the first remaining
    tokens are picked. Costs N size D for the rows and N size^2 to make them orthogonal.
    """
    batch, count = gram.norms.shape
    residual, penalty = gram.squares, torch.zeros_like(gram.norms)  # penalty: -inf for picks
    # Each token's coordinates along orthonormal directions.
    explained = gram.tokens.new_empty(batch, size, count)
    picks: list[Tensor] = []
    for step in range(size):
        pick = first_argmax(residual + penalty, ERROR_TOLERANCE * gram.squares)
        picks.append(pick)
        penalty = penalty.scatter(1, pick, -torch.inf)
        pivot = residual.gather(1, pick)
        earlier = explained[:, :step]
        pick_earlier = earlier.gather(2, pick[:, None].expand(-1, step, -1))
        row = (gram.rows(pick) - torch.bmm(pick_earlier.mT, earlier))[:, 0]
        direction = row / pivot.clamp(min=torch.finfo(row.dtype).tiny).sqrt()
        direction = torch.where(pivot > 0, direction, 0.0)
        explained[:, step] = direction
        residual = residual - direction.square()
        residual = residual.where(residual > DEPENDENCE_TOLERANCE * gram.squares, 0.0)
    return torch.cat(picks, dim=1)

"""The approximation error of every token: its distance from the span of the basis."""

import torch
from torch import Tensor

from apet.core.gram import Gram

# A pick adds nothing if the square of what earlier picks leave of it is a smaller share of its own
# square: it then lies within 8e-6 of its norm from their span.
DEPENDENCE_TOLERANCE = 2.0**-34
# Squared errors are equal if they differ by less than this share of the token's square (1e-6 of its
# norm).
ERROR_TOLERANCE = 2.0**-40


@torch.no_grad()  # errors choose tokens; gradients flow through the tokens chosen
def squared_error(gram: Gram, basis: Tensor) -> Tensor:
    """||v - B a||^2 with the best a, for every token v: (B, N), for a basis (B, M).

    The basis is made orthogonal as it grows: earlier picks are projected out of each pick's row,
    and a pick with nothing left is skipped. This is pivoted Cholesky. It copes with the nearly
    dependent tokens that are common in real features, where factorising S_BB (or adding a ridge to
    it) does not.
    """
    rows = gram.rows(basis)  # (B, M, N)
    explained = torch.zeros_like(rows)  # each token's coordinates along orthonormal directions
    for step in range(basis.shape[1]):
        pick = basis[:, step, None]
        earlier = explained[:, :step]
        pick_earlier = earlier.gather(2, pick[:, None].expand(-1, step, -1))  # (B, step, 1)
        row = rows[:, step] - (pick_earlier * earlier).sum(dim=1)
        pivot = row.gather(1, pick)
        usable = pivot > DEPENDENCE_TOLERANCE * gram.squares.gather(1, pick)
        direction = row / pivot.clamp(min=torch.finfo(row.dtype).tiny).sqrt()
        explained[:, step] = torch.where(usable, direction, 0.0)
    residual: Tensor = gram.squares - explained.square().sum(dim=1)
    return residual.where(residual > ERROR_TOLERANCE * gram.squares, 0.0)

"""The order of operations of the authors' released code, to compare with the authors' numbers.

It departs from the paper in three ways. The fit has a ridge of 1e-5. The basis does not keep its
positions: its vectors overwrite the M lowest-ranked kept slots, in the order of sampling, and so
stand at other tokens' positions. And those slots take no part in the merge. The release starts
sampling at a random token; we start where `apet.core.basis` does, so that a run can be repeated.
"""

import torch
from torch import Tensor

from apet.core.gram import Gram, gather
from apet.core.merge import most_similar, slot_means

RIDGE = 1e-5


@torch.no_grad()
def squared_ridge_error(gram: Gram, basis: Tensor) -> Tensor:
    """||v - B a||^2 with the ridge solution a, for every token v: (B, N)."""
    rows = gram.rows(basis)
    spectrum, directions = torch.linalg.eigh(
        rows.gather(2, basis[:, None].expand(-1, basis.shape[1], -1))
    )
    spectrum = spectrum.clamp(min=0)[..., None]
    power = (directions.mT @ rows).square()
    explained = (power * (spectrum + 2 * RIDGE) / (spectrum + RIDGE).square()).sum(dim=1)
    residual: Tensor = gram.squares - explained
    return residual.clamp_(min=0)


def compress_as_released(
    gram: Gram, basis: Tensor, keep: int, merge: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Kept tokens (B, K, D), their index (B, K), squared errors (B, N) and slots (B, N) or -1."""
    error = squared_ridge_error(gram, basis)
    rank = error.sort(dim=1, descending=True, stable=True).indices[:, :keep]
    index = rank.sort(dim=1).values
    own = torch.arange(keep, device=rank.device).expand_as(rank)
    slot = torch.full_like(error, -1, dtype=torch.int64).scatter(1, index, own)
    high, low = rank[:, : keep - basis.shape[1]], rank[:, keep - basis.shape[1] :]
    if merge:
        nearest = high.gather(1, most_similar(gram, high))
        slot = torch.where(slot < 0, slot.gather(1, nearest), slot)
        tokens = slot_means(gram.tokens, slot, keep)
    else:
        tokens = gather(gram.tokens, index)
    overwritten = slot.gather(1, low).sort(dim=1).values[..., None].expand(-1, -1, tokens.shape[-1])
    return tokens.scatter(1, overwritten, gather(gram.tokens, basis)), index, error, slot

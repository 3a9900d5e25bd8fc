"""What happens to the tokens that are not kept: each joins the kept token it is most like."""

from __future__ import annotations

import torch
from torch import Tensor

from apet.core.gram import NOISE, Gram, first_largest, gather

BLOCK = 1 << 21  # cosines held at a time: few enough to stay in a cache


def most_similar(gram: Gram, index: Tensor) -> Tensor:
    """For every token the slot, 0..K-1, of the kept token it belongs to: (B, N).

    That is the kept token with the largest cosine similarity, of equals the first; a kept token belongs to itself.
    """
    kept = gather(gram.tokens, index)  # (B, K, D)
    length = gram.norms.gather(1, index)[..., None]
    inverse = torch.where(length > 0, 1 / length, 0.0)  # a zero vector is equally unlike everything
    # The other norm, |v_j|, is the same for all that token j is compared with: it scales the noise instead.
    width = max(1, BLOCK // max(1, index.numel()))
    parts = zip(
        gram.tokens.split(width, dim=1), gram.norms[..., None].split(width, dim=1), strict=True
    )
    slots = [
        first_largest(torch.bmm(kept, tokens.mT).mul_(inverse).mT, NOISE * norms)
        for tokens, norms in parts
    ]
    slot = torch.cat(slots, dim=1)[..., 0]
    own = torch.arange(index.shape[1], device=index.device).expand_as(index)
    return slot.scatter(1, index, own)


def averages(tokens: Tensor, slot: Tensor, slots: int) -> Tensor:
    """The mean of the tokens (B, N, D) that share a slot: (B, slots, D)."""
    batch, _, width = tokens.shape
    place = (slot + slots * torch.arange(batch, device=slot.device)[:, None]).flatten()
    total, rows = tokens.new_zeros(batch * slots, width), tokens.flatten(0, 1)
    if (
        tokens.is_cuda
    ):  # where index_add_ adds in any order, so that the last bits of a sum depend on chance
        total.index_put_((place,), rows, accumulate=True)
    else:
        total.index_add_(0, place, rows)
    members = tokens.new_zeros(batch * slots).index_add_(
        0, place, tokens.new_ones(()).expand(len(place))
    )
    return (total / members[:, None]).view(batch, slots, width)

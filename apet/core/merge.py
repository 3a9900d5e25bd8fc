"""Merge dropped tokens: each joins the kept token that it is most similar to."""

import torch
from torch import Tensor

from apet.core.gram import NOISE, Gram, first_argmax, gather

MAX_BLOCK_ENTRIES = 1 << 21  # cosines in memory at a time: few enough to stay in a cache


def most_similar(gram: Gram, index: Tensor) -> Tensor:
    """For every token the slot, 0..K-1, of the kept token it belongs to: (B, N).

    A dropped token belongs to the kept token with the largest cosine similarity, the first among
    equals; a kept token belongs to itself.

    index: (B, K) the kept tokens
    """
    kept = gather(gram.tokens, index)  # (B, K, D)
    length = gram.norms.gather(1, index)[..., None]
    inverse = torch.where(length > 0, 1 / length, 0.0)  # a zero vector is similar to nothing
    # Every cosine of a token has the token's own norm in it: instead of dividing, scale the noise.
    width = max(1, MAX_BLOCK_ENTRIES // max(1, index.numel()))
    blocks = zip(
        gram.tokens.split(width, dim=1), gram.norms[..., None].split(width, dim=1), strict=True
    )
    slots = [
        first_argmax(torch.bmm(kept, tokens.mT).mul_(inverse).mT, NOISE * norms)
        for tokens, norms in blocks
    ]
    slot = torch.cat(slots, dim=1)[..., 0]
    own = torch.arange(index.shape[1], device=index.device).expand_as(index)
    return slot.scatter(1, index, own)


def slot_means(tokens: Tensor, slot: Tensor, slots: int) -> Tensor:
    """The mean of the tokens (B, N, D) that share a slot: (B, slots, D)."""
    batch, _, width = tokens.shape
    index = (slot + slots * torch.arange(batch, device=slot.device)[:, None]).flatten()
    total, rows = tokens.new_zeros(batch * slots, width), tokens.flatten(0, 1)
    if tokens.is_cuda:
        # There, index_add_ adds in any order, and the last bits of a sum would depend on chance.
        total.index_put_((index,), rows, accumulate=True)
    else:
        total.index_add_(0, index, rows)
    ones = tokens.new_ones(()).expand(len(index))
    members = tokens.new_zeros(batch * slots).index_add_(0, index, ones)
    return (total / members[:, None]).view(batch, slots, width)

"""What happens to the tokens that are not kept: each joins the kept token it is most like."""

from __future__ import annotations

import torch
from torch import Tensor

from apet.gram import NOISE, Gram, first_largest, gather


def most_similar(gram: Gram, index: Tensor) -> Tensor:
    """For every token the slot, 0..K-1, of the kept token it belongs to: (B, N).

    That is the kept token with the largest cosine similarity, of equals the first; a kept token belongs to itself.
    """
    inverse = torch.where(gram.norms > 0, 1 / gram.norms, 0.0)  # a zero vector is equally unlike everything
    kept = gather(gram.tokens, index) * inverse.gather(1, index)[..., None]
    cosine = torch.bmm(gram.tokens, kept.mT).mul_(inverse[..., None])  # (B, N, K)
    slot = first_largest(cosine, NOISE)[..., 0]
    own = torch.arange(index.shape[1], device=index.device).expand_as(index)
    return slot.scatter(1, index, own)


def averages(tokens: Tensor, slot: Tensor, slots: int) -> Tensor:
    """The mean of the tokens (B, N, D) that share a slot: (B, slots, D)."""
    batch, _, width = tokens.shape
    place = (slot + slots * torch.arange(batch, device=slot.device)[:, None]).flatten()
    total = tokens.new_zeros(batch * slots, width).index_add_(0, place, tokens.flatten(0, 1))
    members = tokens.new_zeros(batch * slots).index_add_(0, place, tokens.new_ones(()).expand(len(place)))
    return (total / members[:, None]).view(batch, slots, width)

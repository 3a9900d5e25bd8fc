"""ToMe: merge the most similar tokens, a few after every layer of the vision tower.

At each site tokens are assigned alternately to two sets. Each token of one set finds the most
similar one in the other (cosine of the keys of the layer that ran last, averaged over its heads),
and the most similar pairs become one token: the mean, weighted by the number of tokens each already
represents. CLS takes no part. The question has no influence, and no attention weights are needed.

The paper's ToMe merges inside the tower only. For a budget of K tokens, N - K are merged in equal
steps after each of the tower's layers, the last at its output (23 steps for CLIP-L). The paper
merges between a layer's attention and its MLP and adds log(size) to attention ("proportional
attention"). Ours merges after the layer, which a hook can do, and leaves attention unchanged, so
that any kernel can run it. Tokens stay in order; the paper's come out unmerged first. A tower whose
tokens cannot be dropped one by one (windows, resampling) is left alone: there the same merging is
repeated at the encoder's output, on the tokens themselves.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.linalg import vector_norm

from apet.core.gram import first_argmax, gather, stable_topk
from apet.methods.base import Kept, Method, ModelLayout
from apet.schedule import Schedule, Site
from apet.view import View

NOISE = 1e-6  # cosines in float32 that differ by less are ties


@dataclass(frozen=True, kw_only=True)
class ToMe(Method):
    name: ClassVar[str] = "tome"
    inside_tower: ClassVar[bool] = True
    encoder_only: ClassVar[bool] = True

    def spend(self, visual_tokens: int, model: ModelLayout) -> Schedule:
        schedule = super().spend(visual_tokens, model)
        keep, steps = schedule.tokens_at(0), max(1, model.tower_layers)
        sites = [
            Site("vision", step, visual_tokens - round(step * (visual_tokens - keep) / steps))
            for step in range(1, steps)
        ]
        return Schedule(visual_tokens, model.layers, (*sites, *schedule.sites))

    def select(self, view: View) -> Kept:
        tokens, keys = view.tokens.double(), view.tokens if view.keys is None else view.keys
        sizes = view.memory.get("sizes", torch.ones_like(tokens[..., 0]))
        indices = torch.arange(tokens.shape[1], device=tokens.device).expand_as(sizes)
        while (count := tokens.shape[1]) > view.keep:
            # A round can merge at most half of the tokens.
            keep = max(view.keep, -(-count // 2))
            tokens, remaining, sizes = merge_pairs(tokens, keys, sizes, keep)
            indices, keys = indices.gather(1, remaining), gather(keys, remaining)
        view.memory["sizes"] = sizes
        return Kept(tokens.to(view.tokens.dtype), indices)


def merge_pairs(
    tokens: Tensor, keys: Tensor, sizes: Tensor, keep: int
) -> tuple[Tensor, Tensor, Tensor]:
    """One round over (G, N, D): float64 tokens (G, keep, D), their indices and new sizes."""
    groups, count, width = tokens.shape
    norms = vector_norm(keys.double(), dim=-1, keepdim=True)
    unit = keys.double() / norms.clamp(min=1e-300)
    cosine = unit[:, 1::2] @ unit[:, ::2].mT  # odd tokens x even tokens
    partner = first_argmax(cosine, NOISE)  # (G, odd, 1)
    merged = stable_topk(cosine.gather(2, partner)[..., 0], count - keep, NOISE)
    target = 2 * partner[..., 0].gather(1, merged)
    merged = 2 * merged + 1  # from numbers of odd tokens to numbers of all
    total = tokens.double() * sizes[..., None]
    total = total.scatter_add(1, target[..., None].expand(-1, -1, width), gather(total, merged))
    sizes = sizes.scatter_add(1, target, sizes.gather(1, merged))
    alive = torch.ones(groups, count, dtype=torch.uint8, device=tokens.device)
    alive = alive.scatter(1, merged, 0)
    remaining = alive.sort(dim=1, descending=True, stable=True).indices[:, :keep]
    sizes = sizes.gather(1, remaining)
    return gather(total, remaining) / sizes[..., None], remaining, sizes

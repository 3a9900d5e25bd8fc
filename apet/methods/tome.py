"""ToMe: merge the most similar tokens, a few after every layer of the vision tower.

At each site the tokens are split in two by turns, each of the one half finds the most similar of the other (cosine of
the keys of the layer that ran last, the mean over its heads), and the most similar pairs become one token: the mean,
weighted by how many tokens each already stands for. CLS takes no part. Nothing depends on the question, and no
attention weights are needed, but the paper's ToMe keeps the merging inside the tower only; for a budget of K tokens,
N - K are merged in equal steps after each of the tower's layers, the last at its output (23 steps for CLIP-L).

The paper merges between a layer's attention and its MLP and adds log(size) to attention ("proportional attention"). We
merge after the layer, which a hook can do, and leave attention as it is, so that any kernel can run it; tokens stay in
their order, where the paper's come out unmerged first. A tower whose tokens cannot be dropped one by one (windows,
resampling) is left alone: there the same merging is repeated at the encoder's output, on the tokens themselves.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from apet.core.gram import first_largest, gather, largest
from apet.methods.base import Kept, Method, Model
from apet.schedule import Schedule, Site
from apet.view import View

NOISE = 1e-6  # of cosines in float32


@dataclass(frozen=True, kw_only=True)
class ToMe(Method):
    name: ClassVar[str] = "tome"
    inside_tower: ClassVar[bool] = True
    encoder_only: ClassVar[bool] = True

    def spend(self, visual_tokens: int, model: Model) -> Schedule:
        one = super().spend(visual_tokens, model)
        keep, steps = one.tokens_at(0), max(1, model.tower_layers)
        sites = [
            Site("vision", step, visual_tokens - round(step * (visual_tokens - keep) / steps))
            for step in range(1, steps)
        ]
        return Schedule(visual_tokens, model.layers, (*sites, *one.sites))

    def select(self, view: View) -> Kept:
        sizes = view.memory.get("sizes", torch.ones_like(view.tokens[..., 0], dtype=torch.float64))
        keys = view.tokens if view.keys is None else view.keys
        tokens, places = (
            view.tokens.double(),
            torch.arange(view.tokens.shape[1], device=sizes.device).expand_as(sizes),
        )
        while tokens.shape[1] > view.keep:  # one round can at most halve them
            tokens, stay, sizes = merge_pairs(
                tokens, keys, sizes, max(view.keep, -(-tokens.shape[1] // 2))
            )
            places, keys = places.gather(1, stay), gather(keys, stay)
        view.memory["sizes"] = sizes
        return Kept(tokens.to(view.tokens.dtype), places)


def merge_pairs(
    tokens: Tensor, keys: Tensor, sizes: Tensor, keep: int
) -> tuple[Tensor, Tensor, Tensor]:
    """One round: float64 (G, keep, D) of (G, N, D), the places (G, keep) that stay, and what each stands for."""
    groups, count, width = tokens.shape
    unit = keys.double() / torch.linalg.vector_norm(keys.double(), dim=-1, keepdim=True).clamp(
        min=1e-300
    )
    cosine = unit[:, 1::2] @ unit[:, ::2].mT  # of the odd places with the even ones
    partner = first_largest(cosine, NOISE)  # (G, odd, 1)
    gone = largest(cosine.gather(2, partner)[..., 0], count - keep, NOISE)  # of the odd places
    target = 2 * partner[..., 0].gather(1, gone)
    gone = 2 * gone + 1
    weighted = tokens.double() * sizes[..., None]
    weighted = weighted.scatter_add(
        1, target[..., None].expand(-1, -1, width), gather(weighted, gone)
    )
    sizes = sizes.scatter_add(1, target, sizes.gather(1, gone))
    alive = torch.ones(groups, count, dtype=torch.uint8, device=tokens.device).scatter(1, gone, 0)
    stay = alive.sort(dim=1, descending=True, stable=True).indices[:, :keep]
    sizes = sizes.gather(1, stay)
    return gather(weighted, stay) / sizes[..., None], stay, sizes

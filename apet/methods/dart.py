"""DART: what duplicates a few pivots least.

Keeps the tokens that are least similar to pivots, because dropping a duplicate costs little whatever its attention
(Wen et al., 2025). Pivots are the 4 image tokens and the 4 tokens of the text after the image whose keys are largest
(L1 norm over all heads of layer K - 1, after its rotary embedding: "K-norm"). The image pivots stay; then each pivot
in turn takes from what is left the tokens of the lowest cosine to it, between the layer's inputs after the decoder's
final norm. Nothing is merged, survivors keep their positions.

Acts at decoder layer K = 2, once. The tables of the paper count the tokens after that layer; here the average over all
layers is the budget, so as many are kept as with FastV. The code keeps 4 + 8 t tokens; here the remainder goes to the
first pivots, so that exactly `keep` are left. The code's pivots come in the order of a Python set, which changes what
is kept; here image pivots come first, then text, each in their order. Fewer than 4 tokens of text: these take turns.
A `keep` of 4 or fewer: only image pivots.

Needs no attention weights, but the keys of one layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from apet.attention.weights import NOISE, keys, most, of_rows
from apet.core.gram import gather, largest
from apet.methods.base import Kept
from apet.methods.decoder import DecoderMethod
from apet.view import View


@dataclass(frozen=True, kw_only=True)
class DART(DecoderMethod):
    name: ClassVar[str] = "dart"
    layers: ClassVar[tuple[tuple[int, ...], ...]] = ((2,),)

    pivot_image: int = 4
    pivot_text: int = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        if min(self.pivot_image, self.pivot_text) < 1:
            raise ValueError(
                f"pivot_image is {self.pivot_image} and pivot_text {self.pivot_text}; give 1 or more of both"
            )

    def shares(self, free: float, budget: float) -> Sequence[float]:
        return (free,)

    def select(self, view: View) -> Kept:
        site = view.decoder
        assert site is not None
        assert site.before is not None
        rows = view.rows[:, 0]
        size = keys(of_rows(site.before, rows)).float().abs().sum(dim=(1, 3))  # (G, S)
        words = site.sequence.instruction[rows]
        words = torch.where(
            words.any(dim=1, keepdim=True), words, site.sequence.valid[rows]
        )  # a prompt without words
        text = text_pivots(size, words, self.pivot_text)
        places = retain(
            site.norm(view.tokens),
            size.gather(1, view.columns),
            site.norm(site.sequence.hidden[view.rows, text]),
            view.keep,
            self.pivot_image,
        )
        return Kept(gather(view.tokens, places), places)


def text_pivots(size: Tensor, text: Tensor, count: int) -> Tensor:
    """Ascending columns (G, count) of the text (G, S bool) with the largest keys; if there are fewer, in turns."""
    ahead = most(
        torch.where(text, size, -1.0), min(count, size.shape[1])
    )  # if too few, with others among them
    order = text.gather(1, ahead).byte().sort(dim=1, descending=True, stable=True).indices
    turn = torch.arange(count, device=size.device) % text.sum(dim=1, keepdim=True).clamp(
        1, ahead.shape[1]
    )
    return ahead.gather(1, order.gather(1, turn)).sort(dim=1).values


def retain(image: Tensor, size: Tensor, text: Tensor, keep: int, pivots: int) -> Tensor:
    """Ascending places (G, keep) of the `image` (G, N, D): pivots by `size` (G, N), and what is least like them.

    text: (G, P, D): more pivots, which are not kept
    """
    first = most(size, min(pivots, keep))
    left = torch.ones_like(size, dtype=torch.bool).scatter(1, first, False)
    pivot = torch.nn.functional.normalize(
        torch.cat([gather(image, first), text], dim=1).float(), dim=-1
    )
    away = -pivot @ torch.nn.functional.normalize(image.float(), dim=-1).mT  # (G, pivots, N)
    each, more = divmod(keep - first.shape[1], pivot.shape[1])
    chosen = [first]
    for place in range(pivot.shape[1] if each else more):
        chosen.append(
            largest(away[:, place].masked_fill(~left, -torch.inf), each + (place < more), NOISE)
        )
        left = left.scatter(1, chosen[-1], False)
    return torch.cat(chosen, dim=1).sort(dim=1).values

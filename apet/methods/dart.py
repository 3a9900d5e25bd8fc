"""DART: keep the tokens that duplicate a few pivots least.

Dropping a duplicate costs little, whatever its attention (Wen et al., 2025). Pivots are the 4 image
tokens and the 4 text tokens after the image whose keys are largest ("K-norm": the L1 norm over all
heads of layer K - 1, after its rotary embedding). The image pivots stay. Then each pivot in turn
takes the remaining tokens with the lowest cosine to it, between the layer's inputs after the
decoder's final norm. Nothing is merged, and kept tokens keep their positions.

Acts once, at decoder layer K = 2. The paper's tables count the tokens after that layer; here the
average over all layers is the budget, so as many are kept as with FastV. Differences from the
authors' code:
- The code keeps 4 + 8 t tokens. Here the first pivots take the rest, so that `keep` are left.
- The code's pivots have the order of a Python set, which changes the kept tokens. Here image pivots
  come first, then text pivots, each in order.
- Fewer than 4 text tokens take turns as pivots. A `keep` of 4 or fewer keeps only image pivots.

Needs no attention weights, but the keys of one layer.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import normalize

from apet.attention.recomputed_weights import NOISE, layer_keys, most_attended, select_rows
from apet.core.gram import gather, stable_topk
from apet.methods.base import Kept
from apet.methods.decoder_method import DecoderMethod
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
                f"pivot_image is {self.pivot_image} and pivot_text {self.pivot_text}; give 1 or"
                " more of both"
            )

    def select(self, view: View) -> Kept:
        site = view.decoder
        assert site is not None
        assert site.previous_layer is not None
        rows = view.rows[:, 0]
        key_norms = layer_keys(select_rows(site.previous_layer, rows)).float().abs().sum(dim=(1, 3))
        text = site.sequence.instruction[rows]
        # Without any text in a prompt, all of its tokens can be pivots.
        text = torch.where(text.any(dim=1, keepdim=True), text, site.sequence.valid[rows])
        pivots = text_pivots(key_norms, text, self.pivot_text)
        indices = least_similar(
            site.norm(view.tokens),
            key_norms.gather(1, view.columns),
            site.norm(site.sequence.hidden[view.rows, pivots]),
            view.keep,
            self.pivot_image,
        )
        return Kept(gather(view.tokens, indices), indices)


def text_pivots(key_norms: Tensor, text: Tensor, count: int) -> Tensor:
    """Ascending columns (G, count) of the text with the largest keys; fewer tokens take turns.

    key_norms: (G, S); text: (G, S) bool
    """
    # In groups with fewer than `count` text tokens, these columns include others.
    largest = most_attended(torch.where(text, key_norms, -1.0), min(count, key_norms.shape[1]))
    text_first = text.gather(1, largest).byte().sort(dim=1, descending=True, stable=True).indices
    available = text.sum(dim=1, keepdim=True).clamp(1, largest.shape[1])
    turn = torch.arange(count, device=key_norms.device) % available
    return largest.gather(1, text_first.gather(1, turn)).sort(dim=1).values


def least_similar(image: Tensor, key_norms: Tensor, text: Tensor, keep: int, pivots: int) -> Tensor:
    """Ascending indices (G, keep) of image tokens: pivots, and the tokens least similar to pivots.

    image: (G, N, D); key_norms: (G, N), which choose the pivots of the image
    text:  (G, P, D), further pivots, which are not kept
    """
    first = most_attended(key_norms, min(pivots, keep))
    available = torch.ones_like(key_norms, dtype=torch.bool).scatter(1, first, False)
    pivot = normalize(torch.cat([gather(image, first), text], dim=1).float(), dim=-1)
    distance = -pivot @ normalize(image.float(), dim=-1).mT  # (G, pivots, N)
    quota, remainder = divmod(keep - first.shape[1], pivot.shape[1])
    kept = [first]
    for number in range(pivot.shape[1] if quota else remainder):
        candidates = distance[:, number].masked_fill(~available, -torch.inf)
        kept.append(stable_topk(candidates, quota + (number < remainder), NOISE))
        available = available.scatter(1, kept[-1], False)
    return torch.cat(kept, dim=1).sort(dim=1).values

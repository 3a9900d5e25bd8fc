"""SparseVLM: in stages, keep the visual tokens that relevant words attend to, and recycle others.

Raters are the words of the instruction (all text after the image) that resemble the picture most:
with the embeddings V of visual and T of text tokens at the decoder's input, those whose mean over V
of softmax(V T^T) is above average. A token's score is the attention that it receives from the
raters, averaged over them and over the heads, in the layer that has just run. The best tokens are
kept. Of the others the better 30 % (tau) are recycled: grouped into clusters of 10 (theta = 0.1) by
density peaks, each of which becomes one token, its mean (Zhang et al., 2024; code v1.5).

Acts at decoder layers 3, 7 and 16 of 32: on the output of layers 2, 6 and 15. The counts there,
clusters included, follow the code's tables (`TABLE`), with interpolation between them, scaled alike
at all three layers so that the average over the layers is the budget. (The code reports 64, but
counts layers by their output: its table for 64 averages 82. The three layers that see all 576
tokens already spend 54 of the 64.) The rule of the paper's first version, by the rank of the
attention, is not used: the tables replaced it. Small budgets move the sites, see
`apet.methods.decoder_method`.

Differences from the code:
- A cluster counts towards `keep` and has its centre's place and position. The code appends clusters
  to the image and renumbers all positions.
- At most half of `keep` are clusters. The code, which never keeps so few, has no such limit.
- The code breaks ties of density by random noise. Here the first of equals counts as denser.

Raters are chosen once per row, from all its images. Without a word above average (a single word),
all words are raters. Needs attention weights: one query per rater of one layer per stage.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from apet.attention.recomputed_weights import NOISE, mean_attention, most_attended
from apet.core.gram import Gram, first_argmax, gather, stable_topk
from apet.methods.base import Kept
from apet.methods.decoder_method import DecoderMethod
from apet.view import View

# Tokens kept at the three sites, by the budget that the code reports, for 576 visual tokens.
TABLE = {
    0: (0, 0, 0),
    64: (82, 32, 18),
    96: (249, 55, 27),
    128: (312, 117, 39),
    192: (309, 204, 113),
    576: (576, 576, 576),
}


@dataclass(frozen=True, kw_only=True)
class SparseVLM(DecoderMethod):
    name: ClassVar[str] = "sparsevlm"
    layers: ClassVar[tuple[tuple[int, ...], ...]] = ((3, 7, 16),)

    tau: float = 0.3  # share of the dropped tokens that is recycled
    theta: float = 0.1  # clusters per recycled token

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (0 <= self.tau <= 1 and 0 <= self.theta <= 1):
            raise ValueError(
                f"tau is {self.tau} and theta {self.theta}; both are shares, from 0 to 1"
            )

    def shares(self, free: float, budget: float) -> Sequence[float]:
        high = next(row for row in TABLE if row >= 576 * budget)
        low = max(row for row in TABLE if row < high)
        weight = (576 * budget - low) / (high - low)
        pattern = [
            before + weight * (after - before)
            for before, after in zip(TABLE[low], TABLE[high], strict=True)
        ]
        return [min(1.0, free * count / pattern[-1]) for count in pattern]

    def select(self, view: View) -> Kept:
        site = view.decoder
        assert site is not None
        assert site.previous_layer is not None
        assert site.entry_sequence is not None
        assert site.entry_columns is not None
        rows, start = view.rows[:, 0], site.entry_sequence
        is_rater = raters(start.hidden[rows], start.visual[rows], start.instruction[rows])
        # From columns of the decoder's input to columns of the current sequence.
        is_rater = is_rater.gather(1, site.entry_columns[rows]) & site.sequence.valid[rows]
        queries, real = true_columns(is_rater)
        attention = mean_attention(site.previous_layer, site.sequence.valid, rows, queries)
        total = (attention * real[..., None]).sum(dim=1)
        score = (total / real.sum(dim=1, keepdim=True).clamp(min=1)).gather(1, view.columns)
        unchanged = unchanged_count(view.tokens.shape[1], view.keep, self.tau, self.theta)
        return recycle(view.tokens, score, unchanged, view.keep - unchanged, self.tau)


def true_columns(mask: Tensor) -> tuple[Tensor, Tensor]:
    """Columns (G, Q) of all true values of `mask` (G, S), at least one, padded with false ones.

    The second result (G, Q) tells true values from padding.
    """
    count = max(1, int(mask.sum(dim=1).max()))
    columns = mask.byte().sort(dim=1, descending=True, stable=True).indices[:, :count]
    return columns, mask.gather(1, columns)


def raters(hidden: Tensor, visual: Tensor, text: Tensor) -> Tensor:
    """The raters (G, S) bool among tokens `hidden` (G, S, D); both masks are (G, S) bool."""
    columns, real = true_columns(text)
    likeness = hidden.float() @ gather(hidden, columns).float().mT  # (G, S, T)
    likeness = likeness.masked_fill(~real[:, None], torch.finfo(likeness.dtype).min).softmax(dim=2)
    mean = (likeness * visual[..., None]).sum(dim=1) / visual.sum(dim=1, keepdim=True).clamp(min=1)
    average = mean.sum(dim=1, keepdim=True) / real.sum(dim=1, keepdim=True).clamp(min=1)
    above = real & (mean > average * (1 + NOISE))
    above = torch.where(above.any(dim=1, keepdim=True), above, real)
    return torch.zeros_like(text).scatter(1, columns, above)


def unchanged_count(count: int, keep: int, tau: float = 0.3, theta: float = 0.1) -> int:
    """Number of the `count` tokens that stay unchanged: they and the clusters are `keep`."""
    unchanged = keep
    while True:
        recycled = recycled_count(count - unchanged, tau)
        if keep - unchanged >= min(int(theta * recycled) + 1, recycled, keep // 2):
            return unchanged
        unchanged -= 1


def recycled_count(dropped: int, tau: float) -> int:
    return min(int(tau * dropped) + 1, dropped)


def recycle(tokens: Tensor, score: Tensor, unchanged: int, clusters: int, tau: float = 0.3) -> Kept:
    """The best `unchanged` tokens, and `clusters` tokens made of the better ones of the others.

    tokens: (G, N, D); score: (G, N)
    """
    best = most_attended(score, unchanged)
    if not clusters:
        return Kept(gather(tokens, best), best)
    # Scores are at least 0, so those that stay come last.
    others = score.scatter(1, best, -1.0)
    recycled = most_attended(others, recycled_count(tokens.shape[1] - unchanged, tau))
    centres, slot = density_peaks(Gram(gather(tokens, recycled)), clusters)
    member = torch.zeros(*slot.shape, clusters, dtype=torch.float64, device=slot.device)
    member.scatter_(2, slot[..., None], 1)  # (G, recycled, clusters)
    means = member.mT @ gather(tokens, recycled).double() / member.sum(dim=1)[..., None]
    order = torch.cat([best, recycled.gather(1, centres)], dim=1).sort(dim=1)
    values = torch.cat([gather(tokens, best), means.to(tokens.dtype)], dim=1)
    return Kept(gather(values, order.indices), order.values)


def density_peaks(gram: Gram, count: int) -> tuple[Tensor, Tensor]:
    """Ascending centres (G, count) of (G, n) tokens, and the nearest centre of each token: (G, n).

    Score = distance to the nearest denser token x density, with density = exp(-mean square distance
    to the nearest `count`, itself among them). Computed in logarithms, where nothing underflows.
    (The density in `apet.core.basis` is over five others.)
    """
    batch, size = gram.norms.shape
    token = torch.arange(size, device=gram.norms.device)
    square = gram.distances(token.expand(batch, size))[0] / gram.tokens.shape[-1]
    square = square.masked_fill(token[:, None] == token, 0.0)
    sparsity = square.topk(count, dim=2, largest=False).values.mean(dim=2)  # minus log density
    gap = sparsity[:, :, None] - sparsity[:, None]  # (G, i, j): above 0 if j is denser than i
    denser = (gap > NOISE) | ((gap >= -NOISE) & (token < token[:, None]))
    reach = square.masked_fill(~denser, torch.inf).amin(dim=2)
    reach = torch.where(reach.isinf(), square.amax(dim=(1, 2))[:, None], reach)
    centres = stable_topk(reach.log() / 2 - sparsity, count, NOISE)
    to_centre = square.gather(2, centres[:, None].expand(-1, size, -1))
    slot = first_argmax(-to_centre, NOISE * to_centre)[..., 0]
    own = torch.arange(count, device=slot.device).expand_as(centres)
    return centres, slot.scatter(1, centres, own)

"""SparseVLM: in stages, the visual tokens that the relevant words look at, and the sum of what they leave.

Raters are the words of the instruction (all text after the image) that the picture is most like: with the embeddings V
of the visual and T of the text tokens at the decoder's entry, those whose mean over V of softmax(V T^T) is above
average. A token's score is the attention that it receives from the raters, the mean over them and over the heads, in
the layer that has just run. The best are kept; of the others the better 30 % (tau) are recycled: gathered in clusters
of 10 (theta = 0.1) by density peaks, each of which becomes one token, its mean (Zhang et al., 2024; code v1.5).

Acts at decoder layers 3, 7 and 16 of 32: on the output of layers 2, 6 and 15. What is kept there, clusters included,
follows the code's tables (`TABLE`), between them by interpolation, scaled alike at all three layers so that the average
over the layers is the budget. (The code reports 64, but counts layers by their output: its table for 64 averages 82.
The three layers that see all 576 tokens already spend 54 of the 64.) The rule of the paper's first version, by the
rank of the attention, is not used: the tables replaced it. Small budgets move the sites as `apet.methods.decoder` says.

A cluster counts towards `keep` and stands at its centre's place and position; the code appends clusters to the image
and renumbers all positions. At most half of `keep` are clusters; the code, which never has so few, has no such limit.
The code breaks ties of density by random noise; here of equals the first counts as denser. Raters are found once a row,
from all its images. Without a word above average (one word alone) all words are raters.

Needs attention weights: a query a rater of one layer a stage.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from apet.attention.weights import NOISE, attended, most
from apet.core.gram import Gram, first_largest, gather, largest
from apet.methods.base import Kept
from apet.methods.decoder import DecoderMethod
from apet.view import View

TABLE = {
    0: (0, 0, 0),
    64: (82, 32, 18),
    96: (249, 55, 27),
    128: (312, 117, 39),
    192: (309, 204, 113),
    576: (576,) * 3,
}


@dataclass(frozen=True, kw_only=True)
class SparseVLM(DecoderMethod):
    name: ClassVar[str] = "sparsevlm"
    layers: ClassVar[tuple[tuple[int, ...], ...]] = ((3, 7, 16),)

    tau: float = 0.3  # of the dropped tokens, the share that is recycled
    theta: float = 0.1  # clusters a recycled token

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (0 <= self.tau <= 1 and 0 <= self.theta <= 1):
            raise ValueError(
                f"tau is {self.tau} and theta {self.theta}; both are shares, from 0 to 1"
            )

    def shares(self, free: float, budget: float) -> Sequence[float]:
        high = next(row for row in TABLE if row >= 576 * budget)
        low = max(row for row in TABLE if row < high)
        part = (576 * budget - low) / (high - low)
        pattern = [
            before + part * (after - before)
            for before, after in zip(TABLE[low], TABLE[high], strict=True)
        ]
        return [min(1.0, free * share / pattern[-1]) for share in pattern]

    def select(self, view: View) -> Kept:
        site = view.decoder
        assert site is not None
        assert site.before is not None
        assert site.entered is not None
        assert site.source is not None
        rows, start = view.rows[:, 0], site.entered
        rate = raters(start.hidden[rows], start.visual[rows], start.instruction[rows])
        rate = rate.gather(1, site.source[rows]) & site.sequence.valid[rows]  # where they stand now
        queries, real = packed(rate)
        attention = attended(site.before, site.sequence.valid, rows, queries)  # (G, Q, S)
        score = (attention * real[..., None]).sum(dim=1) / real.sum(dim=1, keepdim=True).clamp(
            min=1
        )
        kept = split(view.tokens.shape[1], view.keep, self.tau, self.theta)
        return recycle(view.tokens, score.gather(1, view.columns), kept, view.keep - kept, self.tau)


def packed(mask: Tensor) -> tuple[Tensor, Tensor]:
    """The columns (G, Q) that are true in (G, S), at least one, and which of them are (the others fill up)."""
    count = max(1, int(mask.sum(dim=1).max()))
    columns = mask.byte().sort(dim=1, descending=True, stable=True).indices[:, :count]
    return columns, mask.gather(1, columns)


def raters(hidden: Tensor, visual: Tensor, text: Tensor) -> Tensor:
    """Which of (G, S, D) are raters: (G, S) bool; `visual` and `text` (G, S) bool say what is what."""
    columns, real = packed(text)
    likeness = hidden.float() @ gather(hidden, columns).float().mT  # (G, S, T)
    likeness = likeness.masked_fill(~real[:, None], torch.finfo(likeness.dtype).min).softmax(dim=2)
    mean = (likeness * visual[..., None]).sum(dim=1) / visual.sum(dim=1, keepdim=True).clamp(min=1)
    average = mean.sum(dim=1, keepdim=True) / real.sum(dim=1, keepdim=True).clamp(min=1)
    above = real & (mean > average * (1 + NOISE))
    above = torch.where(above.any(dim=1, keepdim=True), above, real)
    return torch.zeros_like(text).scatter(1, columns, above)


def split(count: int, keep: int, tau: float = 0.3, theta: float = 0.1) -> int:
    """How many of `count` tokens stay as they are, so that with the clusters of the rest `keep` are left."""
    kept = keep
    while keep - kept < min(
        int(theta * recycled(count - kept, tau)) + 1, recycled(count - kept, tau), keep // 2
    ):
        kept -= 1
    return kept


def recycled(dropped: int, tau: float) -> int:
    return min(int(tau * dropped) + 1, dropped)


def recycle(tokens: Tensor, score: Tensor, kept: int, clusters: int, tau: float = 0.3) -> Kept:
    """The `kept` best of (G, N, D) by `score` (G, N), and `clusters` tokens made of the better ones of the rest."""
    chosen = most(score, kept)
    if not clusters:
        return Kept(gather(tokens, chosen), chosen)
    again = most(
        score.scatter(1, chosen, -1.0), recycled(tokens.shape[1] - kept, tau)
    )  # a score is at least 0
    centres, slot = density_peaks(Gram(gather(tokens, again)), clusters)
    member = torch.zeros(
        *slot.shape, clusters, dtype=torch.float64, device=slot.device
    )  # (G, size, clusters)
    member.scatter_(2, slot[..., None], 1)
    means = member.mT @ gather(tokens, again).double() / member.sum(dim=1)[..., None]
    order = torch.cat([chosen, again.gather(1, centres)], dim=1).sort(dim=1)
    values = torch.cat([gather(tokens, chosen), means.to(tokens.dtype)], dim=1)
    return Kept(gather(values, order.indices), order.values)


def density_peaks(gram: Gram, count: int) -> tuple[Tensor, Tensor]:
    """Ascending centres (G, count) of (G, n) tokens, and which of these each token is nearest to: (G, n).

    Score = distance to the nearest denser token x density, with density = exp(-mean square distance to the nearest
    `count`, itself among them). In logarithms, where nothing underflows. (`apet.core.basis` measures over five others.)
    """
    batch, size = gram.norms.shape
    place = torch.arange(size, device=gram.norms.device)
    square = gram.distances(place.expand(batch, size))[0] / gram.tokens.shape[-1]
    square = square.masked_fill(place[:, None] == place, 0.0)
    crowd = square.topk(count, dim=2, largest=False).values.mean(dim=2)
    more = crowd[:, :, None] - crowd[:, None]  # (G, i, j): above 0 if j is denser than i
    denser = (more > NOISE) | ((more >= -NOISE) & (place < place[:, None]))
    reach = square.masked_fill(~denser, torch.inf).amin(dim=2)
    reach = torch.where(reach.isinf(), square.amax(dim=(1, 2))[:, None], reach)
    centres = largest(reach.log() / 2 - crowd, count, NOISE)
    apart = square.gather(2, centres[:, None].expand(-1, size, -1))
    slot = first_largest(-apart, NOISE * apart)[..., 0]
    return centres, slot.scatter(
        1, centres, torch.arange(count, device=slot.device).expand_as(centres)
    )

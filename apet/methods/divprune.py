"""DivPrune: the tokens that are farthest from each other, max-min diversity over cosine distances.

Keeps tokens as they are and merges none. The first is the token whose nearest other token is farthest; then, again
and again, the one farthest from all picks. Unlike the authors' code ours never picks a token twice (theirs repeats
tokens once distinct ones run out), ties go to the lower index, and a zero vector, NaN there, is at distance 1 from
all tokens but other zero vectors.

Acts once with the whole budget, on the embeddings that enter the decoder (after the projector, whatever the family),
as in the paper, which keeps 9.8 % there (56 of 576); no other hyper-parameters, no attention weights. Ours chooses
in each group by itself; the authors' code runs once over all crops and newlines of a LLaVA-NeXT image.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from apet.core.gram import NOISE, Gram, first_largest, gather
from apet.methods.base import Kept, Method
from apet.view import View

BLOCK = 1 << 22  # cosines held at a time while all are needed


@dataclass(frozen=True, kw_only=True)
class DivPrune(Method):
    """At the decoder's entry, by diversity."""

    name: ClassVar[str] = "divprune"
    encoder_only: ClassVar[bool] = True
    after_projector: ClassVar[bool] = True

    def select(self, view: View) -> Kept:
        places = most_diverse(view.tokens, view.keep).sort(dim=1).values
        return Kept(gather(view.tokens, places), places)


def most_diverse(tokens: Tensor, size: int) -> Tensor:
    """The picks among (B, N, D), in their order: (B, size)."""
    zero = (tokens == 0).all(-1, keepdim=True).double()
    length = torch.linalg.vector_norm(tokens, dim=-1, keepdim=True, dtype=torch.float64)
    gram = Gram(
        torch.cat([tokens / (length + zero), zero], dim=-1)
    )  # zero vectors share a direction of their own
    pick = first_largest(-_nearest(gram), NOISE)
    picks, closest = [pick], torch.full_like(gram.norms, -torch.inf)
    for _ in range(size - 1):
        closest = torch.maximum(closest, gram.rows(pick)[:, 0]).scatter(1, pick, torch.inf)
        pick = first_largest(-closest, NOISE)
        picks.append(pick)
    return torch.cat(picks, dim=1)


def _nearest(gram: Gram) -> Tensor:
    """Each token's cosine with the other token that it is most like, (B, N): all rows, a block at a time."""
    batch, count = gram.norms.shape
    everyone = torch.arange(count, device=gram.norms.device).expand(batch, count)
    blocks = torch.split(everyone, max(1, BLOCK // max(1, batch * count)), dim=1)
    return torch.cat(
        [gram.rows(b).scatter(2, b[..., None], -torch.inf).amax(dim=2) for b in blocks], dim=1
    )

"""DivPrune: keep the tokens that are farthest from each other, by max-min cosine distance.

Merges nothing. The first token is the one whose nearest other token is farthest; then, repeatedly,
the token farthest from all picks joins them. Unlike the authors' code ours never picks a token
twice (theirs repeats tokens once distinct ones run out), ties go to the lower index, and a zero
vector, NaN there, has distance 1 from all tokens but other zero vectors.

Acts once with the whole budget, on the decoder's input (after the projector in every family). The
paper does the same and keeps 9.8 % there (56 of 576). No other options, no attention weights. Ours
selects in each group separately; the authors' code runs once over all crops and newlines of a
LLaVA-NeXT image.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from apet.core.gram import NOISE, Gram, first_argmax, gather
from apet.methods.base import Kept, Method
from apet.view import View

MAX_COSINES = 1 << 22  # held at a time while all pairs are computed


@dataclass(frozen=True, kw_only=True)
class DivPrune(Method):
    name: ClassVar[str] = "divprune"
    encoder_only: ClassVar[bool] = True
    after_projector: ClassVar[bool] = True

    def select(self, view: View) -> Kept:
        indices = most_diverse(view.tokens, view.keep).sort(dim=1).values
        return Kept(gather(view.tokens, indices), indices)


def most_diverse(tokens: Tensor, size: int) -> Tensor:
    """The picks (B, size) among tokens (B, N, D), in the order of picking."""
    zero = (tokens == 0).all(-1, keepdim=True).double()
    length = torch.linalg.vector_norm(tokens, dim=-1, keepdim=True, dtype=torch.float64)
    # Zero vectors share an extra direction.
    gram = Gram(torch.cat([tokens / (length + zero), zero], dim=-1))
    pick = first_argmax(-_nearest(gram), NOISE)
    picks, closest = [pick], torch.full_like(gram.norms, -torch.inf)
    for _ in range(size - 1):
        closest = torch.maximum(closest, gram.rows(pick)[:, 0]).scatter(1, pick, torch.inf)
        pick = first_argmax(-closest, NOISE)
        picks.append(pick)
    return torch.cat(picks, dim=1)


def _nearest(gram: Gram) -> Tensor:
    """Each token's cosine to the most similar other token, (B, N), computed in blocks of rows."""
    batch, count = gram.norms.shape
    tokens = torch.arange(count, device=gram.norms.device).expand(batch, count)
    blocks = tokens.split(max(1, MAX_COSINES // max(1, batch * count)), dim=1)
    nearest = [gram.rows(b).scatter(2, b[..., None], -torch.inf).amax(dim=2) for b in blocks]
    return torch.cat(nearest, dim=1)

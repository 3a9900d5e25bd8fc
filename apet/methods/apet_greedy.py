"""Greedy ApET, our own: every kept token joins the basis, so that no two are kept for saying the same.

ApET ranks all tokens by their distance from one basis of 10, and keeps both of two twins with a large error. Here
the token with the largest *remaining* error is added to the basis, again and again until K are kept; dropped tokens
then join the kept one they are most like, as in ApET. Same sites and same spending of the budget as ApET; no
attention weights, and no hyper-parameter but `merge` (True).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from apet.core.compression import chunks
from apet.core.gram import Gram, gather
from apet.core.greedy import greedy_basis
from apet.core.merge import averages, most_similar
from apet.methods.base import Kept, Method
from apet.view import View


@dataclass(frozen=True, kw_only=True)
class ApETGreedy(Method):
    """At the encoder and in the middle of the decoder, by what the tokens kept so far cannot explain."""

    name: ClassVar[str] = "apet_greedy"

    merge: bool = True

    def select(self, view: View) -> Kept:
        parts = [self._keep(chunk, view.keep) for chunk in chunks(view.tokens)]
        tokens, places = (torch.cat(column) for column in zip(*parts, strict=True))
        return Kept(tokens.to(view.tokens.dtype), places)

    def _keep(self, tokens: Tensor, keep: int) -> tuple[Tensor, Tensor]:
        gram = Gram(tokens)
        places = greedy_basis(gram, keep).sort(dim=1).values
        if self.merge:
            return averages(gram.tokens, most_similar(gram, places), keep), places
        return gather(tokens, places), places

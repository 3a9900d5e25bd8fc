"""Greedy ApET, our own variant: every kept token joins the basis, so near-duplicates are dropped.

ApET ranks all tokens by their distance from one basis of 10, and keeps both of two equal tokens if
their error is large. Here the token with the largest *remaining* error joins the basis, until K
tokens are kept. As in ApET, each dropped token is then merged into the most similar kept one. Same
sites and same spending of the budget as ApET, no attention weights. Option: `merge` (True).
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from apet.core.compression import split_into_chunks
from apet.core.gram import Gram, gather
from apet.core.greedy_basis import greedy_basis
from apet.core.merge import most_similar, slot_means
from apet.methods.base import Kept, Method
from apet.view import View


@dataclass(frozen=True, kw_only=True)
class ApETGreedy(Method):
    name: ClassVar[str] = "apet_greedy"

    merge: bool = True

    def select(self, view: View) -> Kept:
        results = [self._keep(chunk, view.keep) for chunk in split_into_chunks(view.tokens)]
        tokens, indices = (torch.cat(column) for column in zip(*results, strict=True))
        return Kept(tokens.to(view.tokens.dtype), indices)

    def _keep(self, tokens: Tensor, keep: int) -> tuple[Tensor, Tensor]:
        gram = Gram(tokens)
        indices = greedy_basis(gram, keep).sort(dim=1).values
        if self.merge:
            return slot_means(gram.tokens, most_similar(gram, indices), keep), indices
        return gather(tokens, indices), indices

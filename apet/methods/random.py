"""Random: keep any K tokens, every subset with equal probability. The baseline of all selection.

Merges nothing. Acts once, at the encoder's output, with the whole budget: a control for the
decoder's input, which a second draw in the decoder would blur. Needs no attention weights.

The draw depends on `seed` (0), the row's own seed (`Attachment.seeds`; a job gives the row's id),
the site, and the number of the group among the row's groups of the same size, so that frames and
crops are drawn separately. It does not depend on batch, device or process.
"""

from collections import Counter
from dataclasses import dataclass
from random import Random as Generator
from typing import ClassVar

import torch

from apet.core.gram import gather
from apet.device import copy_async
from apet.methods.base import Kept, Method
from apet.view import View


@dataclass(frozen=True, kw_only=True)
class Random(Method):
    name: ClassVar[str] = "random"
    encoder_only: ClassVar[bool] = True

    seed: int = 0

    def select(self, view: View) -> Kept:
        count = view.tokens.shape[1]
        drawn: Counter[int] = Counter()  # groups of each row
        draws = []
        for row, row_seed in zip(view.row_numbers, view.seeds, strict=True):
            generator = Generator(f"{self.seed}/{row_seed}/{view.stage}/{view.layer}/{drawn[row]}")
            draws.append(sorted(generator.sample(range(count), view.keep)))
            drawn[row] += 1
        indices = copy_async(torch.tensor(draws), view.tokens.device)
        return Kept(gather(view.tokens, indices), indices)

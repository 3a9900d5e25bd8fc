"""Random: any K tokens, every subset as likely. What a method must beat to have chosen anything.

Keeps tokens as they are and merges none. Acts once, at the encoder's output, with the whole budget: a control for
what enters the decoder, which a second draw halfway would blur. Needs no attention weights.
`seed` (0) and the row's own number (`Attachment.seeds`; the job gives the row's id) decide the draw, together with
the site and the group's place among its row's groups of the same size, so that frames and crops are drawn apart.
Batch, device and process do not matter.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from random import Random as Generator
from typing import ClassVar

import torch

from apet.core.gram import gather
from apet.methods.base import Kept, Method
from apet.view import View


@dataclass(frozen=True, kw_only=True)
class Random(Method):
    """At the encoder, by chance."""

    name: ClassVar[str] = "random"
    encoder_only: ClassVar[bool] = True

    seed: int = 0

    def select(self, view: View) -> Kept:
        count = view.tokens.shape[1]
        met: Counter[int] = Counter()
        draws = []
        for row, number in zip(view.rows[:, 0].tolist(), view.seeds, strict=True):
            generator = Generator(f"{self.seed}/{number}/{view.stage}/{view.layer}/{met[row]}")
            draws.append(sorted(generator.sample(range(count), view.keep)))
            met[row] += 1
        places = torch.tensor(draws, device=view.tokens.device)
        return Kept(gather(view.tokens, places), places)

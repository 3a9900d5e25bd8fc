"""FastV: after the second layer, only the visual tokens that the answer is about to look at.

Keeps the tokens to which the last token of the prompt, the one that predicts the answer, attends most, because deep
layers hardly attend to the others (Chen et al., 2024, "An image is worth 1/2 tokens after layer 2"). The weights are
those of layer K - 1, the mean over its heads. Nothing is merged, survivors keep their positions.

Acts at decoder layer K = 2, once; the paper's other number, R (50 %, 75 %, 90 % dropped there), follows from the
budget: (D B - K N) / (D - K) of N tokens are kept, 166, 98 and 30 of 576 for 192, 128 and 64. A budget that leaves
none moves K, as `apet.methods.decoder` says. For another K give the schedule: `schedule="3=82"`.

Needs attention weights: one query of one layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from apet.attention.weights import attended_by_last, most
from apet.core.gram import gather
from apet.methods.base import Kept
from apet.methods.decoder import DecoderMethod
from apet.view import View


@dataclass(frozen=True, kw_only=True)
class FastV(DecoderMethod):
    name: ClassVar[str] = "fastv"
    layers: ClassVar[tuple[tuple[int, ...], ...]] = ((2,),)

    def shares(self, free: float, budget: float) -> Sequence[float]:
        return (free,)

    def select(self, view: View) -> Kept:
        assert view.decoder is not None
        assert view.decoder.before is not None
        places = most(attended_by_last(view, view.decoder.before), view.keep)
        return Kept(gather(view.tokens, places), places)

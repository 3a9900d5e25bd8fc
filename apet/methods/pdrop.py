"""PyramidDrop: in stages, keep the visual tokens that the end of the instruction attends to.

Keeps the tokens to which the last token of the prompt attends most, by the weights of the layer
that runs next, averaged over its heads: redundancy grows with depth (Xing et al., 2024). Nothing is
merged.

Acts at decoder layers 8, 16 and 24 of 32, where lambda, lambda^2 and lambda^3 of all tokens are
left. The paper's lambda of 0.5 averages to 270 of 576; here lambda is solved for. [8, 16, 24]
cannot reach small budgets: for these the sites are at [2, 8, 16], as the author advises for such
tables (lambda 0.253 at the first for 192; 0.420 and 0.192 at the second for 128 and 64), and below
that as in `apet.methods.decoder_method`. Counts are rounded; the code truncates them.

The code renumbers positions after each stage and ranks by the renumbered ones. Here kept tokens
keep theirs, so later stages can rank differently. Heads that share keys, which the code does not
have, all count.

Needs attention weights: one query of one layer per stage.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from apet.attention.recomputed_weights import attention_of_last_token, most_attended
from apet.core.gram import gather
from apet.methods.base import Kept
from apet.methods.decoder_method import DecoderMethod
from apet.view import View


@dataclass(frozen=True, kw_only=True)
class PDrop(DecoderMethod):
    name: ClassVar[str] = "pdrop"
    layers: ClassVar[tuple[tuple[int, ...], ...]] = ((8, 16, 24), (2, 8, 16))
    earliest: ClassVar[int] = 0

    def shares(self, free: float, budget: float) -> Sequence[float]:
        return (free, free**2, free**3)

    def select(self, view: View) -> Kept:
        assert view.decoder is not None
        attention = attention_of_last_token(view, view.decoder.next_layer)
        indices = most_attended(attention, view.keep)
        return Kept(gather(view.tokens, indices), indices)

"""FastV: after the second layer, keep the visual tokens that the next token attends to.

Keeps the tokens to which the last token of the prompt, which predicts the answer, attends most:
deep layers hardly attend to the others (Chen et al., 2024, "An image is worth 1/2 tokens after
layer 2"). The weights are those of layer K - 1, averaged over its heads. Nothing is merged, and
kept tokens keep their positions.

Acts once, at decoder layer K = 2. The paper's other number, R (50 %, 75 % or 90 % dropped there),
follows from the budget: (D B - K N) / (D - K) of N tokens are kept, 166, 98 and 30 of 576 for 192,
128 and 64. A budget that leaves none moves K, see `apet.methods.decoder_method`. For another K give
a schedule: `schedule="3=82"`.

Needs attention weights: one query of one layer.
"""

from dataclasses import dataclass
from typing import ClassVar

from apet.attention.recomputed_weights import attention_of_last_token, most_attended
from apet.core.gram import gather
from apet.methods.base import Kept
from apet.methods.decoder_method import DecoderMethod
from apet.view import View


@dataclass(frozen=True, kw_only=True)
class FastV(DecoderMethod):
    name: ClassVar[str] = "fastv"
    layers: ClassVar[tuple[tuple[int, ...], ...]] = ((2,),)

    def select(self, view: View) -> Kept:
        assert view.decoder is not None
        assert view.decoder.previous_layer is not None
        attention = attention_of_last_token(view, view.decoder.previous_layer)
        indices = most_attended(attention, view.keep)
        return Kept(gather(view.tokens, indices), indices)

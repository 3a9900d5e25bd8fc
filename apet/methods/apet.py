"""ApET: keep the tokens that a small basis explains worst, merge the rest.

See `apet.core.compression`. Acts at the encoder and in the middle of the decoder, on tokens alone,
without attention weights.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from apet.core.compression import Sampling, Variant, compress_batches
from apet.methods.base import Kept, Method
from apet.view import View


@dataclass(frozen=True, kw_only=True)
class ApET(Method):
    name: ClassVar[str] = "apet"

    basis: int = 10
    sampling: Sampling = "fps"
    merge: bool = True
    seed: int = 0  # for sampling="random"
    variant: Variant = "paper"

    def select(self, view: View) -> Kept:
        basis, variant = min(self.basis, view.keep), self.variant
        if variant == "release":
            # The release needs a slot beside its basis. A single token is kept as in the paper.
            if view.keep > 1:
                basis = min(self.basis, view.keep - 1)
            else:
                basis, variant = 1, "paper"
        (kept,) = self._compress([view], [basis], variant)
        return kept

    def select_batches(self, views: Sequence[View]) -> list[Kept]:
        overridden = type(self).select is not ApET.select
        if overridden or len(views) == 1 or self.variant == "release":
            return super().select_batches(views)
        return self._compress(views, [min(self.basis, view.keep) for view in views], "paper")

    def _compress(
        self, views: Sequence[View], bases: Sequence[int], variant: Variant
    ) -> list[Kept]:
        results = compress_batches(
            [view.tokens for view in views],
            [view.keep for view in views],
            bases,
            self.sampling,
            self.merge,
            self.seed,
            variant=variant,
            check=False,  # would wait for the device inside the model's layers
        )
        return [Kept(result.tokens, result.index) for result in results]

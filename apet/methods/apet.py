"""ApET: keep what a small basis cannot explain, merge the rest. See `apet.compression`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from apet.compression import Sampling, Variant, compress
from apet.methods.base import Kept, Method
from apet.view import View


@dataclass(frozen=True, kw_only=True)
class ApET(Method):
    """At the encoder and in the middle of the decoder, by the tokens alone; no attention weights."""

    name: ClassVar[str] = "apet"

    basis: int = 10
    sampling: Sampling = "fps"
    merge: bool = True
    seed: int = 0  # for sampling="random"
    variant: Variant = "paper"

    def select(self, view: View) -> Kept:
        out = compress(
            view.tokens,
            view.keep,
            min(self.basis, view.keep),
            self.sampling,
            self.merge,
            self.seed,
            variant=self.variant,
        )
        return Kept(out.tokens, out.index)

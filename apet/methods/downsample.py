"""Downsample: average pooling to a coarser grid, the cheapest way to see the whole picture with fewer tokens.

The picture is cut into exactly K regions (`apet.core.regions`: 8 x 8 of 3 x 3 for 64 of 576); each becomes the mean of its
tokens, at the place of the token in its middle. VTC-Bench found that showing a model a smaller picture beats most
methods; this is the same for models whose encoder has one resolution. Acts once, at the encoder's output, with the
whole budget, a control for what enters the decoder; before the projector where the family compresses there, as in
DeCo: the projector then sees a coarse patch, as it would of a small picture, instead of the decoder seeing a mean of
embeddings, and ApET's merging, which acts in the same place, differs by its choice alone.
(In the decoder, where a schedule may place it, it pools neighbours in order.) No options of its own, no attention
weights.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from apet.core.merge import averages
from apet.core.regions import partition
from apet.methods.base import Kept, Method
from apet.view import View


@dataclass(frozen=True, kw_only=True)
class Downsample(Method):
    """At the encoder, the mean of each region."""

    name: ClassVar[str] = "downsample"
    encoder_only: ClassVar[bool] = True

    def select(self, view: View) -> Kept:
        region, centres = (part.to(view.tokens.device) for part in partition(*view.grid, view.keep))
        groups, count, _ = view.tokens.shape
        means = averages(view.tokens.float(), region.expand(groups, count), view.keep)
        return Kept(means.to(view.tokens.dtype), centres.expand(groups, -1))

"""Downsample: average pooling to a coarser grid, the cheapest way to see all of a picture.

The picture is divided into exactly K regions (`apet.core.regions`: 8 x 8 of 3 x 3 for 64 of 576).
Each region becomes the mean of its tokens, at the place of its central token. VTC-Bench found that
showing a model a smaller picture beats most methods; this is the same for models whose encoder has
one resolution.

Acts once, at the encoder's output, with the whole budget: a control for the decoder's input. Where
the family compresses before its projector, so does this method, as in DeCo: the projector then sees
coarse patches, as of a small picture, instead of the decoder seeing means of embeddings. ApET
merges at the same site, so only the choice of tokens differs. In the decoder, where a schedule may
place it, it pools neighbours in order. No options of its own, no attention weights.
"""

from dataclasses import dataclass
from typing import ClassVar

from apet.core.merge import slot_means
from apet.core.regions import partition
from apet.device import copy_async
from apet.methods.base import Kept, Method
from apet.view import View


@dataclass(frozen=True, kw_only=True)
class Downsample(Method):
    name: ClassVar[str] = "downsample"
    encoder_only: ClassVar[bool] = True

    def select(self, view: View) -> Kept:
        device, regions = view.tokens.device, partition(*view.grid, view.keep)
        region, centres = (copy_async(index, device) for index in regions)
        groups, count, _ = view.tokens.shape
        means = slot_means(view.tokens.float(), region.expand(groups, count), view.keep)
        return Kept(means.to(view.tokens.dtype), centres.expand(groups, -1))

"""Uniform: keep a regular grid of tokens, whatever the picture shows.

The picture is divided into exactly K regions of nearly equal size (`apet.core.regions`). The
central token of each stays unchanged, and nothing is merged. Acts once, at the encoder's output,
with the whole budget: a control for the decoder's input. A schedule may also place it in the
decoder, where a medium's tokens no longer form a picture: there it thins them evenly in their
order. No options of its own, no attention weights.
"""

from dataclasses import dataclass
from typing import ClassVar

from apet.core.gram import gather
from apet.core.regions import partition
from apet.device import copy_async
from apet.methods.base import Kept, Method
from apet.view import View


@dataclass(frozen=True, kw_only=True)
class Uniform(Method):
    name: ClassVar[str] = "uniform"
    encoder_only: ClassVar[bool] = True

    def select(self, view: View) -> Kept:
        _, centres = partition(*view.grid, view.keep)
        indices = copy_async(centres, view.tokens.device).expand(len(view.tokens), -1)
        return Kept(gather(view.tokens, indices), indices)

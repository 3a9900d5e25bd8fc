"""Uniform: a grid of tokens over the picture, whatever it shows.

The picture is cut into exactly K regions of nearly equal size (`apet.core.regions`); the token in the middle of each stays
as it is, and none is merged. Acts once, at the encoder's output, with the whole budget: a control for what enters
the decoder. (A schedule may place it in the decoder too, where a medium's tokens have no picture any more: there it
thins them evenly in their order.) No options of its own, no attention weights.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from apet.core.gram import gather
from apet.core.regions import partition
from apet.methods.base import Kept, Method
from apet.view import View


@dataclass(frozen=True, kw_only=True)
class Uniform(Method):
    """At the encoder, evenly over the picture."""

    name: ClassVar[str] = "uniform"
    encoder_only: ClassVar[bool] = True

    def select(self, view: View) -> Kept:
        _, centres = partition(*view.grid, view.keep)
        places = centres.to(view.tokens.device).expand(len(view.tokens), -1)
        return Kept(gather(view.tokens, places), places)

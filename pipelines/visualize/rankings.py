"""By what tokens could be ranked: the attention that they receive, and what a basis cannot say of them.

Each number is what a method would choose by if it chose there, measured where nothing has been dropped before.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from apet import attach
from apet.attention.weights import attended_by_last
from apet.core.basis import SAMPLING
from apet.core.compression import compress
from apet.core.gram import Gram
from apet.methods.apet import ApET
from apet.methods.base import Kept, Method
from apet.view import View
from pipelines.visualize.seen import Eye, Prompt

FASTV = 2  # FastV chooses at the entry of this layer, by the attention of the one before


@dataclass(frozen=True)
class Ranking:
    name: str
    like: str  # whose it is, in short
    meaning: str
    values: NDArray[np.float64]  # (tokens,) NaN for those that are out of it
    apart: str = ""  # what these are


@dataclass(frozen=True, kw_only=True)
class Measure(Method):
    """Measures the tokens that it is shown; which of them it keeps is of no interest."""

    found: list[tuple[Tensor, Tensor]] = field(
        default_factory=list, compare=False
    )  # columns and values, (G, N) each

    def select(self, view: View) -> Kept:
        self.found.append((view.columns, self.measure(view)))
        places = torch.arange(view.keep, device=view.tokens.device).expand(len(view.tokens), -1)
        return Kept(view.tokens[:, : view.keep], places)

    @abstractmethod
    def measure(self, view: View) -> Tensor:
        """A number for each token: (G, N)."""


class TowerAttention(Measure):
    name: ClassVar[str] = "tower attention"
    needs_tower: ClassVar[bool] = True

    def measure(self, view: View) -> Tensor:
        assert view.tower is not None
        return view.tower.received


class DecoderAttention(Measure):
    name: ClassVar[str] = "decoder attention"
    needs_attention: ClassVar[bool] = True

    def measure(self, view: View) -> Tensor:
        assert view.decoder is not None
        assert view.decoder.before is not None
        return attended_by_last(view, view.decoder.before)


@dataclass(frozen=True, kw_only=True)
class Error(Measure):
    name: ClassVar[str] = "approximation error"

    by: ApET

    def measure(self, view: View) -> Tensor:
        size, sampling, seed = min(self.by.basis, view.keep), self.by.sampling, self.by.seed
        error = compress(view.tokens, view.keep, size, sampling, merge=False, seed=seed).error
        return error.scatter(1, SAMPLING[sampling](Gram(view.tokens), size, seed), torch.nan)


def rankings(eye: Eye, prompt: Prompt, by: ApET) -> Iterator[Ranking | str]:
    """Attention in the tower and in the decoder, and the error as ApET with these options has it.

    In the place of what a model does not have, why not.
    """
    layer = min(max(FASTV, eye.family.first_decoder_site), len(eye.family.layers) - 1)
    half = "encoder=50%"
    measures: list[tuple[Measure, str, str, str]] = [
        (
            TowerAttention(schedule=half),
            "as VisionZip ranks",
            "what the vision tower's CLS token attends to in the layer whose output the model uses, or, where there is"
            " no CLS, what each token receives from all others",
            "",
        ),
        (
            DecoderAttention(schedule=f"{layer}=50%"),
            "as FastV ranks",
            f"what the prompt's last token attends to in the decoder's layer {layer - 1}, counted from 0",
            "",
        ),
        (
            Error(schedule=half, by=by),
            "as ApET ranks",
            f"what a basis of {by.basis} tokens cannot say of each other token; the basis itself is always kept",
            "the basis, always kept",
        ),
    ]
    for measure, like, meaning, apart in measures:
        try:
            yield Ranking(measure.name, like, meaning, _measured(eye, prompt, measure), apart)
        except ValueError as error:
            yield f"{measure.name} is left out: {error}"


@torch.inference_mode()
def _measured(eye: Eye, prompt: Prompt, measure: Measure) -> NDArray[np.float64]:
    with attach(eye.model, measure):
        eye.model(**prompt.inputs)
    whole = torch.full(prompt.inputs["input_ids"].shape[1:], torch.nan, dtype=torch.float64)
    for columns, values in measure.found:
        whole[columns.cpu()] = values.double().cpu()
    return whole[torch.cat([shown.columns for shown in prompt.shown])].numpy()

"""Scores by which methods rank visual tokens: attention received, and the approximation error.

Each score is measured where a method that uses it would choose, before any token is dropped.
"""

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from apet import attach
from apet.attention.recomputed_weights import attention_of_last_token
from apet.core.basis import SAMPLING
from apet.core.compression import compress
from apet.core.gram import Gram
from apet.methods.apet import ApET
from apet.methods.base import Kept, Method
from apet.view import View
from pipelines.visualize.model_probe import ModelProbe, Prompt

FASTV_LAYER = 2  # FastV chooses at the entry of this layer, by the attention of the one before


@dataclass(frozen=True, kw_only=True)
class Recorder(Method):
    """Records a score of the tokens it sees; its own choice of tokens is irrelevant."""

    used_by: str
    meaning: str
    excluded: str = ""  # why tokens are not ranked
    recorded: list[tuple[Tensor, Tensor]] = field(default_factory=list, compare=False)
    """Columns and scores, (G, N) each, one pair per call."""

    def select(self, view: View) -> Kept:
        self.recorded.append((view.columns, self.score(view)))
        first = torch.arange(view.keep, device=view.tokens.device).expand(len(view.tokens), -1)
        return Kept(view.tokens[:, : view.keep], first)

    @abstractmethod
    def score(self, view: View) -> Tensor:
        """A number for each token: (G, N)."""


class TowerAttention(Recorder):
    name: ClassVar[str] = "tower attention"
    needs_tower: ClassVar[bool] = True

    def score(self, view: View) -> Tensor:
        assert view.tower is not None
        return view.tower.received


class DecoderAttention(Recorder):
    name: ClassVar[str] = "decoder attention"
    needs_attention: ClassVar[bool] = True

    def score(self, view: View) -> Tensor:
        assert view.decoder is not None
        assert view.decoder.previous_layer is not None
        return attention_of_last_token(view, view.decoder.previous_layer)


@dataclass(frozen=True, kw_only=True)
class ApproximationError(Recorder):
    name: ClassVar[str] = "approximation error"

    options: ApET

    def score(self, view: View) -> Tensor:
        apet = self.options
        size, sampling, seed = min(apet.basis, view.keep), apet.sampling, apet.seed
        error = compress(view.tokens, view.keep, size, sampling, merge=False, seed=seed).error
        return error.scatter(1, SAMPLING[sampling](Gram(view.tokens), size, seed), torch.nan)


def token_scores(
    probe: ModelProbe, prompt: Prompt, apet: ApET, warn: Callable[[str], None]
) -> list[tuple[Recorder, NDArray[np.float64]]]:
    """Attention in the tower and in the decoder, and the error under these ApET options.

    A score has a number per visual token, (visual_tokens,), NaN for tokens that are not ranked. A
    score that the model does not have is omitted, with a warning that says why.
    """
    family = probe.family
    layer = min(max(FASTV_LAYER, family.first_decoder_site), len(family.layers) - 1)
    half = "encoder=50%"
    tower = TowerAttention(
        schedule=half,
        used_by="as VisionZip ranks",
        meaning="attention from the vision tower's CLS token in the layer whose output the model"
        " uses or, without a CLS token, attention received from all other tokens",
    )
    decoder = DecoderAttention(
        schedule=f"{layer}=50%",
        used_by="as FastV ranks",
        meaning=f"attention from the prompt's last token in the decoder's layer {layer - 1},"
        " counted from 0",
    )
    error = ApproximationError(
        schedule=half,
        options=apet,
        used_by="as ApET ranks",
        meaning=f"the part of each token that a basis of {apet.basis} tokens cannot express; the"
        " basis itself is always kept",
        excluded="the basis, always kept",
    )
    scores: list[tuple[Recorder, NDArray[np.float64]]] = []
    for recorder in (tower, decoder, error):
        try:
            scores.append((recorder, _recorded(probe, prompt, recorder)))
        except ValueError as problem:
            warn(f"{recorder.name} is omitted: {problem}")
    return scores


@torch.inference_mode()
def _recorded(probe: ModelProbe, prompt: Prompt, recorder: Recorder) -> NDArray[np.float64]:
    """The scores of all visual tokens, in the order of the prompt's groups."""
    with attach(probe.model, recorder):
        probe.model(**prompt.inputs)
    by_column = torch.full(prompt.inputs["input_ids"].shape[1:], torch.nan, dtype=torch.float64)
    for columns, scores in recorder.recorded:
        by_column[columns.cpu()] = scores.double().cpu()
    return by_column[torch.cat([group.columns for group in prompt.groups])].numpy()

"""What a method sees at a site: groups of tokens of one size, and what else it may ask for."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor, nn

from apet.schedule import Stage


class LayerInput(NamedTuple):
    """What a decoder layer was called with."""

    layer: nn.Module
    hidden: Tensor  # (B, S, D)
    cos: Tensor  # rotary embeddings of the S positions, as the model hands them to its layers
    sin: Tensor


class Sequence(NamedTuple):
    """A padded batch of sequences, and which of their tokens are what."""

    hidden: Tensor  # (B, S, D)
    valid: Tensor  # (B, S) bool: not padding
    visual: Tensor  # (B, S) bool

    @property
    def last(self) -> Tensor:
        """The column of each row's last token: (B,)."""
        place = torch.arange(self.valid.shape[1], device=self.valid.device)
        return torch.where(self.valid, place, -1).amax(dim=1)

    @property
    def instruction(self) -> Tensor:
        """(B, S) bool: the text after the row's last visual token, or all of its text if nothing follows."""
        place = torch.arange(self.valid.shape[1], device=self.valid.device)
        text = self.valid & ~self.visual
        after = text & (place > torch.where(self.visual, place, -1).amax(dim=1, keepdim=True))
        return torch.where(after.any(dim=1, keepdim=True), after, text)


@dataclass(frozen=True)
class DecoderSite:
    """The entry of a decoder layer, before anything is dropped there."""

    sequence: Sequence
    here: LayerInput  # the layer that is about to run
    before: (
        LayerInput | None
    )  # the one that has just run; for methods that need attention, and not at layer 0
    norm: nn.Module  # the decoder's final norm
    entered: Sequence | None  # what the decoder's first layer saw; for methods that need attention
    source: Tensor | None  # (B, S) column of `entered` that each column of `sequence` was


class TowerView(NamedTuple):
    """What the vision tower's last layer attended to."""

    received: Tensor  # (G, N) attention of CLS, or of all tokens where there is none
    keys: Tensor  # (G, N, d) the mean over the heads
    cls: Tensor | None  # (G, D) the CLS token of the group's tile, where there is one


@dataclass(frozen=True)
class View:
    """G groups of N tokens, of which each is to keep `keep`."""

    stage: Stage
    layer: int
    tokens: Tensor  # (G, N, D)
    keep: int
    grid: tuple[
        int, int
    ]  # rows x columns of the picture that the groups are, in reading order; (1, N) in the decoder
    seeds: tuple[int, ...]  # (G,) the same number for the groups of a row
    rows: Tensor  # (G, 1) the row of the batch that each group belongs to
    columns: Tensor  # (G, N) where its tokens stand in the sequence; inside the tower, in the tile
    decoder: DecoderSite | None = None
    tower: TowerView | None = None  # at the encoder, for methods that need it
    keys: Tensor | None = (
        None  # (G, N, d) inside the tower and at its output: keys of the layer that ran last
    )
    memory: dict[str, Tensor] = field(
        default_factory=dict
    )  # (G, N) each: what the method left there at the last site

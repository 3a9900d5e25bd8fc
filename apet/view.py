"""The input of a method at a site: groups of tokens of one size, and further data."""

from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor, nn

from apet.schedule import Stage


class LayerInput(NamedTuple):
    """The input of a decoder layer."""

    layer: nn.Module
    hidden: Tensor  # (B, S, D)
    cos: Tensor  # rotary embeddings of the S positions, as the model passes them to its layers
    sin: Tensor


class Sequence(NamedTuple):
    """A padded batch of sequences with the kinds of its tokens."""

    hidden: Tensor  # (B, S, D)
    valid: Tensor  # (B, S) bool: not padding
    visual: Tensor  # (B, S) bool

    @property
    def last(self) -> Tensor:
        """The column of each row's last token: (B,)."""
        columns = torch.arange(self.valid.shape[1], device=self.valid.device)
        return torch.where(self.valid, columns, -1).amax(dim=1)

    @property
    def instruction(self) -> Tensor:
        """(B, S) bool: text after the row's last visual token; all its text if none follows."""
        columns = torch.arange(self.valid.shape[1], device=self.valid.device)
        text = self.valid & ~self.visual
        last_visual = torch.where(self.visual, columns, -1).amax(dim=1, keepdim=True)
        following = text & (columns > last_visual)
        return torch.where(following.any(dim=1, keepdim=True), following, text)


@dataclass(frozen=True)
class DecoderSite:
    """The entry of a decoder layer, before anything is dropped there.

    `previous_layer`, `entry_sequence` and `entry_columns` are for methods that need attention.
    """

    sequence: Sequence
    next_layer: LayerInput  # the layer that is about to run
    previous_layer: LayerInput | None  # the layer that has just run; None at layer 0
    norm: nn.Module  # the decoder's final norm
    entry_sequence: Sequence | None  # the input of the decoder's first layer
    entry_columns: Tensor | None  # (B, S) column of `entry_sequence` for each column of `sequence`


class TowerView(NamedTuple):
    """The attention of the vision tower's last layer."""

    received: Tensor  # (G, N) attention of CLS, or of all tokens where there is none
    keys: Tensor  # (G, N, d) the mean over the heads
    cls: Tensor | None  # (G, D) the CLS token of the group's tile, where there is one


@dataclass(frozen=True)
class View:
    """G groups of N tokens each, to be reduced to `keep` tokens each."""

    stage: Stage
    layer: int
    tokens: Tensor  # (G, N, D)
    keep: int
    # Rows x columns of the groups' picture, in reading order; (1, N) in the decoder.
    grid: tuple[int, int]
    seeds: tuple[int, ...]  # (G,) the same number for the groups of a row
    row_numbers: tuple[int, ...]  # (G,) the row of the batch that each group belongs to
    rows: Tensor  # (G, 1) the same on the device
    columns: Tensor  # (G, N) the tokens' columns in the sequence; inside the tower, in the tile
    decoder: DecoderSite | None = None
    tower: TowerView | None = None  # at the encoder, for methods that need it
    # (G, N, d) inside the tower and at its output: keys of the layer that ran last
    keys: Tensor | None = None
    # (G, N) each: what the method stored at its last site
    memory: dict[str, Tensor] = field(default_factory=dict)

"""The contract between a vision tower's hooks and the attachment, and the record that they fill.

Hooks see the attachment as a `TowerSession` (implemented in `apet/attach/vision_hooks.py`); the
encoder's site sees one call of a tower as a `TowerCall`.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from apet.stopwatch import Stopwatch
from apet.view import View


class TowerCall(Protocol):
    """One call of a tower."""

    cells: Tensor | None  # tokens that remain after sites inside the tower; None: all
    memory: dict[str, Tensor]  # what the method left at its last site

    def patches(self, name: str) -> Tensor | None:
        """The values (P, ...) under this name, one for each token that the tower can make."""


@dataclass
class VisionRecord:
    """Outputs of the vision towers for the media of a prompt."""

    grids: list[list[list[int]]] = field(default_factory=list)  # by call: (t, h, w) of each medium
    calls: list[TowerCall] = field(default_factory=list)
    stopwatch: Stopwatch | None = None  # time spent choosing tokens
    # Features that were withheld from the projector: (tiles, T, D) by call. Their tokens are
    # numbered from `first` on, and `labels` (B, S) is the number that each column holds, or -1.
    features: list[Tensor] = field(default_factory=list)
    first: int = 0
    labels: Tensor = field(default_factory=lambda: torch.empty(0))

    def latest(self, calls: int) -> VisionRecord:
        """The record of the last `calls` calls alone."""
        earlier = sum(features.shape[0] * features.shape[1] for features in self.features[:-calls])
        return VisionRecord(
            self.grids[-calls:],
            self.calls[-calls:],
            self.stopwatch,
            self.features[-calls:],
            self.first + earlier,
        )

    @property
    def count(self) -> int:
        """Number of features that were withheld."""
        return sum(features.shape[0] * features.shape[1] for features in self.features)

    @property
    def complete(self) -> bool:
        """Whether no site inside a tower has dropped tokens."""
        return all(call.cells is None for call in self.calls)

    def patches(self, name: str, cells: Tensor) -> Tensor | None:
        """The values under this name at `cells` of all calls' tokens; None if a call has none."""
        values = [value for call in self.calls if (value := call.patches(name)) is not None]
        if not values or len(values) < len(self.calls):
            return None
        return torch.cat(values).to(cells.device)[cells]


class TowerMethod(Protocol):
    """The part of a compression method that concerns towers."""

    @property
    def needs_tower(self) -> bool:
        """Whether the method reads the attention of the tower's last layer."""

    @property
    def inside_tower(self) -> bool:
        """Whether the method drops tokens between the tower's layers, and reads keys there."""

    def select(self, view: View) -> tuple[Tensor, Tensor]:
        """The tokens (G, K, D) that stay and their positions (G, K) in the view."""


class TowerSession(Protocol):
    """The attachment as a tower's hooks see it."""

    record: VisionRecord
    inside: bool  # some site is inside the tower

    @property
    def method(self) -> TowerMethod: ...

    @property
    def asks_for_shares(self) -> bool:
        """Whether the sites inside the tower keep shares, not counts."""

    def sites(self, visual_tokens: int, layers: int) -> dict[int, int]:
        """How many of a medium's tokens stay, by the layer at whose entry others are dropped."""

    def timed(self, hidden: Tensor) -> AbstractContextManager[None]:
        """Adds the time spent inside to the record."""

"""What attaching must know of a model family: where its parts are, and where a batch's visual tokens stand.

A family describes, it does not compute. `Medium` and `Group` lie on the host: which columns of the prompt hold
which visual tokens follows from the processor's output alone, before the model has run.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from apet.shortened import Shortened
from apet.stopwatch import Stopwatch
from apet.towers.packed_tower import PackedRun, PackedTower
from apet.towers.tile_tower import TileRun, TileTower


@dataclass(frozen=True)
class Group:
    """Tokens that are compressed together at the encoder: an image, a crop, a frame."""

    columns: Tensor  # (N,) int64, ascending: where the tokens stand in the padded prompt
    grid: tuple[int, int]  # rows x columns of the picture; N = their product, in reading order
    cells: Tensor | None = (
        None  # (N,) which of the towers' tokens they are, in the order of their calls
    )


@dataclass
class VisionRecord:
    """What the vision side showed while it worked on the media of a prompt."""

    grids: list[list[list[int]]] = field(
        default_factory=list
    )  # of each call of the tower: (t, h, w) of each medium
    runs: list[TileRun | PackedRun] = field(default_factory=list)  # each call of a tower
    stopwatch: Stopwatch | None = None  # time spent choosing
    features: list[Tensor] = field(
        default_factory=list
    )  # withheld from the projector: (tiles, T, D) of each call
    first: int = 0  # the number of their first token
    labels: Tensor = field(
        default_factory=lambda: torch.empty(0)
    )  # (B, S) which of their T x tiles a column holds; -1

    def latest(self, calls: int) -> VisionRecord:
        """What the last so many calls showed."""
        before = sum(features.shape[0] * features.shape[1] for features in self.features[:-calls])
        return VisionRecord(
            self.grids[-calls:],
            self.runs[-calls:],
            self.stopwatch,
            self.features[-calls:],
            self.first + before,
        )

    def patches(self, name: str, cells: Tensor) -> Tensor | None:
        """What the towers' runs have under a name for each of their tokens, (P, ...) in all, at `cells` of them."""
        found = [run.patches(name) for run in self.runs]
        whole = [one for one in found if one is not None]
        return (
            torch.cat(whole).to(cells.device)[cells] if whole and len(whole) == len(found) else None
        )


@dataclass(frozen=True)
class Medium:
    """One image or video of a row: what a budget is for, and the group of the decoder's sites."""

    groups: tuple[Group, ...]

    @property
    def columns(self) -> Tensor:
        return torch.cat([group.columns for group in self.groups])

    def place(self) -> int:
        """Where it begins."""
        return int(self.groups[0].columns[0])


def runs(here: Tensor) -> list[Tensor]:
    """The columns of each unbroken run of true values in (S,)."""
    columns = here.nonzero()[:, 0]
    breaks = (columns.diff() > 1).nonzero()[:, 0] + 1
    return list(columns.tensor_split(breaks)) if len(columns) else []


class Family(ABC):
    """One loaded model, described."""

    encoder_only: ClassVar[bool] = (
        False  # budgets are spent at the encoder, none inside the decoder
    )
    before_projector: ClassVar[bool] = (
        False  # the encoder's site is the projector's input, not the decoder's
    )
    keeps_positions: ClassVar[bool] = (
        False  # survivors of the encoder's site keep their position; else renumbered
    )
    per_token: ClassVar[
        tuple[str, ...]
    ] = ()  # further inputs of the decoder that say something of each column, (B, S)
    first_decoder_site: int = 0  # layers before it must see all that entered the decoder

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model

    @property
    def core(self) -> Any:
        """The module that takes token ids and pixels and calls the decoder."""
        return self.model.model

    @property
    def decoder(self) -> Any:
        return self.core.language_model

    @property
    def layers(self) -> nn.ModuleList:
        return self.decoder.layers  # type: ignore[no-any-return]

    @property
    def projector(self) -> nn.Module:
        return self.core.multi_modal_projector  # type: ignore[no-any-return]

    def shorten(self, inputs: Mapping[str, Any], short: Shortened) -> dict[str, Any]:
        """Further inputs of the decoder that follow the sequence, without what was dropped."""
        return {}

    @property
    def tower(self) -> nn.Module:
        return self.core.vision_tower  # type: ignore[no-any-return]

    @property
    def towers(self) -> dict[nn.Module, TileTower] | dict[nn.Module, PackedTower]:
        """The vision towers that can have sites between their layers, and whose attention can be read if their tokens
        become the decoder's one by one."""
        return {}

    @property
    def tower_layers(self) -> int:
        """Layers of the tower between which a method's own schedule may drop tokens; 0: none."""
        towers = [tower for tower in self.towers.values() if isinstance(tower, TileTower)]
        return len(towers[0].layers) if towers and all(tower.tiles for tower in towers) else 0

    def visual(self, ids: Tensor) -> Tensor:
        """Which of a prompt's ids (B, S) are placeholders of visual tokens: bool."""
        config = self.model.config
        return torch.isin(
            ids, torch.tensor([config.image_token_id, getattr(config, "video_token_id", -1)])
        )

    @abstractmethod
    def media(self, ids: Tensor, embeds: Tensor, seen: VisionRecord) -> list[list[Medium]]:
        """The media of each row of a prompt: its `ids` (B, S), on the host, and what stands there at the entry of
        the decoder, `embeds` (B, S, D)."""

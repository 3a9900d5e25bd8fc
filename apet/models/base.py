"""The description of a model family: where its parts are, and where a batch's visual tokens stand.

A family describes and does not compute. `Medium` and `Group` lie on the host: which columns of the
prompt hold which visual tokens follows from the processor's output alone, before the model has run.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from apet.shortened_batch import ShortenedBatch
from apet.towers.qwen_tower import QwenTower
from apet.towers.tile_tower import TileTower
from apet.towers.vision_record import VisionRecord


@dataclass(frozen=True)
class Group:
    """Tokens that are compressed together at the encoder: an image, a crop, a frame.

    columns: (N,) int64, ascending: the tokens' columns in the padded prompt
    grid:    rows x columns of the picture; N = their product, in reading order
    cells:   (N,) the numbers of the tokens among those of all tower calls; None where unknown
    """

    columns: Tensor
    grid: tuple[int, int]
    cells: Tensor | None = None


@dataclass(frozen=True)
class Medium:
    """An image or video of a row: the unit of a budget, and the group at the decoder's sites."""

    groups: tuple[Group, ...]

    @property
    def columns(self) -> Tensor:
        return torch.cat([group.columns for group in self.groups])

    @property
    def size(self) -> int:
        """The number of its tokens."""
        return sum(len(group.columns) for group in self.groups)

    def first_column(self) -> int:
        return int(self.groups[0].columns[0])


def consecutive_columns(mask: Tensor) -> list[Tensor]:
    """The columns of each unbroken run of true values in (S,)."""
    columns = mask.nonzero()[:, 0]
    breaks = (columns.diff() > 1).nonzero()[:, 0] + 1
    return list(columns.tensor_split(breaks)) if len(columns) else []


class Family(ABC):
    """The description of a loaded model.

    encoder_only:       budgets are spent at the encoder, nothing is dropped inside the decoder
    before_projector:   the encoder's site is the projector's input, not the decoder's
    keeps_positions:    tokens kept at the encoder's site keep their position; else renumbered
    per_token:          further inputs of the decoder with a value for each column, (B, S)
    vision_types:       types of vision towers that the family covers; empty: all of its models'
    first_decoder_site: layers before it must see all tokens that entered the decoder
    """

    encoder_only: ClassVar[bool] = False
    before_projector: ClassVar[bool] = False
    keeps_positions: ClassVar[bool] = False
    per_token: ClassVar[tuple[str, ...]] = ()
    vision_types: ClassVar[tuple[str, ...]] = ()
    first_decoder_site: int = 0

    def __init__(self, model: PreTrainedModel) -> None:
        self.check_config(model.config)
        self.model = model

    @classmethod
    def check_config(cls, config: PreTrainedConfig) -> None:
        """Raise a ValueError for a config of the family's type that the family does not cover."""
        kind = config.vision_config.model_type
        if cls.vision_types and kind not in cls.vision_types:
            expected = " or ".join(map(repr, cls.vision_types))
            raise ValueError(f"not a supported vision tower: {kind!r}; expected {expected}")

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

    def shorten(self, inputs: Mapping[str, Any], short: ShortenedBatch) -> dict[str, Any]:
        """Further inputs of the decoder that follow the sequence, without the dropped tokens."""
        return {}

    @property
    def tower(self) -> nn.Module:
        return self.core.vision_tower  # type: ignore[no-any-return]

    @property
    def towers(self) -> dict[nn.Module, TileTower] | dict[nn.Module, QwenTower]:
        """The vision towers that can have sites between their layers.

        Their attention can be read if their tokens become the decoder's one by one.
        """
        return {}

    @property
    def tower_layers(self) -> int:
        """Layers of the tower between which a method's own schedule may drop tokens; 0: none."""
        towers = [tower for tower in self.towers.values() if isinstance(tower, TileTower)]
        return len(towers[0].layers) if towers and all(tower.tiles for tower in towers) else 0

    def visual(self, ids: Tensor) -> Tensor:
        """Which of a prompt's ids (B, S) are placeholders of visual tokens: bool."""
        config = self.model.config
        placeholders = config.image_token_id, getattr(config, "video_token_id", -1)
        return torch.isin(ids, torch.tensor(placeholders))

    def labels(self, ids: Tensor, count: int) -> Tensor | None:
        """The number of the feature in each column (B, S), -1 for text, if ids alone tell it.

        Otherwise the features carry their numbers to the decoder's input, where reading them waits
        for the vision tower.

        ids:   (B, S) of the prompt, on the host
        count: of the features that were withheld from the projector
        """
        return None

    def positions(self, inputs: Mapping[str, Tensor]) -> Tensor | None:
        """The position ids of a prompt that `generate` would compute row by row on the device.

        inputs: the processor's output for a batch, on the host; None: nothing to gain
        """
        return None

    @abstractmethod
    def media(self, ids: Tensor, embeds: Tensor, record: VisionRecord) -> list[list[Medium]]:
        """The media of each row of a prompt.

        ids:    (B, S) of the prompt, on the host
        embeds: (B, S, D) the input of the decoder
        """

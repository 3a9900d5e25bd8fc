"""LLaVA-1.5: one tile an image, CLIP's tokens without CLS, a projector of two layers.

Compressed before the projector, as in the authors' release: the projector is spared the dropped tokens, and CLIP's
space is where the paper measures errors. A group is the image. Survivors are renumbered, since the release builds a
shorter prompt in which gaps have no position. CLS does not enter the decoder; where a checkpoint lets it
(`vision_feature_select_strategy="full"`), it stays, outside the budget.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from apet.models.base import Family, Group, Medium, VisionRecord
from apet.towers.tile_tower import TileTower, clip_tower


class Llava(Family):
    before_projector = True

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__(model)
        kind = model.config.vision_config.model_type
        if kind not in ("clip_vision_model", "siglip_vision_model"):
            raise ValueError(
                f"this LLaVA sees through a {kind!r}; those with 'clip_vision_model' are supported"
            )

    @property
    def towers(self) -> dict[nn.Module, TileTower]:
        tower = clip_tower(self.tower, self.model.config.vision_feature_layer, tiles=1)
        keeps_cls = self.model.config.vision_feature_select_strategy == "full" and tower.prefix
        return (
            {} if keeps_cls else {self.tower: tower}
        )  # its tokens would not be the tower's patches

    def media(self, ids: Tensor, embeds: Tensor, seen: VisionRecord) -> list[list[Medium]]:
        size = seen.features[0].shape[1]
        side = int(size**0.5)
        rows: list[list[Medium]] = []
        for labels in seen.labels:
            columns = (labels >= 0).nonzero()[:, 0]
            starts = columns[labels[columns] % size == 0]
            if len(columns) != size * len(starts):
                raise ValueError(
                    f"a row holds {len(columns)} visual tokens, which is no whole number of images of {size}; give each"
                    " prompt whole (no prefill_chunk_size), as the processor made it"
                )
            tiles = (
                torch.arange(int(start) + size - side * side, int(start) + size) for start in starts
            )
            rows.append([Medium((Group(tile, (side, side), labels[tile]),)) for tile in tiles])
        return rows

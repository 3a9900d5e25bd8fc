"""LLaVA-1.5: one tile an image, CLIP's tokens without CLS, a projector of two layers.

Compressed before the projector, as in the authors' release: the projector is spared the dropped tokens, and CLIP's
space is where the paper measures errors. A group is the image. Survivors are renumbered, since the release builds a
shorter prompt in which gaps have no position. CLS does not enter the decoder; where a checkpoint lets it
(`vision_feature_select_strategy="full"`), it stays, outside the budget.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from apet.models.base import Family, Group, Medium, Seen
from apet.tower import TileTower, clip_tower


class Llava(Family):
    before_projector = True

    @property
    def towers(self) -> dict[nn.Module, TileTower]:
        return {self.tower: clip_tower(self.tower, self.model.config.vision_feature_layer, tiles=1)}

    def media(self, ids: Tensor, embeds: Tensor, seen: Seen) -> list[list[Medium]]:
        size = seen.features[0].shape[1]
        side = int(size**0.5)
        rows: list[list[Medium]] = []
        for labels in seen.labels:
            columns = (labels >= 0).nonzero()[:, 0]
            starts = columns[labels[columns] % size == 0]
            tiles = (torch.arange(int(start) + size - side * side, int(start) + size) for start in starts)
            rows.append([Medium((Group(tile, (side, side), labels[tile]),)) for tile in tiles])
        return rows

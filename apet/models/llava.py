"""LLaVA-1.5: one tile an image, CLIP's tokens without CLS, a projector of two layers.

Tokens are compressed before the projector, as in the authors' release: the projector does not
compute the dropped tokens, and CLIP's space is where the paper measures errors. A group is the
image. Kept tokens are renumbered, since the release builds a shorter prompt in which gaps have no
position. CLS does not enter the decoder; where a checkpoint lets it
(`vision_feature_select_strategy="full"`), it stays, outside the budget.
"""

import torch
from torch import Tensor, nn

from apet.models.base import Family, Group, Medium
from apet.towers.tile_tower import TileTower, clip_tower
from apet.towers.vision_record import VisionRecord


class Llava(Family):
    before_projector = True
    vision_types = ("clip_vision_model", "siglip_vision_model")

    @property
    def towers(self) -> dict[nn.Module, TileTower]:
        tower = clip_tower(self.tower, self.model.config.vision_feature_layer, tiles=1)
        if self.model.config.vision_feature_select_strategy == "full" and tower.prefix:
            return {}  # with CLS, the decoder's tokens are not the tower's patches
        return {self.tower: tower}

    def labels(self, ids: Tensor, count: int) -> Tensor | None:
        visual = self.visual(ids)
        if int(visual.sum()) != count:
            return None
        return torch.where(visual, (visual.flatten().cumsum(0) - 1).view(ids.shape), -1)

    def media(self, ids: Tensor, embeds: Tensor, record: VisionRecord) -> list[list[Medium]]:
        size = record.features[0].shape[1]
        side = int(size**0.5)
        row, column = (record.labels >= 0).nonzero(as_tuple=True)
        cells = record.labels[row, column]
        counts = (record.labels >= 0).sum(dim=1)
        whole = not bool((counts % size).any())
        if not whole or not bool((cells.view(-1, size) % size == torch.arange(size)).all()):
            broken = counts[counts % size > 0] if not whole else counts[counts > 0]
            raise ValueError(
                f"a row holds {int(broken[0])} visual tokens, which is not a whole number of"
                f" images of {size}; give each prompt whole (no prefill_chunk_size), as the"
                " processor made it"
            )
        pictures = (tokens.view(-1, size)[:, size - side * side :] for tokens in (column, cells))
        rows: list[list[Medium]] = [[] for _ in ids]
        for number, columns, cell in zip(row[::size].tolist(), *pictures, strict=True):
            rows[number].append(Medium((Group(columns, (side, side), cell),)))
        return rows

"""LLaVA-NeXT: a base tile and a grid of crops an image, padding cut away, a newline after each row of patches.

Compressed before the projector, as LLaVA-1.5 and as in the authors' release: the projector is spared the dropped
tokens. A group is a crop (the base tile is one, too), as in the release, which compresses tile by tile; of a crop at
the image's edge only what is left after unpadding, since the model never sees the rest. A budget is for the image: its
crops share it by their size. Survivors are renumbered, since the release builds a shorter prompt in which gaps have no
position. Newlines stay, outside the budget, as in the release; CLS does not enter the decoder.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from torch import Tensor, nn

from apet.models.base import Family, Group, Medium, VisionRecord
from apet.towers.tile_tower import TileTower, clip_tower


class LlavaNext(Family):
    before_projector = True

    @property
    def towers(self) -> dict[nn.Module, TileTower]:
        return {self.tower: clip_tower(self.tower, self.model.config.vision_feature_layer, tiles=0)}

    def media(self, ids: Tensor, embeds: Tensor, seen: VisionRecord) -> list[list[Medium]]:
        size = seen.features[0].shape[1]
        return [list(_images(labels, size)) for labels in seen.labels]


def _images(labels: Tensor, size: int) -> Iterator[Medium]:
    """The images of a row, whose columns hold these cells of tiles of `size`; -1 for text and newlines."""
    side = int(size**0.5)
    columns = (labels >= 0).nonzero()[:, 0]
    cells = labels[columns]
    # Only a base tile has all its cells in a row: those of a crop are interrupted by newlines.
    starts = (cells % size == 0).nonzero()[:, 0]
    starts = starts[starts + size <= len(cells)]
    last = starts + size - 1
    whole = (cells[last] - cells[starts] == size - 1) & (
        columns[last] - columns[starts] == size - 1
    )
    bounds = [*starts[whole].tolist(), len(cells)]
    if bounds[0]:
        raise ValueError(
            f"the prompt's {len(cells)} image placeholders do not begin with the {size} of an image's base tile;"
            " give input_ids as the processor made them"
        )
    for start, end in itertools.pairwise(bounds):
        groups = []
        tiles = cells[start:end] // size
        for tile in tiles.unique().tolist():
            inside = start + (tiles == tile).nonzero()[:, 0]
            cell = cells[inside] % size
            grid = len((cell // side).unique()), len((cell % side).unique())
            groups.append(Group(columns[inside], grid, cells[inside]))
        yield Medium(tuple(groups))

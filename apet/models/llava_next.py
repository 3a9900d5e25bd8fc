"""LLaVA-NeXT: a base tile and a grid of crops an image, without padding, a newline after each row.

Tokens are compressed before the projector, as for LLaVA-1.5 and as in the authors' release: the
projector does not compute the dropped tokens. A group is a crop (the base tile is one, too), as in
the release, which compresses tile by tile. Of a crop at the image's edge, only the part without
padding belongs to it, since the model never sees the rest. A budget is for the image: its crops
share it in proportion to their size. Kept tokens are renumbered, since the release builds a shorter
prompt in which gaps have no position. Newlines stay, outside the budget, as in the release; CLS
does not enter the decoder.
"""

from collections.abc import Iterator
from itertools import pairwise

from torch import Tensor, nn

from apet.models.base import Family, Group, Medium
from apet.towers.tile_tower import TileTower, clip_tower
from apet.towers.vision_record import VisionRecord


class LlavaNext(Family):
    before_projector = True

    @property
    def towers(self) -> dict[nn.Module, TileTower]:
        return {self.tower: clip_tower(self.tower, self.model.config.vision_feature_layer, tiles=0)}

    def media(self, ids: Tensor, embeds: Tensor, record: VisionRecord) -> list[list[Medium]]:
        size = record.features[0].shape[1]
        return [list(_images(labels, size)) for labels in record.labels]


def _images(labels: Tensor, size: int) -> Iterator[Medium]:
    """The images of a row, whose columns hold these cells of tiles of `size`; -1 for other text."""
    side = int(size**0.5)
    columns = (labels >= 0).nonzero()[:, 0]
    cells = labels[columns]
    # Only a base tile has all its cells side by side: those of a crop are interrupted by newlines.
    starts = (cells % size == 0).nonzero()[:, 0]
    starts = starts[starts + size <= len(cells)]
    ends = starts + size - 1
    is_base = (cells[ends] - cells[starts] == size - 1) & (
        columns[ends] - columns[starts] == size - 1
    )
    bounds = [*starts[is_base].tolist(), len(cells)]
    if bounds[0]:
        raise ValueError(
            f"the prompt's {len(cells)} image placeholders do not begin with the {size} of an"
            " image's base tile; give input_ids as the processor made them"
        )
    for start, end in pairwise(bounds):
        groups = []
        tiles = cells[start:end] // size
        for tile in tiles.unique().tolist():
            inside = start + (tiles == tile).nonzero()[:, 0]
            cell = cells[inside] % size
            grid = len((cell // side).unique()), len((cell % side).unique())
            groups.append(Group(columns[inside], grid, cells[inside]))
        yield Medium(tuple(groups))

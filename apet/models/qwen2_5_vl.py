"""Qwen2.5-VL: dynamic resolution, window attention in the encoder, a merger of 2 x 2 patches, M-RoPE; also videos.

Compressed after the merger, as in the authors' release: a visual token is what the merger makes of four patches, and
before it there is none to drop. A group is an image, or one step of a video's temporal grid, whose tokens are one
picture of two frames. Survivors keep their three-dimensional positions, as in the release: they say where in the
picture a token was, which renumbering would forget; decode steps go on behind the prompt's last position, as they do
in the unmodified model. There is no CLS token and no newline; the tokens around a picture are text, and stay.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from apet.models.base import Family, Group, Medium, VisionRecord
from apet.towers.packed_tower import PackedTower


class Qwen25VL(Family):
    keeps_positions = True

    @property
    def tower(self) -> nn.Module:
        return self.core.visual  # type: ignore[no-any-return]

    @property
    def projector(self) -> nn.Module:
        return self.core.visual.merger  # type: ignore[no-any-return]

    @property
    def towers(self) -> dict[nn.Module, PackedTower]:
        return {self.tower: PackedTower(self.core.visual, (self.projector,))}

    def media(self, ids: Tensor, embeds: Tensor, seen: VisionRecord) -> list[list[Medium]]:
        config = self.model.config
        merge = config.vision_config.spatial_merge_size
        calls = iter(seen.grids)  # of the images first, as everywhere in the model
        rows: list[list[Medium]] = [[] for _ in ids]
        first = 0  # of the tower's tokens, in the order of its calls
        for token, kind in ((config.image_token_id, "image"), (config.video_token_id, "video")):
            here = ids == token
            if not here.any():
                continue
            grids = [(t, h // merge, w // merge) for t, h, w in next(calls, [])]
            sizes = [t * h * w for t, h, w in grids]
            for row, which, columns in _deal(here, sizes, kind):
                steps, *grid = grids[which]
                cells = torch.arange(first + sum(sizes[:which]), first + sum(sizes[: which + 1]))
                rows[row].append(
                    Medium(
                        tuple(
                            Group(step, (grid[0], grid[1]), cell)
                            for step, cell in zip(
                                columns.view(steps, -1), cells.view(steps, -1), strict=True
                            )
                        )
                    )
                )
            first += sum(sizes)
        return [sorted(media, key=Medium.place) for media in rows]


def _deal(here: Tensor, sizes: Sequence[int], kind: str) -> Iterator[tuple[int, int, Tensor]]:
    """Each row's columns of each medium: (row, which medium, columns).

    here:  (B, S) bool, placeholders of one kind
    sizes: of the media of all rows. With beams, `generate` repeats rows, each after itself, but not what was encoded.
    """
    total = int(here.sum())
    copies = total // max(1, sum(sizes))
    fits = copies > 0 and copies * sum(sizes) == total and len(here) % copies == 0
    which = 0
    for row in range(0, len(here), copies) if fits else ():
        columns = here[row].nonzero()[:, 0]
        while len(columns) and which < len(sizes) and sizes[which] <= len(columns):
            for copy in range(row, row + copies):
                yield copy, which, columns[: sizes[which]]
            columns = columns[sizes[which] :]
            which += 1
        if len(columns) or not (here[row : row + copies] == here[row]).all():
            break
    if not fits or which < len(sizes):
        raise ValueError(
            f"the prompt's {total} {kind} placeholders ({here.sum(1).tolist()} a row) are not those of the {kind}s that"
            f" were encoded with the method attached, which have {list(sizes)} tokens; give input_ids and pixels as"
            " the processor made them"
        )

"""Qwen2.5-VL: dynamic resolution, window attention, a merger of 2 x 2 patches, M-RoPE; also videos.

Tokens are compressed after the merger, as in the authors' release: the merger makes a visual token
of four patches, and before it there is none to drop. A group is an image, or one step of a video's
temporal grid, whose tokens are one picture of two frames. Kept tokens keep their three-dimensional
positions, as in the release: positions say where in the picture a token was, which renumbering
would lose; decode steps continue after the prompt's last position, as in the unmodified model.
There is no CLS token and no newline; the tokens around a picture are text, and stay.
"""

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from apet.models.base import Family, Group, Medium
from apet.towers.qwen_tower import QwenTower
from apet.towers.vision_record import VisionRecord
from apet.transformers_api import rotary_positions


class Qwen25VL(Family):
    keeps_positions = True

    @property
    def tower(self) -> nn.Module:
        return self.core.visual  # type: ignore[no-any-return]

    @property
    def projector(self) -> nn.Module:
        return self.core.visual.merger  # type: ignore[no-any-return]

    @property
    def towers(self) -> dict[nn.Module, QwenTower]:
        return {self.tower: QwenTower(self.core.visual, (self.projector,))}

    def positions(self, inputs: Mapping[str, Tensor]) -> Tensor | None:
        return rotary_positions(self.core, inputs)

    def media(self, ids: Tensor, embeds: Tensor, record: VisionRecord) -> list[list[Medium]]:
        config = self.model.config
        merge = config.vision_config.spatial_merge_size
        calls = iter(record.grids)  # images come first, as everywhere in the model
        rows: list[list[Medium]] = [[] for _ in ids]
        first = 0  # the number of the next medium's first token, in the order of the tower's calls
        for token, kind in ((config.image_token_id, "image"), (config.video_token_id, "video")):
            placeholders = ids == token
            if not placeholders.any():
                continue
            grids = [(t, h // merge, w // merge) for t, h, w in next(calls, [])]
            sizes = [t * h * w for t, h, w in grids]
            cells = torch.arange(first, first + sum(sizes)).split(sizes)
            for row, number, columns in _assign(placeholders, sizes, kind):
                steps, height, width = grids[number]
                pictures = zip(columns.view(steps, -1), cells[number].view(steps, -1), strict=True)
                groups = tuple(Group(picture, (height, width), cell) for picture, cell in pictures)
                rows[row].append(Medium(groups))
            first += sum(sizes)
        return [sorted(media, key=Medium.first_column) for media in rows]


def _assign(
    placeholders: Tensor, sizes: Sequence[int], kind: str
) -> Iterator[tuple[int, int, Tensor]]:
    """Assign columns to media: (row, number of the medium, columns).

    placeholders: (B, S) bool, of one kind
    sizes:        of the media of all rows. With beams, `generate` repeats rows, each after itself,
                  but not the encoded media
    """
    total = int(placeholders.sum())
    copies = total // max(1, sum(sizes))
    fits = copies > 0 and copies * sum(sizes) == total and len(placeholders) % copies == 0
    number = 0
    for row in range(0, len(placeholders), copies) if fits else ():
        columns = placeholders[row].nonzero()[:, 0]
        while len(columns) and number < len(sizes) and sizes[number] <= len(columns):
            for copy in range(row, row + copies):
                yield copy, number, columns[: sizes[number]]
            columns = columns[sizes[number] :]
            number += 1
        if len(columns) or not (placeholders[row : row + copies] == placeholders[row]).all():
            break
    if not fits or number < len(sizes):
        raise ValueError(
            f"the prompt's {total} {kind} placeholders ({placeholders.sum(1).tolist()} a row) are"
            f" not those of the {kind}s that were encoded with the method attached, which have"
            f" {list(sizes)} tokens; give input_ids and pixels as the processor made them"
        )

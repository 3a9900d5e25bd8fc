"""LLaVA-OneVision: SigLIP, a base tile and a grid of crops an image, videos of pooled frames.

Compressed after the projector, at the decoder's entry: the model resizes a large image's projected features, and a
video's too, so that no token of the encoder is a token of the decoder. An image's base tile is one group, and its crops
are another: joined, unpadded and resized, they are one picture whose tokens straddle the tiles' edges. A budget is for
both together, shared by their size. Images of a prompt with several have the base tile alone. A group of a video is a
frame. Survivors are renumbered, as for LLaVA-NeXT. Newlines (after each row of the crops, or after the last token of
a lone base tile or a video) stay, outside the budget; SigLIP has no CLS token.

A site inside the tower makes the tower cheaper, and a picture without holes is resized afterwards all the same: the
survivor that a dropped patch was most like stands in its place. At the decoder's entry the method then leaves as many
tokens as the schedule says there. No token there is a patch of the tower, so a method that ranks patches by the
tower's attention is refused, and ToMe merges at the entry alone.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from apet.models.base import Family, Group, Medium, VisionRecord
from apet.towers.tile_tower import TileTower, clip_tower


class LlavaOnevision(Family):
    @property
    def towers(self) -> dict[nn.Module, TileTower]:
        return {
            self.tower: clip_tower(
                self.tower, self.model.config.vision_feature_layer, tiles=0, resized=True
            )
        }

    def media(self, ids: Tensor, embeds: Tensor, seen: VisionRecord) -> list[list[Medium]]:
        config = self.model.config
        side = config.vision_config.image_size // config.vision_config.patch_size
        newline = self.core.image_newline.to(embeds)
        newlines = torch.stack(
            [(row == newline).all(-1) for row in embeds]
        ).cpu()  # by row: D times as large inside
        rows = []
        for row, ends in zip(ids, newlines, strict=True):
            media = [
                *_images(_lines(row == config.image_token_id, ends, "image"), side),
                *_videos(_lines(row == config.video_token_id, ends, "video"), -(-side // 2)),
            ]
            rows.append(sorted(media, key=Medium.place))
        return rows


def _lines(here: Tensor, ends: Tensor, kind: str) -> list[Tensor]:
    """The placeholders (S,) of a kind, cut at the newlines; these left out."""
    columns = here.nonzero()[:, 0]
    *lines, rest = columns.tensor_split(ends[columns].nonzero()[:, 0] + 1)
    if len(rest):
        raise _misfit(len(rest), kind)
    return [line[:-1] for line in lines]


def _images(lines: list[Tensor], side: int) -> Iterator[Medium]:
    """An image is a base tile, which is longer than any row, and a row of its crops; then further rows."""
    size = side * side
    starts = [place for place, line in enumerate(lines) if len(line) >= size]
    if lines and starts[:1] != [0]:
        raise _misfit(len(lines[0]), "image")
    for start, end in zip(starts, [*starts[1:], len(lines)], strict=False):
        base, rows = lines[start][:size], [lines[start][size:], *lines[start + 1 : end]]
        width = len(rows[0])
        if any(len(row) != width for row in rows) or (not width and len(rows) > 1):
            raise _misfit(sum(map(len, lines[start:end])), "image")
        crops = [Group(torch.cat(rows), (len(rows), width))] if width else []
        yield Medium((Group(base, (side, side)), *crops))


def _videos(lines: list[Tensor], side: int) -> Iterator[Medium]:
    for line in lines:
        if not len(line) or len(line) % (side * side):
            raise _misfit(len(line), "video")
        yield Medium(tuple(Group(frame, (side, side)) for frame in line.split(side * side)))


def _misfit(count: int, kind: str) -> ValueError:
    return ValueError(
        f"{count} {kind} placeholders of the prompt are not what this model makes of any {kind}; give input_ids and"
        " pixels as the processor made them"
    )

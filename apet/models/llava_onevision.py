"""LLaVA-OneVision: SigLIP, a base tile and a grid of crops an image, videos of pooled frames.

Tokens are compressed after the projector, at the decoder's entry: the model resizes the projected
features of a large image or a video, so that no token of the encoder is a token of the decoder. An
image's base tile is one group, and its crops are another: joined, without padding and resized, they
are one picture whose tokens straddle the tiles' edges. A budget is for both together, shared in
proportion to their size. If a prompt has several images, each has the base tile alone. A group of a
video is a frame. Kept tokens are renumbered, as for LLaVA-NeXT. Newlines (after each row of the
crops, or after the last token of a base tile without crops, or of a video) stay, outside the
budget; SigLIP has no CLS token.

A site inside the tower makes the tower cheaper, but the model then resizes a picture without holes:
the kept token that a dropped patch was most similar to stands in for it. At the decoder's entry the
method reduces the tokens to the number that the schedule gives there. No token there is a patch of
the tower. A method that ranks patches by the tower's attention is therefore refused, and ToMe
merges at the entry alone.
"""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from apet.models.base import Family, Group, Medium
from apet.towers.tile_tower import TileTower, clip_tower
from apet.towers.vision_record import VisionRecord


class LlavaOnevision(Family):
    @property
    def towers(self) -> dict[nn.Module, TileTower]:
        layer = self.model.config.vision_feature_layer
        return {self.tower: clip_tower(self.tower, layer, tiles=0, resized=True)}

    def media(self, ids: Tensor, embeds: Tensor, record: VisionRecord) -> list[list[Medium]]:
        config = self.model.config
        side = config.vision_config.image_size // config.vision_config.patch_size
        newline = self.core.image_newline.to(embeds)
        # Row by row: the comparison takes D times the memory of its result.
        newlines = torch.stack([(row == newline).all(-1) for row in embeds]).cpu()
        rows = []
        for row, ends in zip(ids, newlines, strict=True):
            media = [
                *_images(_lines(row == config.image_token_id, ends, "image"), side),
                *_videos(_lines(row == config.video_token_id, ends, "video"), -(-side // 2)),
            ]
            rows.append(sorted(media, key=Medium.first_column))
        return rows


def _lines(placeholders: Tensor, newlines: Tensor, kind: str) -> list[Tensor]:
    """The columns of a kind of placeholders (S,), cut at the newlines and without them."""
    columns = placeholders.nonzero()[:, 0]
    *lines, rest = columns.tensor_split(newlines[columns].nonzero()[:, 0] + 1)
    if len(rest):
        raise _mismatch(len(rest), kind)
    return [line[:-1] for line in lines]


def _images(lines: list[Tensor], side: int) -> Iterator[Medium]:
    """Find images: a base tile, longer than any row, with the first row of crops; more rows."""
    size = side * side
    starts = [number for number, line in enumerate(lines) if len(line) >= size]
    if lines and starts[:1] != [0]:
        raise _mismatch(len(lines[0]), "image")
    for start, end in zip(starts, [*starts[1:], len(lines)], strict=False):
        base, rows = lines[start][:size], [lines[start][size:], *lines[start + 1 : end]]
        width = len(rows[0])
        if any(len(row) != width for row in rows) or (not width and len(rows) > 1):
            raise _mismatch(sum(map(len, lines[start:end])), "image")
        crops = [Group(torch.cat(rows), (len(rows), width))] if width else []
        yield Medium((Group(base, (side, side)), *crops))


def _videos(lines: list[Tensor], side: int) -> Iterator[Medium]:
    for line in lines:
        if not len(line) or len(line) % (side * side):
            raise _mismatch(len(line), "video")
        yield Medium(tuple(Group(frame, (side, side)) for frame in line.split(side * side)))


def _mismatch(count: int, kind: str) -> ValueError:
    return ValueError(
        f"{count} {kind} placeholders of the prompt do not match any {kind} of this model; give"
        " input_ids and pixels as the processor made them"
    )

"""Video-LLaVA: images and videos through CLIP towers of their own and one projector; frames keep their CLS token.

Compressed after the projector, as in the authors' release. A group is a frame, or an image. All of a budget is spent
at the encoder and nothing is dropped inside the decoder, as in the paper's table: 256 tokens a video are 32 for each
of 8 frames. The CLS token of a frame stays, outside the budget, as in the release; images have none. Survivors are
renumbered, since the release builds a shorter prompt in which gaps have no position, and stay in their order (in the
release, they are in order of error, and the basis comes last).

A video is a run of placeholders of whole frames: how many frames it has, only the processor knows, and a video's
placeholders are never followed by another's directly in the prompts that this model was trained on.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from apet.models.base import Family, Group, Medium, VisionRecord, runs
from apet.towers.tile_tower import TileRun, TileTower, clip_tower


class VideoLlava(Family):
    encoder_only = True

    @property
    def tower(self) -> nn.Module:
        return self.core.video_tower  # type: ignore[no-any-return]

    @property
    def towers(self) -> dict[nn.Module, TileTower]:
        layer = self.model.config.vision_feature_layer
        images, videos = self.core.image_tower, self.core.video_tower
        return {
            images: clip_tower(images, layer, tiles=0),
            videos: clip_tower(videos, layer, tiles=0),
        }

    def media(self, ids: Tensor, embeds: Tensor, seen: VisionRecord) -> list[list[Medium]]:
        config = self.model.config
        side = config.vision_config.image_size // config.vision_config.patch_size
        picture = side * side
        image = picture + (config.vision_feature_select_strategy == "full")
        is_image, is_video = ids == config.image_token_id, ids == config.video_token_id
        images, frames = int(is_image.sum()) // image, int(is_video.sum()) // (picture + 1)
        # With beams, `generate` repeats rows, each after itself, but not what was encoded.
        copies = max(
            1,
            (images + frames)
            // max(
                1,
                sum(run.tiles for run in seen.runs if isinstance(run, TileRun)) or images + frames,
            ),
        )
        tiles = [
            torch.arange(picture).add(picture * tile) for tile in range((images + frames) // copies)
        ]
        each = (
            iter(tiles[: images // copies]),
            iter(tiles[images // copies :]),
        )  # in the order of the towers' calls
        rows: list[list[Medium]] = []
        for number in range(0, len(ids), copies):
            media = [
                Medium((Group(columns[-picture:], (side, side), next(each[0])),))
                for run in runs(is_image[number])
                for columns in torch.split(_whole(run, image, "image"), image)
            ]
            for run in runs(is_video[number]):
                pictures = torch.split(_whole(run, picture + 1, "video"), picture + 1)
                media.append(
                    Medium(tuple(Group(one[1:], (side, side), next(each[1])) for one in pictures))
                )
            rows += [sorted(media, key=Medium.place)] * copies
        return rows


def _whole(run: Tensor, size: int, kind: str) -> Tensor:
    if len(run) % size:
        raise ValueError(
            f"a run of {len(run)} {kind} placeholders is no whole number of pictures of {size}; give input_ids as the"
            " processor made them"
        )
    return run

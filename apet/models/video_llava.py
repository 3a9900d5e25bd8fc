"""Video-LLaVA: CLIP towers for images and for videos, one projector; frames keep their CLS token.

Tokens are compressed after the projector, as in the authors' release. A group is a frame, or an
image. The whole budget is spent at the encoder and nothing is dropped inside the decoder, as in the
paper's table: 256 tokens a video are 32 for each of 8 frames. The CLS token of a frame stays,
outside the budget, as in the release; images have none. Kept tokens are renumbered, since the
release builds a shorter prompt in which gaps have no position, and stay in their order (in the
release, they are in order of error, and the basis comes last).

A video is a run of placeholders of whole frames: only the processor knows how many frames it has,
and a video's placeholders are never followed directly by another's in the prompts that this model
was trained on.
"""

from itertools import islice

import torch
from torch import Tensor, nn

from apet.models.base import Family, Group, Medium, consecutive_columns
from apet.towers.tile_tower import TileTower, TileTowerCall, clip_tower
from apet.towers.vision_record import VisionRecord


class VideoLlava(Family):
    encoder_only = True

    @property
    def tower(self) -> nn.Module:
        return self.core.video_tower  # type: ignore[no-any-return]

    @property
    def towers(self) -> dict[nn.Module, TileTower]:
        layer = self.model.config.vision_feature_layer
        towers = self.core.image_tower, self.core.video_tower
        return {tower: clip_tower(tower, layer, tiles=0) for tower in towers}

    def media(self, ids: Tensor, embeds: Tensor, record: VisionRecord) -> list[list[Medium]]:
        config = self.model.config
        side = config.vision_config.image_size // config.vision_config.patch_size
        patches = side * side
        image_size = patches + (config.vision_feature_select_strategy == "full")
        is_image, is_video = ids == config.image_token_id, ids == config.video_token_id
        images, frames = int(is_image.sum()) // image_size, int(is_video.sum()) // (patches + 1)
        encoded = sum(call.tiles for call in record.calls if isinstance(call, TileTowerCall))
        # With beams, `generate` repeats rows, each after itself, but not the encoded media.
        copies = max(1, (images + frames) // max(1, encoded or images + frames))
        cells = iter(torch.arange((images + frames) // copies * patches).split(patches))
        # In the order of the towers' calls.
        image_cells = iter(list(islice(cells, images // copies)))
        rows: list[list[Medium]] = []
        for number in range(0, len(ids), copies):
            media = [
                Medium((Group(columns[-patches:], (side, side), next(image_cells)),))
                for run in consecutive_columns(is_image[number])
                for columns in _pictures(run, image_size, "image")
            ]
            for run in consecutive_columns(is_video[number]):
                pictures = _pictures(run, patches + 1, "video")
                groups = (Group(columns[1:], (side, side), next(cells)) for columns in pictures)
                media.append(Medium(tuple(groups)))
            rows += [sorted(media, key=Medium.first_column)] * copies
        return rows


def _pictures(run: Tensor, size: int, kind: str) -> tuple[Tensor, ...]:
    if len(run) % size:
        raise ValueError(
            f"a run of {len(run)} {kind} placeholders is not a whole number of pictures of {size};"
            " give input_ids as the processor made them"
        )
    return torch.split(run, size)

"""Qwen3-VL: as Qwen2.5-VL, with timestamps between the steps of a video, and DeepStack.

Tokens are compressed after the merger, with groups and positions as for Qwen2.5-VL, for the same
reasons. The timestamps are text, and stay.

DeepStack adds features of earlier vision layers to the visual tokens after each of the decoder's
first layers. A kept token gets its own features, also where a method has merged others into it:
they refine the content of the token, and belong to another space than the one in which the method
judged tokens to be similar. No decoder site may come before the last of these layers: features
that are added later must meet the tokens that they belong to.
"""

from collections.abc import Mapping
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from apet.models.qwen2_5_vl import Qwen25VL
from apet.shortened_batch import ShortenedBatch
from apet.towers.qwen_tower import QwenTower


class Qwen3VL(Qwen25VL):
    per_token = ("visual_pos_masks",)

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__(model)
        self.first_decoder_site = len(model.config.vision_config.deepstack_visual_indexes)

    @property
    def towers(self) -> dict[nn.Module, QwenTower]:
        visual = self.core.visual
        return {self.tower: QwenTower(visual, (visual.merger, *visual.deepstack_merger_list))}

    def shorten(self, inputs: Mapping[str, Any], short: ShortenedBatch) -> dict[str, Any]:
        mask, features = inputs.get("visual_pos_masks"), inputs.get("deepstack_visual_embeds")
        if mask is None or features is None:
            return {}
        number = mask.flatten().cumsum(0).view(mask.shape) - 1  # of visual tokens, over all rows
        kept = short.take_scalars(mask) & short.valid
        index = short.take_scalars(number)[kept]
        return {
            "visual_pos_masks": kept,
            "deepstack_visual_embeds": [feature[index] for feature in features],
        }

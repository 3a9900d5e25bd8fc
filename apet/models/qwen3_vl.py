"""Qwen3-VL: as Qwen2.5-VL, with timestamps between the steps of a video, and DeepStack.

Compressed after the merger, groups and positions as for Qwen2.5-VL, for the same reasons. The timestamps are text,
and stay.

DeepStack adds features of earlier vision layers to the visual tokens after each of the decoder's first layers. A
survivor gets its own, also where a method has merged others into it: they refine what the token shows, and are of
another space than the one in which the method judged tokens to be alike. No decoder site may come before the last of
these layers: what is added later must meet the tokens that it belongs to.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from apet.models.qwen2_5_vl import Qwen25VL
from apet.shortened import Shortened
from apet.towers.packed_tower import PackedTower


class Qwen3VL(Qwen25VL):
    per_token = ("visual_pos_masks",)

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__(model)
        self.first_decoder_site = len(model.config.vision_config.deepstack_visual_indexes)

    @property
    def towers(self) -> dict[nn.Module, PackedTower]:
        visual = self.core.visual
        return {self.tower: PackedTower(visual, (visual.merger, *visual.deepstack_merger_list))}

    def shorten(self, inputs: Mapping[str, Any], short: Shortened) -> dict[str, Any]:
        mask, features = inputs.get("visual_pos_masks"), inputs.get("deepstack_visual_embeds")
        if mask is None or features is None:
            return {}
        number = (
            mask.flatten().cumsum(0).view(mask.shape) - 1
        )  # of each visual token, over all rows
        left = short.last(mask) & short.valid
        stay = short.last(number)[left]
        return {
            "visual_pos_masks": left,
            "deepstack_visual_embeds": [feature[stay] for feature in features],
        }

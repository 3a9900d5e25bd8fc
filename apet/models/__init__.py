"""The model families that can be compressed, by transformers' `model_type`. One file each."""

from __future__ import annotations

from transformers import PreTrainedModel

from apet.models.base import Family
from apet.models.llava import Llava
from apet.models.llava_next import LlavaNext
from apet.models.llava_onevision import LlavaOnevision
from apet.models.qwen2_5_vl import Qwen25VL
from apet.models.qwen3_vl import Qwen3VL
from apet.models.video_llava import VideoLlava

FAMILIES: dict[str, type[Family]] = {
    "llava": Llava,
    "llava_next": LlavaNext,
    "qwen2_5_vl": Qwen25VL,
    "video_llava": VideoLlava,
    "qwen3_vl": Qwen3VL,
    "llava_onevision": LlavaOnevision,
}


def family_of(model: PreTrainedModel) -> Family:
    """The description of a loaded model."""
    kind = model.config.model_type
    if kind not in FAMILIES:
        raise ValueError(f"models of type {kind!r} are not supported; these are: {', '.join(sorted(FAMILIES))}")
    return FAMILIES[kind](model)

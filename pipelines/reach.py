"""What is known of a model without its weights: enough to refuse a budget that a method cannot reach in it."""

from __future__ import annotations

from typing import Any

from apet.methods.base import Model


def reach(
    name: str, revision: str | None = None, trust_remote_code: bool = False, frames: int = 1
) -> tuple[Model, int | None]:
    """The model's depth, and the visual tokens of an image or of a video of so many frames; None if sizes vary.

    The model is built without memory for its weights, so that the family's own description answers.
    """
    import torch
    from transformers import AutoConfig, AutoModelForImageTextToText

    from apet.models import family_of

    config = AutoConfig.from_pretrained(name, revision=revision, trust_remote_code=trust_remote_code)
    with torch.device("meta"):
        family = family_of(AutoModelForImageTextToText.from_config(config, trust_remote_code=trust_remote_code))
    model = Model(len(family.layers), family.tower_layers, family.first_decoder_site, family.encoder_only)
    return model, _tokens(config, frames)


def _tokens(config: Any, frames: int) -> int | None:
    if config.model_type not in ("llava", "video_llava"):
        return None  # crops, or as many as the pixels
    vision = config.vision_config
    return int(frames * (vision.image_size // vision.patch_size) ** 2)

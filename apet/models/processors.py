"""Processors as the models were evaluated with: placeholders, tokenizer, padding and pixel limits.

What transformers loads differs from the original code in places; each is put right here.
"""

from pathlib import Path
from typing import Any

from transformers import (
    LlamaTokenizer,
    LlavaImageProcessorPil,
    LlavaProcessor,
    PreTrainedConfig,
    ProcessorMixin,
    TokenizersBackend,
)
from transformers.utils.hub import cached_file

TOKENIZER_FILE = "tokenizer.json"


def configure_processor(
    processor: Any, config: PreTrainedConfig, name: str | Path, revision: str | None
) -> None:
    """Change a loaded processor in place to fit its model."""
    if isinstance(processor.tokenizer, LlamaTokenizer):
        processor.tokenizer = _tokenizer_of_file(processor.tokenizer, name, revision)
    processor.tokenizer.padding_side = "left"
    if processor.tokenizer.pad_token is None:
        processor.tokenizer.pad_token = processor.tokenizer.eos_token
    if "llava" in config.model_type:
        _set_placeholders(processor, config)
    # transformers announces that its default becomes True. A fixed value keeps the pixels of a run
    # that is resumed with a newer version; False is what all runs so far have had.
    video_processor: Any = getattr(processor, "video_processor", None)
    if hasattr(video_processor, "cap_pixels_per_frame"):
        video_processor.cap_pixels_per_frame = False


def _tokenizer_of_file(tokenizer: Any, name: str | Path, revision: str | None) -> Any:
    """The tokenizer as its file has it, if there is one.

    transformers builds Llama's tokenizer anew from the file's vocabulary, but not its normalizer.
    For Video-LLaVA, `<video>\\nWhat` then lacks the token `29871` before the line break, which the
    original code and the file both give. For LLaVA and LLaVA-NeXT transformers takes the file.
    """
    source: dict[str, Any] = {"revision": revision}
    file = cached_file(name, TOKENIZER_FILE, _raise_exceptions_for_missing_entries=False, **source)
    return TokenizersBackend.from_pretrained(name, **source) if file else tokenizer


def _set_placeholders(processor: Any, config: Any) -> None:
    """Let LLaVA's processor write as many placeholders as the model has tokens.

    Processors of older checkpoints have no number of placeholders, or a wrong one; their models
    know it.
    """
    vision = config.vision_config
    attributes = {
        "patch_size": vision.patch_size,
        "vision_feature_select_strategy": getattr(config, "vision_feature_select_strategy", None),
        "num_additional_image_tokens": int(vision.model_type == "clip_vision_model"),  # CLS
    }
    for name, value in attributes.items():
        if hasattr(processor, name):
            setattr(processor, name, value)


def pad_to_square(processor: ProcessorMixin) -> None:
    """Let LLaVA's processor pad images to a square with the mean colour, as LLaVA's scripts do.

    The checkpoints' own image processor crops an image to its centre. Pillow resizes, as in the
    scripts: the pixels are theirs to the last bit. Raises a ValueError for other processors.
    """
    own: Any = processor.image_processor
    values = own.to_dict()
    if not isinstance(processor, LlavaProcessor) or not values.get("do_center_crop"):
        raise ValueError(
            f"{type(own).__name__} cannot pad: padding is for LLaVA with a CLIP tower, whose image"
            " processor crops"
        )
    del values["image_processor_type"]
    padding = LlavaImageProcessorPil(**{**values, "do_pad": True})
    processor.image_processor = padding

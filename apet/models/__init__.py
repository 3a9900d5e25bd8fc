"""Model families that can be compressed, by transformers' `model_type`, and how to load them."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    AutoProcessor,
    PreTrainedConfig,
    PreTrainedModel,
    ProcessorMixin,
)

from apet.attention import packed_kernel
from apet.models.base import Family
from apet.models.llava import Llava
from apet.models.llava_next import LlavaNext
from apet.models.llava_onevision import LlavaOnevision
from apet.models.qwen2_5_vl import Qwen25VL
from apet.models.qwen3_vl import Qwen3VL
from apet.models.video_llava import VideoLlava
from apet.towers.qwen_tower import QwenTower
from apet.transformers_api import check_arguments, warn_if_untested

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
    warn_if_untested()
    family = FAMILIES[_check_supported(model.config.model_type)](model)
    check_arguments("model", family.core)
    check_arguments("decoder", family.decoder)
    check_arguments("decoder layer", family.layers[0])
    return family


def load(
    name: str | Path,
    *,
    dtype: str | torch.dtype = "auto",
    attn: str = packed_kernel.NAME,
    device: str | torch.device | None = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
) -> tuple[PreTrainedModel, ProcessorMixin]:
    """Load a model and its processor, from a hub id or a folder.

    Anything that cannot work is refused before weights are read.

    dtype:    "auto" is the checkpoint's
    attn:     the attention kernel: "packed" (`apet/attention/packed_kernel.py`), "sdpa", "eager",
              "flash_attention_2", or another that transformers knows
    device:   where the model will run. The tower's kernel is chosen for it, so do not move the
              model later; "auto" spreads the layers over all GPUs that this process sees, for a
              model that is too large for one
    revision: a branch, tag or commit of the hub's repository

    Weights come from safetensors, which hold numbers alone. The processor pads on the left, as
    generation requires.
    """
    if attn == "flash_attention_2" and find_spec("flash_attn") is None:
        raise ImportError(
            f"attn={attn!r} needs the package flash-attn, which is not installed; install it where"
            " there is a GPU and nvcc, with `pip install -e '.[gpu]' --no-build-isolation`, or"
            " choose attn='packed'"
        )
    spread = device == "auto"
    if spread and find_spec("accelerate") is None:
        raise ImportError(
            "spreading a model over several GPUs needs the package accelerate, which is not"
            " installed; install it with `pip install accelerate`, or give one GPU"
        )
    processor = load_processor(name, revision=revision, trust_remote_code=trust_remote_code)
    model: Any = AutoModelForImageTextToText.from_pretrained(
        name,
        dtype=dtype,
        attn_implementation=attn,
        use_safetensors=True,
        device_map="auto" if spread else None,
        revision=revision,
        trust_remote_code=trust_remote_code,
    )
    if spread and torch.cuda.is_available():
        devices = set(map(str, model.hf_device_map.values()))
        if devices & {"cpu", "disk"}:
            count = torch.cuda.device_count()
            raise ValueError(f"{name} does not fit on {count} GPUs; give more or larger ones")
    if device is not None and not spread:
        model = model.to(device)
    pack_windows(model)
    return model, processor


def pack_windows(model: PreTrainedModel) -> None:
    """Under "packed", let a tower with windows use one launch a block, if its GPU can."""
    for module, tower in family_of(model).towers.items():
        if isinstance(tower, QwenTower):
            packed_kernel.use_tower_kernel(module)


def load_processor(
    name: str | Path, *, revision: str | None = None, trust_remote_code: bool = False
) -> ProcessorMixin:
    """Load a model's processor alone, as `load` returns it, to prepare inputs elsewhere."""
    source: dict[str, Any] = {"revision": revision, "trust_remote_code": trust_remote_code}
    config = load_config(name, **source)
    processor: ProcessorMixin = AutoProcessor.from_pretrained(name, **source)
    _configure_processor(processor, config)
    return processor


def load_config(
    name: str | Path, *, revision: str | None = None, trust_remote_code: bool = False
) -> PreTrainedConfig:
    """Load a model's config.

    Raises FileNotFoundError if there is no such model, ValueError if its family is not supported.
    """
    reason = "there is no config.json"
    try:
        values, _ = PreTrainedConfig.get_config_dict(name, revision=revision)
    except OSError as error:
        values, reason = {}, str(error).strip().splitlines()[0]
    if not values:
        raise FileNotFoundError(
            f"no model {name}: give a folder with a config.json, or a name on the hub such as"
            f" llava-hf/llava-1.5-7b-hf ({reason})"
        )
    _check_supported(values.get("model_type"))
    config: PreTrainedConfig = AutoConfig.from_pretrained(
        name, revision=revision, trust_remote_code=trust_remote_code
    )
    return config


def _check_supported(model_type: str | None) -> str:
    if model_type not in FAMILIES:
        raise ValueError(
            f"models of type {model_type!r} are not supported; these are:"
            f" {', '.join(sorted(FAMILIES))}"
        )
    return model_type


def _configure_processor(processor: Any, config: Any) -> None:
    """Let the processor pad on the left and write as many placeholders as the model has tokens.

    Processors of older checkpoints have no number of placeholders, or a wrong one; their models
    know it.
    """
    processor.tokenizer.padding_side = "left"
    if processor.tokenizer.pad_token is None:
        processor.tokenizer.pad_token = processor.tokenizer.eos_token
    vision = config.vision_config
    attributes = {
        "patch_size": vision.patch_size,
        "vision_feature_select_strategy": getattr(config, "vision_feature_select_strategy", None),
        "num_additional_image_tokens": int(vision.model_type == "clip_vision_model"),  # CLS
    }
    for name, value in attributes.items():
        if hasattr(processor, name):
            setattr(processor, name, value)

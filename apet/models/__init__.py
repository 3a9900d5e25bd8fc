"""The model families that can be compressed, by transformers' `model_type`, one file each; and how one is loaded."""

from __future__ import annotations

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
from apet.towers.packed_tower import PackedTower

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
    return FAMILIES[_known(model.config.model_type)](model)


def load(
    name: str | Path,
    *,
    dtype: str | torch.dtype = "auto",
    attn: str = packed_kernel.NAME,
    device: str | torch.device | None = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
) -> tuple[PreTrainedModel, ProcessorMixin]:
    """A model and its processor, from a hub id or a folder; what cannot work is refused before weights are read.

    dtype:    "auto" is the checkpoint's
    attn:     the attention kernel: "packed" (`apet/attention/packed_kernel.py`), "sdpa", "eager", "flash_attention_2", or another that
              transformers knows
    device:   where it is to answer: how a tower attends is chosen for that place, so move it no more; "auto" spreads
              the layers over all GPUs that this process sees, for a model that is too large for one
    revision: a branch, tag or commit of the hub's repository

    Weights come from safetensors, which hold numbers alone. The processor pads on the left, as generation needs it.
    """
    if attn == "flash_attention_2" and find_spec("flash_attn") is None:
        raise ImportError(
            f"attn is {attn!r}, and the package flash-attn is not installed; install it where there is a GPU and nvcc,"
            " with `pip install -e '.[gpu]' --no-build-isolation`, or choose attn='packed'"
        )
    spread = device == "auto"
    if spread and find_spec("accelerate") is None:
        raise ImportError(
            "a model is spread over several GPUs by the package accelerate, which is not installed; install it with"
            " `pip install accelerate`, or give one GPU"
        )
    processor = load_processor(name, revision=revision, trust_remote_code=trust_remote_code)
    source: dict[str, Any] = {"revision": revision, "trust_remote_code": trust_remote_code}
    model: Any = AutoModelForImageTextToText.from_pretrained(
        name,
        dtype=dtype,
        attn_implementation=attn,
        use_safetensors=True,
        device_map="auto" if spread else None,
        **source,
    )
    if (
        spread
        and torch.cuda.is_available()
        and {"cpu", "disk"} & set(map(str, model.hf_device_map.values()))
    ):
        raise ValueError(
            f"{name} does not fit on {torch.cuda.device_count()} GPUs; give more or larger ones"
        )
    if device is not None and not spread:
        model = model.to(device)
    pack_windows(model)
    return model, processor


def pack_windows(model: PreTrainedModel) -> None:
    """Under "packed", have a vision tower of windows attend in one launch a block, if its GPU can; else leave it."""
    for tower, about in family_of(model).towers.items():
        if isinstance(about, PackedTower):
            packed_kernel.one_launch(tower)


def load_processor(
    name: str | Path, *, revision: str | None = None, trust_remote_code: bool = False
) -> ProcessorMixin:
    """A model's processor alone, as `load` gives it, for who prepares inputs elsewhere."""
    source: dict[str, Any] = {"revision": revision, "trust_remote_code": trust_remote_code}
    config = load_config(name, **source)
    processor: ProcessorMixin = AutoProcessor.from_pretrained(name, **source)
    _agree(processor, config)
    return processor


def load_config(
    name: str | Path, *, revision: str | None = None, trust_remote_code: bool = False
) -> PreTrainedConfig:
    """A model's config: a FileNotFoundError if there is no such model, a ValueError if it is of another family."""
    why = "it has none"
    try:
        known, _ = PreTrainedConfig.get_config_dict(name, revision=revision)
    except OSError as error:
        known, why = {}, str(error).strip().splitlines()[0]
    if not known:
        raise FileNotFoundError(
            f"no model {name}: give a folder with a config.json, or a name on the hub such as"
            f" llava-hf/llava-1.5-7b-hf ({why})"
        )
    _known(known.get("model_type"))
    config: PreTrainedConfig = AutoConfig.from_pretrained(
        name, revision=revision, trust_remote_code=trust_remote_code
    )
    return config


def _known(kind: str | None) -> str:
    if kind not in FAMILIES:
        raise ValueError(
            f"models of type {kind!r} are not supported; these are: {', '.join(sorted(FAMILIES))}"
        )
    return kind


def _agree(processor: Any, config: Any) -> None:
    """A processor that pads on the left, and writes as many placeholders as the model has tokens.

    Processors of older checkpoints do not say, or wrongly, how many these are; their models do.
    """
    processor.tokenizer.padding_side = "left"
    if processor.tokenizer.pad_token is None:
        processor.tokenizer.pad_token = processor.tokenizer.eos_token
    told = {
        "patch_size": config.vision_config.patch_size,
        "vision_feature_select_strategy": getattr(config, "vision_feature_select_strategy", None),
        "num_additional_image_tokens": int(
            config.vision_config.model_type == "clip_vision_model"
        ),  # CLS
    }
    for name, value in told.items():
        if hasattr(processor, name):
            setattr(processor, name, value)

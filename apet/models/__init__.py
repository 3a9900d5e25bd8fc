"""Model families that can be compressed, by transformers' `model_type`, and how to load them."""

from collections.abc import Mapping
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
from apet.models.processors import configure_processor
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
    configure_processor(processor, config, name, revision)
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
    if hint := _converted_name(str(name), values):
        raise ValueError(
            f"{name} is in the format of LLaVA's own code, which transformers does not read; give"
            f" {hint}"
        )
    if not values:
        raise FileNotFoundError(
            f"no model {name}: give a folder with a config.json, or a name on the hub such as"
            f" llava-hf/llava-1.5-7b-hf ({reason})"
        )
    model_type = _check_supported(values.get("model_type"))
    config: PreTrainedConfig = AutoConfig.from_pretrained(
        name, revision=revision, trust_remote_code=trust_remote_code
    )
    FAMILIES[model_type].check_config(config)
    return config


def _converted_name(name: str, values: Mapping[str, Any]) -> str | None:
    """The same model in transformers' format, if the config or the name is of the original code.

    The original configs also say `"model_type": "llava"`: transformers would load them as a LLaVA
    of random weights.
    """
    owner, _, model = name.rpartition("/")
    towers = {"mm_vision_tower", "mm_image_tower", "mm_video_tower"} & values.keys()
    # Where the hub gives no config, the name still tells.
    known = owner in ("liuhaotian", "lmms-lab") or name == "LanguageBind/Video-LLaVA-7B"
    if not towers and (values or not known):
        return None
    if "mm_video_tower" in towers or owner == "LanguageBind":
        return "LanguageBind/Video-LLaVA-7B-hf"
    if not model.startswith("llava-"):
        return "its converted form, such as llava-hf/llava-1.5-7b-hf"
    return f"llava-hf/{model.replace('llava-v1.5', 'llava-1.5')}-hf"


def _check_supported(model_type: str | None) -> str:
    if model_type not in FAMILIES:
        raise ValueError(
            f"models of type {model_type!r} are not supported; these are:"
            f" {', '.join(sorted(FAMILIES))}"
        )
    return model_type

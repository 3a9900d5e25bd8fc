"""Prompt format and image fit of a model: by default, those of its official evaluation.

| model | conversation | image fit |
|---|---|---|
| LLaVA-1.5 | vicuna_v1 | pad |
| Video-LLaVA | llava_v1 | model |
| all others, the demo models included | model | model |

`model` is what the checkpoint's own files say. LLaVA-1.5 and Video-LLaVA are recognised by their
decoder, which is Vicuna: a Llama whose first added token follows Llama's 32,000. Other models of
these types, such as the demo models, were trained with their own chat template.
"""

import json
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from pipelines.config.eval_config import EvalConfig
from pipelines.config.model_version import HUB_TIMEOUT_S

LLAMA_TOKENS = 32_000
MODEL = "model"


def with_model_defaults(config: EvalConfig) -> EvalConfig:
    """The config with the defaults of its model; unchanged if the model's config is unreadable.

    Only config.json is read, so that a finished job still ends within a moment.
    """
    values = _model_config(config.model, config.revision)
    if not values:
        return config
    conversation, image_fit = _official(values)
    return replace(
        config,
        conversation=config.conversation or conversation,
        image_fit=(config.image_fit or image_fit) if config.kind == "image" else None,
    )


def inputs_version(config: EvalConfig) -> int:
    """Changes when a model's inputs change though its settings do not.

    Finished runs of such a model are then answered again. 2 came after 0.1.0: a video of Qwen3-VL
    has its marks once, and Video-LLaVA's tokenizer is that of its file.
    """
    values = _model_config(config.model, config.revision)
    model_type = values.get("model_type")
    marks = model_type == "qwen3_vl" and config.kind == "video"
    return 2 if marks or (model_type == "video_llava" and _is_vicuna(values)) else 1


def _official(values: Mapping[str, Any]) -> tuple[str, str]:
    """The conversation and the image fit of a model's official evaluation."""
    if not _is_vicuna(values):
        return MODEL, MODEL
    if values.get("model_type") == "video_llava":
        return "llava_v1", MODEL
    tower = (values.get("vision_config") or {}).get("model_type", "clip_vision_model")
    if values.get("model_type") == "llava" and tower == "clip_vision_model":
        return "vicuna_v1", "pad"
    return MODEL, MODEL


def _is_vicuna(values: Mapping[str, Any]) -> bool:
    """Whether the decoder of a LLaVA has Vicuna's vocabulary. Absent keys have LLaVA's defaults."""
    text_type = (values.get("text_config") or {}).get("model_type", "llama")
    image_token = values.get("image_token_index", values.get("image_token_id", LLAMA_TOKENS))
    return bool(text_type == "llama" and image_token == LLAMA_TOKENS)


@cache
def _model_config(model: str, revision: str | None) -> Mapping[str, Any]:
    """A model's config.json; empty if there is none, which loading the model will report."""
    path = Path(model)
    try:
        if path.is_dir():
            text = (path / "config.json").read_text(encoding="utf-8")
        else:
            from huggingface_hub import hf_hub_download

            # A file of a known commit in the cache is returned without asking the hub.
            file = hf_hub_download(
                model, "config.json", revision=revision, etag_timeout=HUB_TIMEOUT_S
            )
            text = Path(file).read_text(encoding="utf-8")
        values = json.loads(text)
    except Exception:  # of the network, the hub or the file
        return {}
    return values if isinstance(values, dict) else {}

"""Folders laid out like real checkpoints: their token ids, class names and chat templates.

The vision parts are those of `tests.support.tiny`. There are no weights.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import transformers as hf

from tests.support import tiny
from tests.support.real_tokenizers import declare_class, qwen, vicuna

_LLAVA_TEMPLATE = (  # all images first, no system prompt
    "{% for message in messages %}{{ message['role'].upper() + ': ' }}"
    "{% for part in message['content'] if part['type'] == 'image' %}{{ '<image>\n' }}{% endfor %}"
    "{% for part in message['content'] if part['type'] == 'text' %}{{ part['text'] + ' ' }}"
    "{% endfor %}{% endfor %}{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)
_QWEN_TEMPLATE = (
    "{% for message in messages %}{% if loop.first and message['role'] != 'system' %}SYSTEM"
    "{% endif %}<|im_start|>{{ message['role'] }}\n{% for part in message['content'] %}"
    "{% if part['type'] == 'text' %}{{ part['text'] }}"
    "{% else %}<|vision_start|><|{{ part['type'] }}_pad|><|vision_end|>{% endif %}"
    "{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_QWEN_SYSTEM = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
_QWEN_IDS = {
    "image_token_id": 151655,
    "video_token_id": 151656,
    "vision_start_token_id": 151652,
    "vision_end_token_id": 151653,
}


class _Layout(NamedTuple):
    family: str  # of `tiny`
    tokenizer: Callable[[], hf.PreTrainedTokenizerFast]
    tokenizer_class: str
    template: str | None
    vocab_size: int
    ids: dict[str, int]


_LAYOUTS = {
    "llava-1.5-7b-hf": _Layout(
        "llava",
        lambda: vicuna(video=False),
        "LlamaTokenizer",
        _LLAVA_TEMPLATE,
        32064,
        {"image_token_id": 32000},
    ),
    "Video-LLaVA-7B-hf": _Layout(
        "video_llava",
        lambda: vicuna(video=True),
        "LlamaTokenizer",
        None,
        32064,
        {"image_token_id": 32000, "video_token_id": 32001},
    ),
    "Qwen2.5-VL-7B-Instruct": _Layout(
        "qwen2_5_vl",
        qwen,
        "Qwen2Tokenizer",
        _QWEN_TEMPLATE.replace("SYSTEM", _QWEN_SYSTEM),
        151936,
        _QWEN_IDS,
    ),
    "Qwen3-VL-2B-Instruct": _Layout(
        "qwen3_vl",
        qwen,
        "Qwen2Tokenizer",
        _QWEN_TEMPLATE.replace("SYSTEM", ""),
        151936,
        _QWEN_IDS,
    ),
}
NAMES = tuple(_LAYOUTS)


def save(name: str, folder: Path) -> Path:
    """Save a checkpoint as `folder/name` and return its path."""
    layout, target = _LAYOUTS[name], folder / name
    tokenizer = layout.tokenizer()
    config: Any = tiny.config(layout.family)
    for key, value in layout.ids.items():
        setattr(config, key, value)
    config.text_config.vocab_size = layout.vocab_size
    config.text_config.bos_token_id = tokenizer.bos_token_id
    config.text_config.eos_token_id = tokenizer.eos_token_id
    config.text_config.pad_token_id = tokenizer.pad_token_id
    processor = tiny.processor(layout.family, tokenizer, layout.template)
    config.save_pretrained(target)
    processor.save_pretrained(target)
    declare_class(target, layout.tokenizer_class)
    return target


def change_json(file: Path, **values: Any) -> None:
    """Set keys of a JSON file."""
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))

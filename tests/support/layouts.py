"""Checkpoints as they lie on the hub, rebuilt with tiny weights: names, files, and what they lack.

The checkpoints of `tiny` are written by the installed transformers. Those that users have were
written by older versions: other weight names, in shards; processors and chat templates in other
files, or none; configs without most of their keys. The geometry of pictures is the real one.

    folder = layouts.save("Qwen2.5-VL-7B-Instruct", tmp_path)
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import AutoConfig

from tests.support import tiny

_TEXT = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "num_hidden_layers": 4,
}
_TOWER = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "num_hidden_layers": 3,
}

# ---- tokenizers

_LETTERS = [chr(code) for code in range(33, 127)]
_LLAMA = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", *_LETTERS]
_BYTES = sorted(pre_tokenizers.ByteLevel.alphabet())
_QWEN_ADDED = [
    *("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>"),
    *("<|vision_pad|>", "<|image_pad|>", "<|video_pad|>"),
]
_ONEVISION_ADDED = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<image>", "<video>"]


def _ids(base: list[str], added: list[str], first: int | None = None) -> dict[str, int]:
    """The ids of tokens: `first` is that of the added ones, which follow the others by default."""
    ids = {token: number for number, token in enumerate(base)}
    return ids | {token: number for number, token in enumerate(added, first or len(base))}


def _llama_tokenizer(folder: Path, added: list[str], **settings: Any) -> None:
    vocab = _ids(_LLAMA, added, first=32000)
    model = models.BPE(vocab, [], unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    backend = Tokenizer(model)
    backend.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    backend.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    special = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", **settings}
    _write_tokenizer(
        folder,
        backend,
        [*_LLAMA[:3], *added],
        {
            **special,
            "add_bos_token": True,
            "add_eos_token": False,
            "legacy": False,
            "tokenizer_class": "LlamaTokenizer",
        },
    )


def _qwen_tokenizer(folder: Path, added: list[str], **settings: Any) -> None:
    vocab = _ids(_BYTES, [])
    backend = Tokenizer(models.BPE(vocab, []))
    backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    _write(folder / "vocab.json", vocab)
    (folder / "merges.txt").write_text("#version: 0.2\n")
    special = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "bos_token": None}
    _write_tokenizer(
        folder,
        backend,
        added,
        {
            **special,
            "add_bos_token": False,
            "errors": "replace",
            "split_special_tokens": False,
            "tokenizer_class": "Qwen2Tokenizer",
            **settings,
        },
    )


def _write_tokenizer(
    folder: Path, backend: Tokenizer, added: list[str], config: dict[str, Any]
) -> None:
    backend.add_special_tokens([AddedToken(token, normalized=False) for token in added])
    backend.save(str(folder / "tokenizer.json"))
    decoder = {
        str(backend.token_to_id(token)): {
            "content": token,
            "lstrip": False,
            "normalized": False,
            "rstrip": False,
            "single_word": False,
            "special": True,
        }
        for token in added
    }
    common = {"added_tokens_decoder": decoder, "clean_up_tokenization_spaces": False}
    _write(folder / "tokenizer_config.json", {**config, **common})
    names = ("bos_token", "eos_token", "pad_token", "unk_token")
    _write(
        folder / "special_tokens_map.json",
        {name: config[name] for name in names if config.get(name)},
    )


# ---- chat templates, in the words of the files

_SYSTEM = (
    "A chat between a curious human and an artificial intelligence assistant. The assistant gives"
    " helpful, detailed, and polite answers to the human's questions. "
)
_MEDIA_FIRST = (
    "{% for part in message['content'] | selectattr('type', 'equalto', 'image') %}"
    "{{ '<image>\\n' }}{% endfor %}"
    "{% for part in message['content'] | selectattr('type', 'equalto', 'video') %}"
    "{{ '<video>\\n' }}{% endfor %}"
    "{% for part in message['content'] | selectattr('type', 'equalto', 'text') %}"
    "{{ part['text'] }}{% endfor %}"
)
_VICUNA = (
    "{% for message in messages %}{{ message['role'].upper() + ': ' }}"
    + _MEDIA_FIRST
    + " {% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
_MISTRAL = "{% for message in messages %}{{ '[INST] ' }}" + _MEDIA_FIRST + " [/INST]{% endfor %}"
_ONEVISION = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + ' ' }}"
    + _MEDIA_FIRST
    + "{{ '<|im_end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
_QWEN3 = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' }}"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'text' %}{{ part['text'] }}"
    "{% else %}{{ '<|vision_start|><|' + part['type'] + '_pad|><|vision_end|>' }}{% endif %}"
    "{% endfor %}{{ '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
_SYSTEM_TURN = "<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n"
_QWEN2_5 = f"{{{{ '{_SYSTEM_TURN}' }}}}" + _QWEN3

# ---- weights


def _old_llava(name: str) -> str:
    """Name a weight as before 4.52: the language model and CLIP as models of their own."""
    name = re.sub(r"^model\.", "", name)
    name = re.sub(r"^(\w+_tower)\.(vision_model\.)?", r"\1.vision_model.", name)
    name = re.sub(r"^language_model\.", "language_model.model.", name)
    return re.sub(r"^lm_head\.", "language_model.lm_head.", name)


def _old_qwen(name: str) -> str:
    """Name a weight of Qwen2.5-VL as before 4.52."""
    return re.sub(r"^model\.(visual\.)", r"\1", name).replace("model.language_model.", "model.")


# ---- configs

_IMAGE_MEAN = {
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
}
_HALF = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}
_STEPS = {
    "do_convert_rgb": True,
    "do_normalize": True,
    "do_rescale": True,
    "do_resize": True,
    "resample": 3,
    "rescale_factor": 1 / 255,
}
_LLAMA_IDS = _ids(_LLAMA, ["<image>", "<pad>"], first=32000)
_VIDEO_IDS = _ids(_LLAMA, ["<image>", "<video>", "<pad>"], first=32000)
_QWEN_IDS = _ids(_BYTES, _QWEN_ADDED)
_ONEVISION_IDS = _ids(_BYTES, _ONEVISION_ADDED)


def _clip(side: int) -> dict[str, Any]:
    return {
        **_TOWER,
        "image_size": side,
        "model_type": "clip_vision_model",
        "patch_size": 14,
        "projection_dim": 24,
        "vocab_size": 32000,
    }


def _clip_pixels(side: int, processor: str, image_processor: str, **more: Any) -> dict[str, Any]:
    return {
        **_STEPS,
        **_IMAGE_MEAN,
        "crop_size": {"height": side, "width": side},
        "do_center_crop": True,
        "image_processor_type": image_processor,
        "processor_class": processor,
        "size": {"shortest_edge": side},
        **more,
    }


_VICUNA_TEXT = {
    **_TEXT,
    "_name_or_path": "lmsys/vicuna-7b-v1.5",
    "architectures": ["LlamaForCausalLM"],
    "max_position_embeddings": 4096,
    "model_type": "llama",
    "rms_norm_eps": 1e-05,
    "torch_dtype": "float16",
    "vocab_size": 32064,
}
_MISTRAL_TEXT = {
    **_TEXT,
    "_name_or_path": "mistralai/Mistral-7B-Instruct-v0.2",
    "architectures": ["MistralForCausalLM"],
    "max_position_embeddings": 32768,
    "model_type": "mistral",
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-05,
    "rope_theta": 1000000.0,
    "sliding_window": None,
    "torch_dtype": "bfloat16",
    "vocab_size": 32064,
}
_LLAVA = {
    "ignore_index": -100,
    "image_token_index": _LLAMA_IDS["<image>"],
    "projector_hidden_act": "gelu",
    "tie_word_embeddings": False,
    "torch_dtype": "float16",
    "vision_feature_layer": -2,
    "vision_feature_select_strategy": "default",
}
_NEXT_GRID = [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]]
_NEXT = {
    **_LLAVA,
    "architectures": ["LlavaNextForConditionalGeneration"],
    "image_grid_pinpoints": _NEXT_GRID,
    "model_type": "llava_next",
    "use_image_newline_parameter": True,
    "vision_config": _clip(336),
}
_COUNTED = {
    "image_token": "<image>",
    "num_additional_image_tokens": 1,
    "patch_size": 14,
    "vision_feature_select_strategy": "default",
}
_LLAVA_GENERATION = {"_from_model_config": True, "bos_token_id": 1, "eos_token_id": 2}
_QWEN_STOPS = {
    "bos_token_id": _QWEN_IDS["<|endoftext|>"],
    "do_sample": True,
    "eos_token_id": [_QWEN_IDS["<|im_end|>"], _QWEN_IDS["<|endoftext|>"]],
    "pad_token_id": _QWEN_IDS["<|endoftext|>"],
}
_QWEN_VISION_IDS = {
    "image_token_id": _QWEN_IDS["<|image_pad|>"],
    "video_token_id": _QWEN_IDS["<|video_pad|>"],
    "vision_start_token_id": _QWEN_IDS["<|vision_start|>"],
    "vision_end_token_id": _QWEN_IDS["<|vision_end|>"],
}
_QWEN_TEXT = {
    **_TEXT,
    "attention_dropout": 0.0,
    "bos_token_id": _QWEN_IDS["<|endoftext|>"],
    "eos_token_id": _QWEN_IDS["<|im_end|>"],
    "hidden_act": "silu",
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-06,
    "use_cache": True,
    "vocab_size": len(_QWEN_IDS) + 16,
}
_QWEN_TOWER = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_heads": 4,
    "out_hidden_size": _TEXT["hidden_size"],
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
}
_QWEN_PATCHES = {"merge_size": 2, "temporal_patch_size": 2}


def _qwen3_vl(tied: bool) -> dict[str, Any]:
    rope = {"mrope_interleaved": True, "mrope_section": [4, 2, 2], "rope_type": "default"}
    return {
        **_QWEN_VISION_IDS,
        "architectures": ["Qwen3VLForConditionalGeneration"],
        "model_type": "qwen3_vl",
        "text_config": {
            **_QWEN_TEXT,
            "attention_bias": False,
            "dtype": "bfloat16",
            "head_dim": 16,
            "max_position_embeddings": 262144,
            "model_type": "qwen3_vl_text",
            "num_hidden_layers": 8,  # no site may come before the last DeepStack layer
            "rope_scaling": rope,
            "rope_theta": 5000000,
            "tie_word_embeddings": tied,
        },
        "tie_word_embeddings": tied,
        "vision_config": {
            **_QWEN_TOWER,
            "deepstack_visual_indexes": [0, 1, 2],
            "depth": 4,
            "hidden_act": "gelu_pytorch_tanh",
            "in_channels": 3,
            "model_type": "qwen3_vl",
            "num_position_embeddings": 2304,
            "patch_size": 16,
        },
    }


def _qwen3_files() -> dict[str, Any]:
    patches = {**_QWEN_PATCHES, **_HALF, "patch_size": 16, "processor_class": "Qwen3VLProcessor"}
    images = {"shortest_edge": 65536, "longest_edge": 16777216}
    videos = {"shortest_edge": 4096, "longest_edge": 25165824}
    return {
        "preprocessor_config.json": {
            **patches,
            "image_processor_type": "Qwen2VLImageProcessorFast",
            "size": images,
        },
        "video_preprocessor_config.json": {
            **patches,
            "size": videos,
            "video_processor_type": "Qwen3VLVideoProcessor",
        },
        "generation_config.json": {
            **_QWEN_STOPS,
            "repetition_penalty": 1.0,
            "temperature": 0.7,
            "top_k": 20,
            "top_p": 0.8,
        },
        "chat_template.json": {"chat_template": _QWEN3},
    }


@dataclass(frozen=True)
class Layout:
    """The text files of a checkpoint, and how it names its weights."""

    config: dict[str, Any]
    files: dict[str, Any]
    tokenizer: Callable[..., None]
    added: list[str]  # tokens after the base vocabulary
    tokens: dict[str, Any] = field(default_factory=dict)  # further keys of tokenizer_config.json
    weight_name: Callable[[str], str] = str
    videos: bool = True


LAYOUTS = {
    "llava-1.5-7b-hf": Layout(
        config={
            **_LLAVA,
            "architectures": ["LlavaForConditionalGeneration"],
            "model_type": "llava",
            "pad_token_id": _LLAMA_IDS["<pad>"],
            "text_config": _VICUNA_TEXT,
            "vision_config": _clip(336),
        },
        files={
            "preprocessor_config.json": _clip_pixels(336, "LlavaProcessor", "CLIPImageProcessor"),
            "processor_config.json": {**_COUNTED, "processor_class": "LlavaProcessor"},
            "generation_config.json": {**_LLAVA_GENERATION, "pad_token_id": _LLAMA_IDS["<pad>"]},
            "chat_template.json": {"chat_template": _VICUNA},
        },
        tokenizer=_llama_tokenizer,
        added=["<image>", "<pad>"],
        tokens={"pad_token": "<pad>", "processor_class": "LlavaProcessor", "padding_side": "left"},
        weight_name=_old_llava,
        videos=False,
    ),
    "llava-v1.6-vicuna-7b-hf": Layout(
        config={**_NEXT, "text_config": _VICUNA_TEXT},
        files={
            "preprocessor_config.json": _clip_pixels(
                336,
                "LlavaNextProcessor",
                "LlavaNextImageProcessor",
                image_grid_pinpoints=_NEXT_GRID,
                do_pad=True,
            ),
            "processor_config.json": {**_COUNTED, "processor_class": "LlavaNextProcessor"},
            "generation_config.json": _LLAVA_GENERATION,
            "chat_template.json": {"chat_template": _SYSTEM + _VICUNA},
        },
        tokenizer=_llama_tokenizer,
        added=["<image>", "<pad>"],
        tokens={"pad_token": "<unk>", "processor_class": "LlavaNextProcessor"},
        weight_name=_old_llava,
        videos=False,
    ),
    "llava-v1.6-mistral-7b-hf": Layout(
        config={**_NEXT, "text_config": _MISTRAL_TEXT},
        files={
            "preprocessor_config.json": _clip_pixels(
                336,
                "LlavaNextProcessor",
                "LlavaNextImageProcessor",
                image_grid_pinpoints=_NEXT_GRID,
                do_pad=True,
            ),
            "processor_config.json": {**_COUNTED, "processor_class": "LlavaNextProcessor"},
            "generation_config.json": _LLAVA_GENERATION,
            "chat_template.json": {"chat_template": _MISTRAL},
        },
        tokenizer=_llama_tokenizer,
        added=["<image>", "<pad>"],
        tokens={"pad_token": "<unk>", "processor_class": "LlavaNextProcessor"},
        weight_name=_old_llava,
        videos=False,
    ),
    "Qwen2.5-VL-7B-Instruct": Layout(
        config={
            **_QWEN_TEXT,
            **_QWEN_VISION_IDS,
            "architectures": ["Qwen2_5_VLForConditionalGeneration"],
            "max_position_embeddings": 128000,
            "max_window_layers": 28,
            "model_type": "qwen2_5_vl",
            "rope_scaling": {"mrope_section": [2, 3, 3], "type": "mrope"},
            "rope_theta": 1000000.0,
            "sliding_window": 32768,
            "tie_word_embeddings": False,
            "torch_dtype": "bfloat16",
            "use_sliding_window": False,
            "vision_config": {
                **_QWEN_TOWER,
                "depth": 4,
                "fullatt_block_indexes": [1, 3],
                "hidden_act": "silu",
                "in_chans": 3,
                "patch_size": 14,
                "spatial_patch_size": 14,
                "tokens_per_second": 2,
                "window_size": 112,
            },
            "vision_token_id": _QWEN_IDS["<|vision_pad|>"],
        },
        files={
            "preprocessor_config.json": {
                **_QWEN_PATCHES,
                **_IMAGE_MEAN,
                "image_processor_type": "Qwen2VLImageProcessor",
                "max_pixels": 12845056,
                "min_pixels": 3136,
                "patch_size": 14,
                "processor_class": "Qwen2_5_VLProcessor",
            },
            "generation_config.json": {
                **_QWEN_STOPS,
                "repetition_penalty": 1.05,
                "temperature": 0.000001,
            },
            "chat_template.json": {"chat_template": _QWEN2_5},
        },
        tokenizer=_qwen_tokenizer,
        added=_QWEN_ADDED,
        tokens={"chat_template": _QWEN2_5},
        weight_name=_old_qwen,
    ),
    "Qwen3-VL-2B-Instruct": Layout(
        _qwen3_vl(tied=True), _qwen3_files(), _qwen_tokenizer, _QWEN_ADDED
    ),
    "Qwen3-VL-8B-Instruct": Layout(
        _qwen3_vl(tied=False), _qwen3_files(), _qwen_tokenizer, _QWEN_ADDED
    ),
    "Video-LLaVA-7B-hf": Layout(  # no chat template, and one file for both image processors
        config={
            **_LLAVA,
            "architectures": ["VideoLlavaForConditionalGeneration"],
            "image_token_index": _VIDEO_IDS["<image>"],
            "model_type": "video_llava",
            "text_config": _VICUNA_TEXT,
            "video_token_index": _VIDEO_IDS["<video>"],
            "vision_config": _clip(224),
        },
        files={
            "preprocessor_config.json": _clip_pixels(
                224, "VideoLlavaProcessor", "VideoLlavaImageProcessor"
            ),
            "processor_config.json": {"processor_class": "VideoLlavaProcessor"},
            "generation_config.json": _LLAVA_GENERATION,
        },
        tokenizer=_llama_tokenizer,
        added=["<image>", "<video>", "<pad>"],
        tokens={"pad_token": "<pad>", "processor_class": "VideoLlavaProcessor"},
        weight_name=_old_llava,
    ),
    "llava-onevision-qwen2-7b-ov-hf": Layout(
        config={
            "architectures": ["LlavaOnevisionForConditionalGeneration"],
            "ignore_index": -100,
            "image_grid_pinpoints": [
                [384 * rows, 384 * columns] for rows in range(1, 7) for columns in range(1, 7)
            ],
            "image_token_index": _ONEVISION_IDS["<image>"],
            "model_type": "llava_onevision",
            "projector_hidden_act": "gelu",
            "text_config": {
                **_TEXT,
                "architectures": ["Qwen2ForCausalLM"],
                "bos_token_id": _ONEVISION_IDS["<|endoftext|>"],
                "eos_token_id": _ONEVISION_IDS["<|im_end|>"],
                "max_position_embeddings": 32768,
                "max_window_layers": 28,
                "model_type": "qwen2",
                "num_key_value_heads": 2,
                "rope_theta": 1000000.0,
                "sliding_window": 131072,
                "torch_dtype": "bfloat16",
                "use_sliding_window": False,
                "vocab_size": len(_ONEVISION_IDS) + 16,
            },
            "tie_word_embeddings": False,
            "torch_dtype": "float16",
            "use_image_newline_parameter": True,
            "video_token_index": _ONEVISION_IDS["<video>"],
            "vision_aspect_ratio": "anyres_max_9",
            "vision_config": {
                **_TOWER,
                "image_size": 384,
                "model_type": "siglip_vision_model",
                "patch_size": 14,
                "vision_use_head": False,
            },
            "vision_feature_layer": -1,
            "vision_feature_select_strategy": "full",
        },
        files={
            "preprocessor_config.json": {
                **_STEPS,
                **_HALF,
                "do_pad": True,
                "image_grid_pinpoints": [
                    [384 * rows, 384 * columns] for rows in range(1, 7) for columns in range(1, 7)
                ],
                "image_processor_type": "LlavaOnevisionImageProcessor",
                "processor_class": "LlavaOnevisionProcessor",
                "size": {"height": 384, "width": 384},
            },
            "video_processor/preprocessor_config.json": {
                **_STEPS,
                **_HALF,
                "image_processor_type": "LlavaOnevisionVideoProcessor",
                "processor_class": "LlavaOnevisionProcessor",
                "size": {"height": 384, "width": 384},
            },
            "processor_config.json": {
                "image_token": "<image>",
                "num_image_tokens": 729,
                "processor_class": "LlavaOnevisionProcessor",
                "video_token": "<video>",
                "vision_feature_select_strategy": "full",
            },
            "generation_config.json": {
                "bos_token_id": _ONEVISION_IDS["<|endoftext|>"],
                "do_sample": True,
                "eos_token_id": [_ONEVISION_IDS["<|im_end|>"], _ONEVISION_IDS["<|endoftext|>"]],
                "pad_token_id": _ONEVISION_IDS["<|endoftext|>"],
                "repetition_penalty": 1.05,
                "temperature": 0.7,
                "top_k": 20,
                "top_p": 0.8,
            },
            "chat_template.json": {"chat_template": _ONEVISION},
        },
        tokenizer=_qwen_tokenizer,
        added=_ONEVISION_ADDED,
        weight_name=_old_llava,
    ),
}


def save(name: str, folder: Path) -> Path:
    """Write the checkpoint of this name, with random weights in two shards."""
    layout = LAYOUTS[name]
    folder = folder / name
    folder.mkdir(parents=True)
    _write(folder / "config.json", layout.config)
    for path, content in layout.files.items():
        _write(folder / path, content)
    layout.tokenizer(folder, layout.added, **layout.tokens)
    config: Any = AutoConfig.from_pretrained(folder)
    dtype = config.dtype or config.get_text_config().dtype
    model = tiny.build(config, dtype=dtype)
    weights = {
        layout.weight_name(key): value.contiguous()
        for key, value in model.state_dict().items()
        if not (config.tie_word_embeddings and key == "lm_head.weight")
    }
    _write_shards(folder, weights)
    return folder


def _write_shards(folder: Path, weights: dict[str, torch.Tensor]) -> None:
    names = sorted(weights)
    shards = names[: len(names) // 2], names[len(names) // 2 :]
    index = {}
    for number, shard in enumerate(shards, 1):
        file = f"model-{number:05}-of-{len(shards):05}.safetensors"
        save_file({key: weights[key] for key in shard}, folder / file, metadata={"format": "pt"})
        index |= dict.fromkeys(shard, file)
    size = sum(value.numel() * value.element_size() for value in weights.values())
    _write(
        folder / "model.safetensors.index.json",
        {"metadata": {"total_size": size}, "weight_map": index},
    )


def _write(path: Path, content: Any) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(content, indent=2))

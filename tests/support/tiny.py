"""Every model family in miniature: the real classes with random weights, without files or a hub.

A tiny model keeps the features that make its family hard to compress: CLS tokens, crops, unpadding
and newlines, pooling, windows, M-RoPE, DeepStack. Its patches have 4 pixels a side, so that a few
dozen of them fit a thumbnail.

    model = tiny.model("llava")
    inputs = tiny.inputs("llava", [{"text": "What?", "images": [tiny.image(30, 20)]}])
    model.generate(**inputs, max_new_tokens=8)
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import transformers as hf
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from torch import nn

# Pixels a side: a patch, CLIP's input (6 x 6 patches), SigLIP's (5 x 5: odd).
PATCH, TILE, SQUARE = 4, 24, 20
BOS, EOS, PAD = "<s>", "</s>", "<pad>"
_IMAGE, _VIDEO = "<image>", "<video>"
_QWEN_IMAGE, _QWEN_VIDEO = "<|image_pad|>", "<|video_pad|>"
_SPECIAL = (
    BOS,
    EOS,
    PAD,
    _IMAGE,
    _VIDEO,
    _QWEN_IMAGE,
    _QWEN_VIDEO,
    "<|vision_start|>",
    "<|vision_end|>",
)
_SPECIAL += ("<|im_start|>", "<|im_end|>")
_ALPHABET = sorted(pre_tokenizers.ByteLevel.alphabet())
_ID = {token: index for index, token in enumerate([*_ALPHABET, *_SPECIAL])}
_PLACEHOLDERS = [_ID[token] for token in (_IMAGE, _VIDEO, _QWEN_IMAGE, _QWEN_VIDEO)]

_VICUNA = (
    "{% for message in messages %}{{ message['role'] | upper }}: "
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'text' %}{{ part['text'] }}{% else %}<{{ part['type'] }}>\n{% endif %}"
    "{% endfor %} {% endfor %}{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)
_CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'text' %}{{ part['text'] }}{% else %}MEDIUM{% endif %}"
    "{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_CHATML_OV = _CHATML.replace("MEDIUM", "<{{ part['type'] }}>\n")
_CHATML_QWEN = _CHATML.replace("MEDIUM", "<|vision_start|><|{{ part['type'] }}_pad|><|vision_end|>")

_TEXT: dict[str, Any] = {
    "vocab_size": len(_ID),
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 4096,
    "bos_token_id": _ID[BOS],
    "eos_token_id": _ID[EOS],
    "pad_token_id": _ID[PAD],
}
_VISION: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "patch_size": PATCH,
}
_QWEN_VISION: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "depth": 4,
    "num_heads": 4,
    "patch_size": PATCH,
    "out_hidden_size": _TEXT["hidden_size"],
}
_QWEN_IDS = {
    "image_token_id": _ID[_QWEN_IMAGE],
    "video_token_id": _ID[_QWEN_VIDEO],
    "vision_start_token_id": _ID["<|vision_start|>"],
    "vision_end_token_id": _ID["<|vision_end|>"],
}
_QWEN_SIZE = {
    "shortest_edge": 4 * (2 * PATCH) ** 2,
    "longest_edge": 64 * (2 * PATCH) ** 2,
}  # 4 to 64 tokens
_FRAMES_AS_THEY_ARE: dict[str, Any] = {"do_sample_frames": False, "cap_pixels_per_frame": False}
_CLS_DROPPED: dict[str, Any] = {
    "patch_size": PATCH,
    "vision_feature_select_strategy": "default",
    "num_additional_image_tokens": 1,
}
_CLIP_SIZE: dict[str, Any] = {
    "size": {"shortest_edge": TILE},
    "crop_size": {"height": TILE, "width": TILE},
}


def _grid(side: int, tiles: Sequence[tuple[int, int]]) -> list[list[int]]:
    return [[side * rows, side * columns] for rows, columns in tiles]


_NEXT_GRID = _grid(TILE, [(1, 2), (2, 1), (2, 2), (3, 1), (1, 3)])
_OV_GRID = _grid(SQUARE, [(rows, columns) for rows in (1, 2, 3) for columns in (1, 2, 3)])
_OV_ASPECT = "anyres_max_4"  # of 3 x 3 tiles: the largest images are scaled down


def _clip() -> hf.PreTrainedConfig:
    return hf.CLIPVisionConfig(**_VISION, image_size=TILE, projection_dim=32)


def _llava() -> hf.PreTrainedConfig:
    return hf.LlavaConfig(
        vision_config=_clip(),
        text_config=hf.LlamaConfig(**_TEXT),
        image_token_index=_ID[_IMAGE],
        image_seq_length=36,
    )


def _llava_next() -> hf.PreTrainedConfig:
    return hf.LlavaNextConfig(
        vision_config=_clip(),
        text_config=hf.LlamaConfig(**_TEXT),
        image_token_index=_ID[_IMAGE],
        image_seq_length=36,
        image_grid_pinpoints=_NEXT_GRID,
    )


def _video_llava() -> hf.PreTrainedConfig:
    return hf.VideoLlavaConfig(
        vision_config=_clip(),
        text_config=hf.LlamaConfig(**_TEXT),
        image_token_index=_ID[_IMAGE],
        video_token_index=_ID[_VIDEO],
        image_seq_length=36,
        video_seq_length=8 * 37,
    )


def _qwen2_5_vl() -> hf.PreTrainedConfig:
    vision = {
        **_QWEN_VISION,
        "window_size": 4 * PATCH,
        "fullatt_block_indexes": [1, 3],
    }  # windows: 2 x 2 tokens
    rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 3, 3]}
    return hf.Qwen2_5_VLConfig(
        vision_config=vision, text_config={**_TEXT, "rope_parameters": rope}, **_QWEN_IDS
    )


def _qwen3_vl() -> hf.PreTrainedConfig:
    vision = {**_QWEN_VISION, "num_position_embeddings": 64, "deepstack_visual_indexes": [0, 1, 2]}
    rope = {
        "rope_type": "default",
        "rope_theta": 1e4,
        "mrope_section": [4, 2, 2],
        "mrope_interleaved": True,
    }
    text = {**_TEXT, "head_dim": 16, "rope_parameters": rope}
    return hf.Qwen3VLConfig(vision_config=vision, text_config=text, **_QWEN_IDS)


def _llava_onevision() -> hf.PreTrainedConfig:
    return hf.LlavaOnevisionConfig(
        vision_config=hf.SiglipVisionConfig(**_VISION, image_size=SQUARE, vision_use_head=False),
        text_config=hf.Qwen2Config(**_TEXT),
        image_token_index=_ID[_IMAGE],
        video_token_index=_ID[_VIDEO],
        image_grid_pinpoints=_OV_GRID,
        vision_aspect_ratio=_OV_ASPECT,
    )


def _llava_processor(**parts: Any) -> hf.ProcessorMixin:
    image_processor = hf.CLIPImageProcessor(**_CLIP_SIZE)
    return hf.LlavaProcessor(image_processor, **parts, **_CLS_DROPPED)


def _llava_next_processor(**parts: Any) -> hf.ProcessorMixin:
    image_processor = hf.LlavaNextImageProcessor(**_CLIP_SIZE, image_grid_pinpoints=_NEXT_GRID)
    return hf.LlavaNextProcessor(image_processor, **parts, **_CLS_DROPPED)


def _video_llava_processor(**parts: Any) -> hf.ProcessorMixin:
    images, videos = (
        hf.VideoLlavaImageProcessor(**_CLIP_SIZE),
        hf.VideoLlavaVideoProcessor(**_CLIP_SIZE),
    )
    return hf.VideoLlavaProcessor(images, videos, **parts, **_CLS_DROPPED)


def _qwen2_5_vl_processor(**parts: Any) -> hf.ProcessorMixin:
    images = hf.Qwen2VLImageProcessor(size=_QWEN_SIZE, patch_size=PATCH)
    videos = hf.Qwen2VLVideoProcessor(size=_QWEN_SIZE, patch_size=PATCH, **_FRAMES_AS_THEY_ARE)
    return hf.Qwen2_5_VLProcessor(images, video_processor=videos, **parts)


def _qwen3_vl_processor(**parts: Any) -> hf.ProcessorMixin:
    images = hf.Qwen2VLImageProcessor(size=_QWEN_SIZE, patch_size=PATCH)
    size = {
        "shortest_edge": 8 * (2 * PATCH) ** 2,
        "longest_edge": 256 * (2 * PATCH) ** 2,
    }  # of all frames together
    videos = hf.Qwen3VLVideoProcessor(size=size, patch_size=PATCH, **_FRAMES_AS_THEY_ARE)
    return hf.Qwen3VLProcessor(images, video_processor=videos, **parts)


def _llava_onevision_processor(**parts: Any) -> hf.ProcessorMixin:
    size = {"height": SQUARE, "width": SQUARE}
    return hf.LlavaOnevisionProcessor(
        hf.LlavaOnevisionImageProcessor(size=size, image_grid_pinpoints=_OV_GRID),
        video_processor=hf.LlavaOnevisionVideoProcessor(size=size),
        num_image_tokens=(SQUARE // PATCH) ** 2,
        vision_feature_select_strategy="full",
        vision_aspect_ratio=_OV_ASPECT,
        **parts,
    )


class _Family(NamedTuple):
    config: Callable[[], hf.PreTrainedConfig]
    processor: Callable[..., hf.ProcessorMixin]
    template: str
    videos: bool


_FAMILIES = {
    "llava": _Family(_llava, _llava_processor, _VICUNA, videos=False),
    "llava_next": _Family(_llava_next, _llava_next_processor, _VICUNA, videos=False),
    "qwen2_5_vl": _Family(_qwen2_5_vl, _qwen2_5_vl_processor, _CHATML_QWEN, videos=True),
    "video_llava": _Family(_video_llava, _video_llava_processor, _VICUNA, videos=True),
    "qwen3_vl": _Family(_qwen3_vl, _qwen3_vl_processor, _CHATML_QWEN, videos=True),
    "llava_onevision": _Family(
        _llava_onevision, _llava_onevision_processor, _CHATML_OV, videos=True
    ),
}
FAMILIES = tuple(_FAMILIES)
VIDEO_FAMILIES = tuple(name for name, family in _FAMILIES.items() if family.videos)


def _weights(model: nn.Module, seed: int) -> None:
    """Set random weights that depend on a parameter's name, not on transformers' initialisers.

    Every layer's output has the scale of its input, embeddings are small, and attention is far from
    uniform: logits then depend on images, tokens and positions. With the usual deviation of 0.02
    every row would get the same answer.
    """
    embeddings = {
        id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)
    }
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            draw = np.random.default_rng([seed, zlib.crc32(name.encode())]).standard_normal(
                parameter.shape
            )
            value = torch.from_numpy(draw)
            if id(parameter) in embeddings:
                value *= 0.25
            elif parameter.dim() > 1:
                value *= 1.3 / parameter[0].numel() ** 0.5
            elif name.endswith("bias"):
                value *= 0.1
            elif "norm" in name or name.endswith("ln_q.weight"):
                value = 1 + 0.1 * value
            parameter.copy_(value)


def model(
    family: str, attn: str = "sdpa", dtype: torch.dtype = torch.float32, seed: int = 0
) -> hf.PreTrainedModel:
    """Build a tiny model in evaluation mode, with the same weights for the same `seed`.

    `attn` may also name an attention function that a test has registered. It is set on the built
    model, because transformers looks for kernels if a name has "flash" in it. The model never
    generates a placeholder: a random model would, and that breaks `generate(use_cache=False)`.
    """
    return build(_FAMILIES[family].config(), attn, dtype, seed)


def build(
    config: hf.PreTrainedConfig,
    attn: str = "sdpa",
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
) -> hf.PreTrainedModel:
    """Build a tiny model from a config."""
    built = hf.AutoModelForImageTextToText.from_config(config, dtype=dtype).eval()
    built.config._attn_implementation = attn
    _weights(built, seed)
    built.generation_config = hf.GenerationConfig(
        bos_token_id=_ID[BOS],
        eos_token_id=_ID[EOS],
        pad_token_id=_ID[PAD],
        do_sample=False,
        suppress_tokens=_PLACEHOLDERS,
    )
    return built


def tokenizer(begin: bool) -> hf.PreTrainedTokenizerFast:
    """One token per byte, and the special tokens of all families.

    begin: every text starts with BOS, as in Llama
    """
    backend = Tokenizer(models.BPE(vocab={token: _ID[token] for token in _ALPHABET}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(list(_SPECIAL))
    if begin:
        backend.post_processor = processors.TemplateProcessing(
            single=f"{BOS} $A", pair=f"{BOS} $A {BOS} $B", special_tokens=[(BOS, _ID[BOS])]
        )
    return hf.PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token=BOS, eos_token=EOS, pad_token=PAD, padding_side="left"
    )


def config(family: str) -> hf.PreTrainedConfig:
    """The config of a family's tiny model."""
    return _FAMILIES[family].config()


def processor(
    family: str,
    words: hf.PreTrainedTokenizerFast | None = None,
    template: str | None = None,
) -> hf.ProcessorMixin:
    """The processor of a family: tokenizer, image processor, chat template, any video processor.

    words: another tokenizer; `template` is then the chat template
    """
    spec = _FAMILIES[family]
    if words is not None:
        return spec.processor(tokenizer=words, chat_template=template)
    return spec.processor(
        tokenizer=tokenizer(begin=spec.template == _VICUNA), chat_template=spec.template
    )


def save(family: str, folder: str | Path, seed: int = 0) -> Path:
    """Save model and processor as one checkpoint folder, which the Auto classes load."""
    model(family, seed=seed).save_pretrained(folder)
    processor(family).save_pretrained(folder)
    return Path(folder)


def image(width: int, height: int, seed: int = 0) -> Image.Image:
    """Smooth blobs with noise: near patches are alike, far ones differ, two seeds share nothing."""
    rng = np.random.default_rng([seed, width, height])
    coarse = Image.fromarray(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8))
    smooth = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC), dtype=np.float64)
    noisy = smooth + rng.normal(0, 25, smooth.shape)
    return Image.fromarray(noisy.clip(0, 255).astype(np.uint8))


def video(frames: int, width: int, height: int, seed: int = 0) -> np.ndarray:
    """A picture that slides and fades into another one: bytes (frames, height, width, 3)."""
    first, last = (
        np.asarray(image(width, height, 2 * seed + end), dtype=np.float64) for end in (0, 1)
    )
    mix = np.linspace(0, 1, frames)
    slid = [
        np.roll((1 - share) * first + share * last, step, axis=1) for step, share in enumerate(mix)
    ]
    return np.stack(slid).astype(np.uint8)


def prompt(processor: hf.ProcessorMixin, row: dict[str, Any]) -> str:
    """The chat template's text for a row.

    Media go where the row's text has `<image>` and `<video>`, or before a text that has neither.
    """
    text = row["text"]
    if not re.search("<image>|<video>", text):
        text = (
            "<image>" * len(row.get("images", ())) + "<video>" * len(row.get("videos", ())) + text
        )
    parts = [part for part in re.split("(<image>|<video>)", text) if part]
    content = [
        {"type": part[1:-1]} if part in ("<image>", "<video>") else {"type": "text", "text": part}
        for part in parts
    ]
    return processor.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True
    )


def inputs(family: str, rows: Sequence[dict[str, Any]]) -> hf.BatchFeature:
    """A left-padded batch for `model.generate`.

    rows: each `{"text": ..., "images": [...], "videos": [...]}`
    """
    build = processor(family)
    images = [list(row.get("images", ())) for row in rows]
    videos = [clip for row in rows for clip in row.get("videos", ())]
    media: dict[str, Any] = {}
    if any(images):
        media["images"] = images
    if videos:
        media["videos"] = videos
        media["video_metadata"] = [
            {"fps": 2.0, "total_num_frames": len(clip), "frames_indices": list(range(len(clip)))}
            for clip in videos
        ]
    texts = [prompt(build, row) for row in rows]
    return build(text=texts, **media, padding=True, return_tensors="pt")

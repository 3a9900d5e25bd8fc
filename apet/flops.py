"""Count the arithmetic of a prefill from shapes: the upper limit of a schedule's savings.

It counts the floating-point operations of the matrix products, two for a multiply-add:

- vision: the patch embedding, then every layer: 2 x weights x tokens for its linear maps, and
  4 x heads x head_dim for each pair of tokens that attend (score, weighted value). Tokens attend
  within a group (image, crop, frame) or a window of it; a window at an image's edge counts as full.
  LLaVA reads the last layer but one, but the last runs as well.
- projector: 2 x weights a visual token, of all tokens or only those kept at the encoder's output.
- decoder: layers as above, for the text and the visual tokens of the schedule. Attention is causal:
  n tokens make n (n + 1) / 2 pairs, as in flash attention; kernels that compute the full square and
  mask half of it do more. The vocabulary is read out at the last position only.

It omits norms, activations, softmax, rotary embeddings and the compression itself (2 x N x (basis +
kept) x width, 0.13 GFLOP for 576 tokens to 96). Together they are below 1 %.

The TFLOPs of the paper's Table 7 (POPE) fit if the vision encoder is counted and a prompt has 576
visual and 66 text tokens for LLaVA-1.5, 740 and 56 for Qwen2.5-VL. VisionZip keeps its whole budget
at the encoder. (The lengths 66, 740 and 56 are inferred from the table. Full squares instead of
causal halves would still fit within 3 %.)

    model           method     schedule             ours   paper
    llava-1.5-7b    vanilla    full                 8.83    8.82   +0.1 %
    llava-1.5-7b    ApET       encoder=96,16=32     2.07    2.09   -0.7 %
    llava-1.5-7b    VisionZip  encoder=64           2.07    2.03   +2.1 %
    qwen2.5-vl-7b   vanilla    full                14.53   14.52   +0.1 %
    qwen2.5-vl-7b   ApET       encoder=111,14=37    5.71    5.70   +0.2 %
    qwen2.5-vl-7b   VisionZip  encoder=74           5.71    5.68   +0.6 %
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from math import ceil
from types import MappingProxyType
from typing import Any

from apet.schedule import Schedule


@dataclass(frozen=True)
class Stack:
    """The transformer layers of a vision encoder or a decoder."""

    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int  # fewer than heads where queries share keys and values
    head_dim: int
    gated: bool  # the MLP multiplies its up projection by a gate

    @property
    def weights(self) -> int:
        """Weights of one layer's linear maps: query and output, key and value, MLP."""
        attention = 2 * self.hidden * self.head_dim * (self.heads + self.kv_heads)
        return attention + (3 if self.gated else 2) * self.hidden * self.intermediate

    def layer_flops(self, tokens: float, pairs: float) -> float:
        return 2 * self.weights * tokens + 4 * self.heads * self.head_dim * pairs


@dataclass(frozen=True)
class ModelShape:
    """The sizes of a vision-language model that the cost of its prefill depends on."""

    vision: Stack
    patch_dim: int  # numbers in a patch: channels x height x width (x frames)
    projector: tuple[int, ...]  # widths, from the input of a visual token to the decoder's size
    decoder: Stack
    vocab: int
    group_tokens: int | None  # visual tokens of an image, crop or frame; None: dynamic resolution
    patches_per_token: int = 1  # patches merged into a visual token
    class_tokens: int = 0  # of a group, beside its patches
    projects_first: bool = False  # the encoder's site is after the projector and saves none of it
    window: int | None = None  # patches of a window; None: all tokens of a group attend
    full_attention: tuple[int, ...] = ()  # vision layers without windows


@dataclass(frozen=True)
class Flops:
    """Floating-point operations of one row's prefill."""

    vision: float
    projector: float
    decoder: float

    @property
    def total(self) -> float:
        return self.vision + self.projector + self.decoder


def prefill_flops(
    model_shape: ModelShape, schedule: Schedule, text_tokens: int, *, groups: int | None = None
) -> Flops:
    """The operations from pixel values to the first logits.

    text_tokens: all tokens of the prompt outside the budget: words, class tokens, newlines of crops
    groups:      images, crops or frames to encode. The default is as many as the visual tokens
                 fill, or one where resolution is dynamic; give it for several images a prompt, for
                 videos, and where padding was cut away
    """
    vision, decoder, visual_tokens = model_shape.vision, model_shape.decoder, schedule.visual_tokens
    deepest = max((site.layer for site in schedule.sites if site.stage == "vision"), default=0)
    if schedule.layers != decoder.layers or deepest >= vision.layers:
        raise ValueError(
            f"the schedule '{schedule}' (of {schedule.layers} decoder layers) is for another model:"
            f" this one has {vision.layers} vision and {decoder.layers} decoder layers; make a"
            " schedule with these"
        )
    if text_tokens < 0 or (groups is not None and groups < 1):
        raise ValueError(
            f"not a valid prompt: text_tokens={text_tokens}, groups={groups}; expected 0 or more"
            " text tokens and 1 or more groups"
        )
    lengths = [schedule.tokens_at(layer) + text_tokens for layer in range(decoder.layers)]
    decoding = sum(decoder.layer_flops(length, length * (length + 1) / 2) for length in lengths)
    decoding += 2 * decoder.hidden * model_shape.vocab
    if not visual_tokens:
        return Flops(0.0, 0.0, decoding)
    size = model_shape.group_tokens
    groups = groups or (ceil(visual_tokens / size) if size else 1)
    encoded = groups * size if size else visual_tokens  # a crop is encoded with its padding
    if model_shape.projects_first:
        projected_tokens = schedule.tokens_at(vision.layers - 1, "vision")
    else:
        projected_tokens = schedule.tokens_at(0, "encoder")
    projected = encoded * projected_tokens / visual_tokens
    widths = pairwise(model_shape.projector)
    return Flops(
        vision=groups * _encoder(model_shape, schedule, encoded / groups),
        projector=2 * projected * sum(inputs * outputs for inputs, outputs in widths),
        decoder=decoding,
    )


def _encoder(shape: ModelShape, schedule: Schedule, group_tokens: float) -> float:
    """The vision encoder on one group. Sites inside it thin all groups and windows alike."""
    patches = group_tokens * shape.patches_per_token
    flops = 2.0 * shape.patch_dim * shape.vision.hidden * patches
    for layer in range(shape.vision.layers):
        share = schedule.tokens_at(layer, "vision") / schedule.visual_tokens
        length = share * patches + shape.class_tokens
        window = None if layer in shape.full_attention else shape.window
        attended = length if window is None else min(length, share * window)
        flops += shape.vision.layer_flops(length, length * attended)
    return flops


def shape_of(config: Any) -> ModelShape:
    """The sizes in a transformers config of any supported family."""
    text, vision, kind = config.get_text_config(), config.vision_config, config.model_type
    heads = text.num_attention_heads
    decoder = Stack(
        layers=text.num_hidden_layers,
        hidden=text.hidden_size,
        intermediate=text.intermediate_size,
        heads=heads,
        kv_heads=getattr(text, "num_key_value_heads", None) or heads,
        head_dim=getattr(text, "head_dim", None) or text.hidden_size // heads,
        gated=True,
    )
    width, dynamic = vision.hidden_size, hasattr(vision, "depth")
    vision_heads = vision.num_heads if dynamic else vision.num_attention_heads
    encoder = Stack(
        layers=vision.depth if dynamic else vision.num_hidden_layers,
        hidden=width,
        intermediate=vision.intermediate_size,
        heads=vision_heads,
        kv_heads=vision_heads,
        head_dim=width // vision_heads,
        gated=kind == "qwen2_5_vl",
    )
    if not dynamic:
        return ModelShape(
            vision=encoder,
            patch_dim=3 * vision.patch_size**2,
            projector=(width, text.hidden_size, text.hidden_size),
            decoder=decoder,
            vocab=text.vocab_size,
            group_tokens=(vision.image_size // vision.patch_size) ** 2,
            class_tokens=int("clip" in vision.model_type),
            projects_first=kind not in ("llava", "llava_next"),
        )
    merged = vision.spatial_merge_size**2
    window_size = getattr(vision, "window_size", None)
    return ModelShape(
        vision=encoder,
        patch_dim=3 * vision.temporal_patch_size * vision.patch_size**2,
        projector=(merged * width, merged * width, text.hidden_size),
        decoder=decoder,
        vocab=text.vocab_size,
        group_tokens=None,
        patches_per_token=merged,
        projects_first=True,
        window=(window_size // vision.patch_size) ** 2 if window_size else None,
        full_attention=tuple(getattr(vision, "fullatt_block_indexes", ())),
    )


# In the order of `Stack`: layers, hidden, intermediate, heads, kv_heads, head_dim, gated.
_CLIP = Stack(24, 1024, 4096, 16, 16, 64, gated=False)
_VICUNA = Stack(32, 4096, 11008, 32, 32, 128, gated=True)
_QWEN_VISION = Stack(32, 1280, 3420, 16, 16, 80, gated=True)
_QWEN = Stack(28, 3584, 18944, 28, 4, 128, gated=True)
_LLAVA = ModelShape(
    vision=_CLIP,
    patch_dim=3 * 14 * 14,
    projector=(1024, 4096, 4096),
    decoder=_VICUNA,
    vocab=32064,
    group_tokens=24 * 24,
    class_tokens=1,
)
SHAPES: Mapping[str, ModelShape] = MappingProxyType(
    {
        "llava-1.5-7b": _LLAVA,
        "llava-next-7b": _LLAVA,  # the same model, with five crops an image
        "video-llava-7b": replace(_LLAVA, group_tokens=16 * 16, projects_first=True),
        "qwen2.5-vl-7b": ModelShape(
            vision=_QWEN_VISION,
            patch_dim=3 * 2 * 14 * 14,  # a still image fills both frames of a patch
            projector=(4 * 1280, 4 * 1280, 3584),
            decoder=_QWEN,
            vocab=152064,
            group_tokens=None,
            patches_per_token=4,
            projects_first=True,
            window=8 * 8,
            full_attention=(7, 15, 23, 31),
        ),
    }
)

"""Everything that apet reads of transformers' internals: names that any release may change.

The rest of apet takes these names from here. Signatures decide which name holds, not version
numbers. `tests/apet/test_transformers_api.py` checks each assumption and says which function to
mend. `make test-versions` runs the oldest and the newest supported versions.
"""

import inspect
import sys
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from typing import Any, cast

import torch
import transformers
from torch import Tensor, nn
from transformers import (
    AttentionInterface,
    AttentionMaskInterface,
    Cache,
    DynamicCache,
    DynamicLayer,
    GenerationConfig,
)
from transformers.generation.configuration_utils import GenerationMode
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import (
    ALL_MASK_ATTENTION_FUNCTIONS,
    causal_mask_function,
    sdpa_mask,
)
from transformers.utils.generic import is_flash_attention_requested as _is_flash
from transformers.vision_utils import get_vision_window_index

VERSION = transformers.__version__

NEWEST_TESTED = "5.24"
"""The newest transformers that `make test-versions` has passed with: major.minor."""

CACHE_NAMES = ("cache", "past_key_values")
"""Names of the KV cache in calls and outputs, the latest first: 5.24 renamed it."""

ARGUMENTS = {
    "model": ("input_ids", "attention_mask", "position_ids"),
    "decoder": ("input_ids", "inputs_embeds", "attention_mask", "position_ids"),
    "decoder layer": ("hidden_states", "attention_mask", "position_ids", "position_embeddings"),
    "Qwen tower": ("hidden_states", "grid_thw"),
    "Qwen tower block": ("hidden_states", "cu_seqlens", "position_embeddings"),
}
"""Arguments that hooks read or replace, by the role of the called module."""

ATTRIBUTES = {
    "decoder layer": ("self_attn", "input_layernorm"),
    "decoder attention": ("q_proj", "k_proj", "head_dim", "scaling"),
    "CLIP layer": ("self_attn", "layer_norm1"),
    "CLIP attention": ("q_proj", "k_proj", "num_heads", "scale"),
    "Qwen tower block": ("attn", "norm1"),
    "Qwen tower attention": ("qkv", "num_heads", "scaling"),
}
"""Parts of modules from which attention weights are computed again, by the module's role."""

MEDIA_INPUTS = ("pixel_values", "pixel_values_images", "pixel_values_videos", "mm_encoder_outputs")
"""Arguments of a model that bring visual tokens."""

LAYER_OUTPUTS = ("output_hidden_states", "output_attentions")
"""Arguments that request one tensor a layer as output."""


# ---- versions


def is_newer_than_tested(version: str) -> bool:
    return _minor(version) > _minor(NEWEST_TESTED)


def _minor(version: str) -> list[int]:
    return [int(number) for number in version.split(".")[:2]]


_warned: set[str] = set()


def warn_if_untested() -> None:
    """Warn once a process if the installed transformers is newer than those that were tested."""
    if VERSION in _warned or not is_newer_than_tested(VERSION):
        return
    _warned.add(VERSION)
    warnings.warn(
        f"apet is tested with transformers up to {NEWEST_TESTED}, and {VERSION} is installed:"
        " compression may fail there. If it does, install an older one"
        f" (`pip install 'transformers=={NEWEST_TESTED}.*'`); `pytest"
        " tests/apet/test_transformers_api.py` says what has changed",
        stacklevel=3,
    )


# ---- arguments of calls


@cache
def _signature(forward: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    return inspect.signature(forward).parameters


def _parameters(module: nn.Module) -> Mapping[str, inspect.Parameter]:
    # Taken from the class: libraries that spread a model replace the `forward` of its objects.
    return _signature(type(module).forward)


def check_arguments(role: str, module: nn.Module) -> None:
    """Raise RuntimeError unless the module takes the arguments that hooks at this role need."""
    parameters = _parameters(module)
    if missing := [name for name in ARGUMENTS[role] if name not in parameters]:
        raise RuntimeError(
            f"{type(module).__name__} (a {role}) of transformers {VERSION} does"
            f" not take {', '.join(missing)}, which apet's hooks read or replace; install"
            f" transformers {NEWEST_TESTED} or older, or mend the hooks and"
            " apet.transformers_api.ARGUMENTS"
        )


def cache_argument(module: nn.Module) -> str:
    """The name under which the module takes its KV cache."""
    parameters = _parameters(module)
    for name in CACHE_NAMES:
        if name in parameters:
            return name
    raise RuntimeError(
        f"{type(module).__name__} of transformers {VERSION} takes no KV cache"
        f" under a known name ({', '.join(CACHE_NAMES)}); install transformers {NEWEST_TESTED} or"
        " older, or add the new name to apet.transformers_api.CACHE_NAMES"
    )


def cache_input(module: nn.Module, kv_cache: Any) -> dict[str, Any]:
    """The argument that hands the module its KV cache."""
    return {cache_argument(module): kv_cache}


def cache_among(arguments: Mapping[str, Any]) -> Any:
    """The KV cache among a call's arguments, or None. Callers may still use an older name."""
    values = (arguments.get(name) for name in CACHE_NAMES)
    return next((value for value in values if value is not None), None)


def cache_of(output: Any) -> Any:
    """The KV cache in the output of a model or decoder; None without one."""
    name = next((name for name in CACHE_NAMES if hasattr(output, name)), None)
    if name is None:
        raise RuntimeError(
            f"{type(output).__name__} of transformers {VERSION} has no KV cache"
            f" under a known name ({', '.join(CACHE_NAMES)}); add the new name to"
            " apet.transformers_api.CACHE_NAMES"
        )
    return getattr(output, name)


def packed_arguments(ends: Tensor, longest: int) -> dict[str, Any]:
    """Arguments that tell a kernel where packed rows begin and end: (rows + 1,), as int32."""
    return {
        "cu_seq_lens_q": ends,
        "cu_seq_lens_k": ends,
        "max_length_q": longest,
        "max_length_k": longest,
    }


# ---- caches


class FilledLayer(DynamicLayer):
    """A layer of a cache that begins with keys and values (B, H, S, d); for subclasses."""

    keys: Any
    values: Any

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.is_initialized, self.dtype, self.device = True, keys.dtype, keys.device
        self.keys, self.values = keys, values


def make_cache(layers: Sequence[FilledLayer]) -> Cache:
    return Cache(layers=[*layers])


def stores_input_unchanged(kv_cache: Any) -> bool:
    """Whether the layers of this cache are what was put in, on the same device."""
    return type(kv_cache) is DynamicCache and not kv_cache.offloading


# ---- attention


def attention_kernel(config: Any) -> str:
    """The name of the kernel that modules with this config use."""
    name: str = config._attn_implementation
    return name


def uses_flash_attention(config: Any) -> bool:
    """Whether the kernel is a flash attention, which takes packed rows."""
    return bool(_is_flash(config))


def sdpa_attention(*args: Any, **kwargs: Any) -> tuple[Tensor, None]:
    """The kernel "sdpa" of transformers."""
    output: tuple[Tensor, None] = sdpa_attention_forward(*args, **kwargs)
    return output


def set_attention_kernel(config: Any, name: str) -> None:
    """Change the kernel. `set_attn_implementation` would check names and required packages."""
    config._attn_implementation = name


def register_kernel(name: str, kernel: Callable[..., Any]) -> None:
    """Let models be loaded with this kernel; masks are those of SDPA."""
    AttentionInterface.register(name, kernel)
    AttentionMaskInterface.register(name, sdpa_mask)


def missing_parts(role: str, module: nn.Module | None) -> list[str]:
    return [name for name in ATTRIBUTES[role] if not hasattr(module, name)]


def decoder_attention(layer: nn.Module) -> Any:
    """The attention of a decoder layer; ValueError if it does not work as `decoder_heads` does."""
    attention: Any = getattr(layer, "self_attn", None)
    missing = missing_parts("decoder attention", attention)
    missing += missing_parts("decoder layer", layer)
    if not hasattr(sys.modules[type(attention).__module__], "apply_rotary_pos_emb"):
        missing.append("apply_rotary_pos_emb")
    if missing:
        raise ValueError(
            f"attention weights cannot be computed for {type(layer).__name__}: it has no"
            f" {', '.join(missing)}; choose a method that needs none, such as apet"
        )
    return attention


def decoder_heads(layer: nn.Module, kind: str, hidden: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """The layer's queries ("q") or keys ("k") for (B, S, D): (B, heads, S, d), norm and rotary."""
    attention, module = decoder_attention(layer), cast(Any, layer)
    projection = getattr(attention, f"{kind}_proj")
    heads = projection(module.input_layernorm(hidden)).unflatten(-1, (-1, attention.head_dim))
    if (norm := getattr(attention, f"{kind}_norm", None)) is not None:
        heads = norm(heads)
    heads = heads.transpose(1, 2)
    apply_rotary = sys.modules[type(attention).__module__].apply_rotary_pos_emb
    rotated: Tensor = apply_rotary(heads, heads[:, :1], cos, sin)[0]
    return rotated


def decoder_query_heads(layer: nn.Module) -> int:
    attention = decoder_attention(layer)
    return int(attention.q_proj.out_features // attention.head_dim)


def clip_layers(tower: Any) -> list[Any]:
    """The layers of a CLIP or SigLIP tower."""
    return list(tower.encoder.layers)


def has_cls(tower: Any) -> bool:
    """Whether a CLIP or SigLIP tower has a token before its patches."""
    return hasattr(tower.embeddings, "class_embedding")


def clip_key_projection(layer: Any) -> tuple[nn.Module, int]:
    """The module that makes a CLIP layer's keys (tiles, T, D), and the number of their heads."""
    return layer.self_attn.k_proj, layer.self_attn.num_heads


def clip_queries_and_keys(layer: Any, hidden: Tensor, queries: int) -> tuple[Tensor, Tensor, float]:
    """The first queries and all keys (tiles, T, heads, d) of a CLIP layer, and their scale."""
    attention, normed = layer.self_attn, layer.layer_norm1(hidden)
    query, key = attention.q_proj(normed[:, :queries]), attention.k_proj(normed)
    heads = (attention.num_heads, -1)
    return query.unflatten(-1, heads), key.unflatten(-1, heads), attention.scale


def qwen_queries_and_keys(block: Any, hidden: Tensor) -> tuple[Tensor, Tensor, float]:
    """Queries and keys (patches, heads, d) of a Qwen block, without rotary, and their scale."""
    attention = block.attn
    states = attention.qkv(block.norm1(hidden)).view(len(hidden), 3, attention.num_heads, -1)
    query, key, _ = states.unbind(1)
    return query, key, attention.scaling


def sliding_window(layer: nn.Module) -> int | None:
    """How many tokens the layer looks back, itself included; None: to the beginning."""
    attention: Any = getattr(layer, "self_attn", None)
    config = getattr(attention, "config", None)
    window: int | None = getattr(
        attention, "sliding_window", getattr(config, "sliding_window", None)
    )
    return window


def build_causal_mask(
    config: Any, queries: int, valid: Tensor, padded: bool, dtype: torch.dtype
) -> Tensor | None:
    """The mask that the config's kernel takes, for the last `queries` of the columns (B, S).

    padded: whether any of `valid` is false
    """
    batch, keys = valid.shape
    mask: Tensor | None = ALL_MASK_ATTENTION_FUNCTIONS[attention_kernel(config)](
        batch_size=batch,
        q_length=queries,
        kv_length=keys,
        q_offset=keys - queries,
        kv_offset=0,
        mask_function=causal_mask_function,
        attention_mask=valid if padded else None,
        allow_is_causal_skip=not padded,
        dtype=dtype,
        device=valid.device,
        config=config,
    )
    return mask


def window_order(tower: Any, grid: Tensor) -> Tensor:
    """The token, in reading order, at each position of the sequence of a tower with windows."""
    order, _ = get_vision_window_index(
        grid,
        spatial_merge_size=tower.spatial_merge_size,
        window_size=tower.config.window_size,
        patch_size=tower.config.patch_size,
    )
    return order


# ---- generation


def rotary_positions(core: Any, inputs: Mapping[str, Tensor]) -> Tensor | None:
    """Positions (4, B, S) of a prompt of Qwen's, as `generate` computes them: text, then M-RoPE.

    They are computed where `inputs` are. None for a prompt without media.
    """
    mask = inputs.get("attention_mask")
    grids = (inputs.get(name) is not None for name in ("image_grid_thw", "video_grid_thw"))
    if mask is None or inputs.get("mm_token_type_ids") is None or not any(grids):
        return None
    vision: Tensor = core.get_rope_index(**inputs)[0]
    text = (mask.long().cumsum(-1) - 1).masked_fill(mask == 0, 0)
    return torch.cat([text[None], vision])


def prompt_inputs(model: Any, input_ids: Tensor, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The inputs of the first call of the model in `generate`."""
    prepare = model.prepare_inputs_for_generation
    inputs: dict[str, Any] = prepare(input_ids, is_first_iteration=True, **arguments)
    return inputs


def set_prompt_padding(processors: Iterable[Any], padding: Tensor) -> None:
    """Tell logits processors how many padding tokens (B,) the prompts begin with.

    Since 5.24, `generate` tells them about the prompts that it was given.
    """
    for processor in processors:
        if isinstance(getattr(processor, "prompt_ignore_length", None), Tensor):
            processor.prompt_ignore_length = padding


def is_greedy(config: GenerationConfig) -> bool:
    """Whether `generate` would search greedily, over caches that keep all columns."""
    return (
        config.get_generation_mode() == GenerationMode.GREEDY_SEARCH
        and config.cache_implementation in (None, "dynamic")
        and config.num_return_sequences in (None, 1)
    )

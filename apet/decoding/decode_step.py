"""One decode step: a token of each row goes through the decoder.

The decoder is the model's own module, called as the model calls it. The difference from `generate`
is in its inputs: caches with free columns for the answer, so that no step copies them, and a mask
for each layer, since each layer's cache may have another length.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from transformers import Cache

from apet.attach.token_groups import TokenMask
from apet.attention import packed_kernel
from apet.models.base import Family
from apet.transformers_api import attention_kernel, cache_input, set_attention_kernel

# Steps that a cache has free columns for. A longer answer moves to new caches after each so many
# steps: one copy instead of one a step.
MAX_STEPS = 32
_T = TypeVar("_T")


@dataclass
class DecodeState:
    """Everything the next step of a batch needs."""

    layers: Sequence[Any]  # `keys` and `values` (B, H, S_l, d) of each layer
    token_masks: dict[int, TokenMask]  # by the first layer of those that share it
    positions: Tensor  # (..., B, 1) of the next token


def per_layer(by_first: Mapping[int, _T], count: int) -> list[_T]:
    """The values of all layers, from values that hold from some layers on."""
    values: list[_T] = []
    for layer in range(count):
        values.append(by_first[layer] if layer in by_first else values[-1])
    return values


def extend_masks(masks: Mapping[int, TokenMask], steps: int) -> dict[int, TokenMask]:
    """Token masks with `steps` further columns, all valid."""
    return {
        first: TokenMask(torch.cat([valid, valid.new_ones(len(valid), steps)], dim=1), padded)
        for first, (valid, padded) in masks.items()
    }


@contextmanager
def sdpa_attention(decoder: Any) -> Iterator[None]:
    """Use SDPA inside, through the kernel "packed", unless attention is eager.

    A flash kernel gains nothing for one query per row, and the way transformers calls it for padded
    rows, each layer waits for the device to count them.
    """
    eager = attention_kernel(decoder.config) == "eager"
    with kernel_inside(decoder, "eager" if eager else packed_kernel.NAME):
        yield


@contextmanager
def kernel_inside(decoder: Any, name: str) -> Iterator[None]:
    """Use another attention kernel inside."""
    kernel = attention_kernel(decoder.config)
    try:
        set_attention_kernel(decoder.config, name)
        yield
    finally:
        set_attention_kernel(decoder.config, kernel)


def decode_step(
    family: Family, tokens: Tensor, positions: Tensor, cache: Cache, masks: Sequence[Tensor | None]
) -> Tensor:
    """Logits (B, V) after `tokens` (B, 1), which join the cache; `masks` has one for each layer."""
    inputs = [{"attention_mask": mask} for mask in masks]
    return run_decoder(family, tokens, positions, cache, inputs)


def run_decoder(
    family: Family,
    tokens: Tensor,
    positions: Tensor,
    cache: Cache,
    layer_inputs: Sequence[Mapping[str, Any]],
) -> Tensor:
    """Logits (B, V) after the last of `tokens` (B, S), which join the cache.

    An attached method does nothing here: it acts on calls of the whole model, not of its decoder.

    positions:    (..., B, S)
    layer_inputs: for each layer, inputs that replace those of the decoder
    """
    hooks = [
        layer.register_forward_pre_hook(partial(_replace_inputs, inputs), with_kwargs=True)
        for layer, inputs in zip(family.layers, layer_inputs, strict=True)
    ]
    try:
        out = family.decoder(
            input_ids=tokens,
            position_ids=positions,
            use_cache=True,
            **cache_input(family.decoder, cache),
        )
    finally:
        for hook in hooks:
            hook.remove()
    head: Any = family.model.get_output_embeddings()
    logits: Tensor = head(out.last_hidden_state[:, -1])
    return logits


def _replace_inputs(
    inputs: Mapping[str, Any], layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    return args, {**kwargs, **inputs}

"""Causal masks for sequences that were shortened between two layers, in the kernel's own format."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, causal_mask_function


def sliding_window(layer: nn.Module) -> int | None:
    """How many tokens the layer looks back, itself included; None: to the beginning."""
    attention: Any = getattr(layer, "self_attn", None)
    config = getattr(attention, "config", None)
    window: int | None = getattr(
        attention, "sliding_window", getattr(config, "sliding_window", None)
    )
    return window


def causal_mask(
    decoder: Any, depth: int, hidden: Tensor, valid: Tensor, padded: bool, full_length: int
) -> Tensor | None:
    """The mask for layer `depth` and later, for the last Q of S tokens.

    valid:       (B, S) bool: not padding
    padded:      whether any of `valid` is false; known on the host, so that nothing waits for the
                 device
    full_length: tokens that the layers before the first site see. A sliding window is a stretch of
                 those; a kernel that counts the remaining tokens would look back further
    """
    for number, layer in enumerate(decoder.layers[depth:], depth):
        if (window := sliding_window(layer)) is not None and window < full_length:
            raise ValueError(
                f"cannot drop tokens at decoder layer {depth}, of {full_length} with the answer so"
                f" far: layer {number} looks {window} tokens back and would then see other tokens;"
                " spend the budget before the decoder, where a prompt only becomes shorter:"
                " schedule='encoder=10%', or a method that acts there alone"
            )
    queries, keys = hidden.shape[1], valid.shape[1]
    mask: Tensor | None = ALL_MASK_ATTENTION_FUNCTIONS[decoder.config._attn_implementation](
        batch_size=hidden.shape[0],
        q_length=queries,
        kv_length=keys,
        q_offset=keys - queries,
        kv_offset=0,
        mask_function=causal_mask_function,
        attention_mask=valid if padded else None,
        allow_is_causal_skip=not padded,
        dtype=hidden.dtype,
        device=valid.device,
        config=decoder.config,
    )
    return mask

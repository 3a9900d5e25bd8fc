"""The causal mask of a sequence that has become shorter between two layers, as the model's kernel wants it."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, causal_mask_function


def window_of(layer: nn.Module) -> int | None:
    """How many tokens the layer looks back, itself among them; None: to the beginning."""
    attention: Any = getattr(layer, "self_attn", None)
    window: int | None = getattr(
        attention,
        "sliding_window",
        getattr(getattr(attention, "config", None), "sliding_window", None),
    )
    return window


def causal_mask(
    decoder: Any, depth: int, hidden: Tensor, valid: Tensor, padded: bool, whole: int
) -> Tensor | None:
    """For layer `depth` and later ones: the last Q of S tokens, of which `valid` (B, S) are no padding.

    padded: whether any of `valid` is false. Known on the host, so that nothing need wait for the device.
    whole:  tokens that the layers before the first site see: a window is a stretch of those, and a kernel that counts
            its own tokens would look back further
    """
    for number, layer in enumerate(decoder.layers[depth:], depth):
        if (window := window_of(layer)) is not None and window < whole:
            raise ValueError(
                f"tokens are dropped at decoder layer {depth}, of {whole} with the answer so far, and layer {number}"
                f" looks {window} tokens back, which after that are others; spend the budget before the decoder, where"
                " a prompt only becomes shorter: schedule='encoder=10%', or a method that acts there alone"
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

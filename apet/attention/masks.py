"""Causal masks for sequences that were shortened between two layers, in the kernel's own format."""

from typing import Any

from torch import Tensor

from apet.transformers_api import build_causal_mask, sliding_window


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
    return build_causal_mask(decoder.config, hidden.shape[1], valid, padded, hidden.dtype)

"""A batch of unequal rows without its padding, on its way through the decoder's layers.

Where the attention kernel takes packed rows, layers see one sequence (1, T, D), row after row, and no mask: they do no
work for padding. Everything before, between and after them, sites, methods, caches and whoever called the model, sees
the padded batch (B, S, D) as ever. Where each token stands follows from lengths that the host knows: nothing waits.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.utils.generic import is_flash_attention_requested

from apet.attention import packed_kernel
from apet.attention.masks import window_of
from apet.device import copy_async

OUTPUTS = ("output_hidden_states", "output_attentions")  # what can be asked for, one tensor a layer


def takes_packed(decoder: Any, inputs: Mapping[str, Any]) -> bool:
    """Can the layers of this decoder see a prompt with these inputs packed?

    Their kernel must take packed rows, and their cache must keep what it is given as it is until `lay_out`. A window of
    one layer could be narrower than all rows together, and its cache would then lose rows. Hidden states and attention
    that somebody asks for are wanted padded.
    """
    cache = inputs.get("past_key_values")
    asked = (inputs.get(name, getattr(decoder.config, name, False)) for name in OUTPUTS)
    return (
        (cache is None or (type(cache) is DynamicCache and not cache.offloading))
        and all(window_of(layer) is None for layer in decoder.layers)
        and not any(asked)
        and (_is_packed(decoder) or is_flash_attention_requested(decoder.config))
    )


def _is_packed(decoder: Any) -> bool:
    """Is its kernel "packed", and has the device one for it? A mask costs a GPU less than a launch a row."""
    if decoder.config._attn_implementation != packed_kernel.NAME:
        return False
    config, weight = decoder.config, next(decoder.layers.parameters())
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return weight.device.type != "cuda" or packed_kernel.has_flash(
        weight.device, weight.dtype, width
    )


class Unpadded:
    """The T tokens of a padded batch that are no padding.

    layout: (B, S) bool on the host: which those are
    """

    def __init__(self, layout: Tensor, device: torch.device) -> None:
        lengths = layout.sum(dim=1).tolist()
        self._shape = layout.shape
        count = layout.flatten().cumsum(0)
        flat = torch.searchsorted(
            count, torch.arange(1, sum(lengths) + 1)
        )  # where the first, second, ... token stands
        self._place = copy_async(
            torch.stack([flat // layout.shape[1], flat % layout.shape[1]]), device
        )
        ends = copy_async(torch.tensor([0, *accumulate(lengths)], dtype=torch.int32), device)
        self.inputs: dict[str, Any] = {  # what tells a kernel where rows begin and end
            "cu_seq_lens_q": ends,
            "cu_seq_lens_k": ends,
            "max_length_q": max(lengths),
            "max_length_k": max(lengths),
            "row_lengths": lengths,
        }

    def pack(self, padded: Tensor) -> Tensor:
        """(..., B, S, D) to (..., 1, T, D); a leading dimension of one may stand for B."""
        row, column = self._place.to(padded.device)
        whole = padded.expand(*padded.shape[:-3], self._shape[0], -1, -1)
        return whole[..., row, column, :].unsqueeze(-3)

    def pack_last(self, padded: Tensor) -> Tensor:
        """(..., B, S) to (..., 1, T)."""
        return self.pack(padded[..., None])[..., 0]

    def pad(self, packed: Tensor) -> Tensor:
        """(..., 1, T, D) to (..., B, S, D), with zeros for padding."""
        row, column = self._place.to(packed.device)
        padded = packed.new_zeros(*packed.shape[:-3], *self._shape, packed.shape[-1])
        padded[..., row, column, :] = packed[..., 0, :, :]
        return padded

    def lay_out(self, layer: Any) -> None:
        """A cache's layer, which holds the packed keys and values (1, H, T, d): (B, H, S, d), as steps expect them."""
        layer.keys, layer.values = map(self._heads, (layer.keys, layer.values))

    def _heads(self, packed: Tensor) -> Tensor:
        row, column = self._place.to(packed.device)
        padded = packed.new_zeros(self._shape[0], packed.shape[1], self._shape[1], packed.shape[3])
        padded[row, :, column] = packed[0].transpose(0, 1)
        return padded

"""Remove the padding of a batch of unequal rows while it passes through the decoder's layers.

Where the attention kernel takes packed rows, layers see one sequence (1, T, D), row after row, and
no mask: they spend no work on padding. Everything before, between and after them (sites, methods,
caches and the model's caller) sees the padded batch (B, S, D) as usual. The position of each token
follows from lengths that the host knows, so nothing waits for the device.
"""

from collections.abc import Mapping
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from apet.attention import packed_kernel
from apet.device import copy_async
from apet.transformers_api import (
    LAYER_OUTPUTS,
    attention_kernel,
    cache_among,
    packed_arguments,
    sliding_window,
    stores_input_unchanged,
    uses_flash_attention,
)


def can_pack(decoder: Any, inputs: Mapping[str, Any]) -> bool:
    """Whether the layers of this decoder can see a prompt with these inputs packed.

    Their kernel must take packed rows, and their cache must store its input unchanged until
    `unpack_cache`. A layer with a sliding window is excluded: the window could be shorter than all
    rows together, and its cache would then lose rows. Outputs of layers must be padded.
    """
    cache = cache_among(inputs)
    requested = (inputs.get(name, getattr(decoder.config, name, False)) for name in LAYER_OUTPUTS)
    return (
        (cache is None or stores_input_unchanged(cache))
        and all(sliding_window(layer) is None for layer in decoder.layers)
        and not any(requested)
        and (_has_packed_kernel(decoder) or uses_flash_attention(decoder.config))
    )


def _has_packed_kernel(decoder: Any) -> bool:
    """Whether its kernel is "packed", and its device has an implementation for it."""
    config, weight = decoder.config, next(decoder.layers.parameters())
    if attention_kernel(config) != packed_kernel.NAME:
        return False
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    # Without flash, a GPU would need a launch for each row, which costs more than a mask.
    return weight.device.type != "cuda" or packed_kernel.has_flash(
        weight.device, weight.dtype, head_dim
    )


class PackedRows:
    """The T tokens of a padded batch that are not padding.

    layout: (B, S) bool on the host: which tokens those are
    """

    def __init__(self, layout: Tensor, device: torch.device) -> None:
        lengths = layout.sum(dim=1).tolist()
        self._shape = layout.shape
        count = layout.flatten().cumsum(0)
        # The positions of the first, second, ... token in the flat batch.
        flat = torch.searchsorted(count, torch.arange(1, sum(lengths) + 1))
        rows_and_columns = torch.stack([flat // layout.shape[1], flat % layout.shape[1]])
        self._rows_and_columns = copy_async(rows_and_columns, device)
        ends = copy_async(torch.tensor([0, *accumulate(lengths)], dtype=torch.int32), device)
        self.inputs: dict[str, Any] = {  # tell a kernel where rows begin and end
            **packed_arguments(ends, max(lengths)),
            "row_lengths": lengths,
        }

    def pack(self, padded: Tensor) -> Tensor:
        """(..., B, S, D) to (..., 1, T, D); a leading dimension of one may stand for B."""
        row, column = self._rows_and_columns.to(padded.device)
        batch = padded.expand(*padded.shape[:-3], self._shape[0], -1, -1)
        return batch[..., row, column, :].unsqueeze(-3)

    def pack_scalars(self, padded: Tensor) -> Tensor:
        """(..., B, S) to (..., 1, T)."""
        return self.pack(padded[..., None])[..., 0]

    def pad(self, packed: Tensor) -> Tensor:
        """(..., 1, T, D) to (..., B, S, D), with zeros for padding."""
        row, column = self._rows_and_columns.to(packed.device)
        padded = packed.new_zeros(*packed.shape[:-3], *self._shape, packed.shape[-1])
        padded[..., row, column, :] = packed[..., 0, :, :]
        return padded

    def unpack_cache(self, layer: Any) -> None:
        """Pad a cache layer's keys and values: (1, H, T, d) to (B, H, S, d), as steps expect."""
        layer.keys, layer.values = map(self._pad_heads, (layer.keys, layer.values))

    def _pad_heads(self, packed: Tensor) -> Tensor:
        row, column = self._rows_and_columns.to(packed.device)
        padded = packed.new_zeros(self._shape[0], packed.shape[1], self._shape[1], packed.shape[3])
        padded[row, :, column] = packed[0].transpose(0, 1)
        return padded

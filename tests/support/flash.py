"""The contract of flash attention without its kernel.

It takes 2-D masks or none, and packed sequences, and computes rows without padding.

model = tiny.model("llava", attn=flash.NAME)
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import flash_attention_mask

NAME = "reference_flash"  # the "flash" in it makes models pack their inputs as for the kernel


def attend(query: Tensor, key: Tensor, value: Tensor, scale: float, causal: bool) -> Tensor:
    """Attention of one sequence (H, Q, d) to (H, S, d); causal: the last query sees all."""
    weights = query @ key.transpose(1, 2) * scale
    if causal:
        ahead = torch.ones_like(weights[0], dtype=torch.bool).triu(
            key.shape[1] - query.shape[1] + 1
        )
        weights = weights.masked_fill(ahead, -torch.inf)
    return weights.softmax(dim=-1, dtype=torch.float32).to(value.dtype) @ value


def forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    is_causal: bool | None = None,
    cu_seq_lens_q: Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    causal = module.is_causal if is_causal is None else is_causal
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    key, value = (
        states.repeat_interleave(query.shape[1] // states.shape[1], dim=1)
        for states in (key, value)
    )
    out = torch.zeros_like(query)
    if cu_seq_lens_q is not None:
        assert attention_mask is None
        assert len(query) == 1
        for start, end in pairwise(cu_seq_lens_q.tolist()):
            part = slice(start, end)
            out[0, :, part] = attend(
                query[0, :, part], key[0, :, part], value[0, :, part], scale, causal
            )
        return out.transpose(1, 2), None
    valid = torch.ones(len(key), key.shape[2]) if attention_mask is None else attention_mask
    assert valid.shape == (len(key), key.shape[2])
    for row, real in enumerate(valid.bool()):
        queries = real[-query.shape[2] :]
        out[row, :, queries] = attend(
            query[row][:, queries], key[row][:, real], value[row][:, real], scale, causal
        )
    return out.transpose(1, 2), None


AttentionInterface.register(NAME, forward)
AttentionMaskInterface.register(NAME, flash_attention_mask)

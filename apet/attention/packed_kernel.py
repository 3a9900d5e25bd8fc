"""The attention kernel "packed": rows of different lengths, one after the other and nothing between them, in one call.

    model, processor = load(name)  # attn="packed"

On a GPU a call is one launch of PyTorch's own flash kernel for all rows; on a CPU each row goes through SDPA by itself.
Calls that are not of packed rows, those of most vision towers and of steps after the prompt, are SDPA's, as under
"sdpa". `apet/attention/unpadded.py` packs rows, where a method is attached and a GPU has that kernel (not in float32, nor on an
old one). Qwen's vision tower packs its windows and pictures by itself, and hands them over one by one, unless the name
of its kernel says that it takes all at once: `one_launch` says so, where a GPU has that kernel.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel, varlen
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward as sdpa
from transformers.masking_utils import sdpa_mask

NAME = "packed"
TOWER = "packed_flash"  # "flash" is what transformers looks for; the name is no kernel of its own
_TAKES = set(
    inspect.signature(varlen.varlen_attn).parameters
)  # from one PyTorch to the next it takes more
AMPERE = (8, 0)  # the first GPUs with a flash kernel


def forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    is_causal: bool | None = None,
    cu_seq_lens_q: Tensor | None = None,
    cu_seq_lens_k: Tensor | None = None,
    max_length_q: int | None = None,
    max_length_k: int | None = None,
    row_lengths: Sequence[int] | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention (B, S, H, d) of a module's queries (B, H, S, d) to its keys and values (B, H_kv, S, d).

    row_lengths: of packed rows, (1, H, T, d), how long each is; where they begin and end is `cu_seq_lens_q` (rows + 1),
                 which is all that a vision tower tells
    """
    packed = row_lengths is not None or attention_mask is None
    if not packed or cu_seq_lens_q is None or max_length_q is None:
        return sdpa(
            module,
            query,
            key,
            value,
            attention_mask,
            scaling=scaling,
            is_causal=is_causal,
            **kwargs,
        )
    if has_flash(query.device, query.dtype, query.shape[-1]):
        causal = bool(getattr(module, "is_causal", True) if is_causal is None else is_causal)
        return _flash(query, key, value, cu_seq_lens_q, int(max_length_q), scaling, causal), None
    if row_lengths is None:
        row_lengths = cu_seq_lens_q.diff().tolist()
    rows = zip(
        *(states.split(list(row_lengths), dim=2) for states in (query, key, value)), strict=True
    )
    done = [
        sdpa(module, q, k, v, None, scaling=scaling, is_causal=is_causal, **kwargs)[0]
        for q, k, v in rows
    ]
    return torch.cat(done, dim=1), None


def has_flash(device: torch.device, dtype: torch.dtype, width: int) -> bool:
    """Whether PyTorch's flash kernel takes queries there, of this dtype and so many numbers a head."""
    return (
        device.type == "cuda"
        and dtype in (torch.float16, torch.bfloat16)
        and width % 8 == 0
        and width <= 256
        and {"scale", "window_size"} <= _TAKES
        and torch.backends.cuda.is_flash_attention_available()
        and torch.cuda.get_device_capability(device) >= AMPERE
    )


def one_launch(tower: Any) -> None:
    """Let a vision tower under this kernel, whose blocks attend within windows, hand all of them over at once.

    Only where there is a flash kernel for it, on the device where it is by now; elsewhere it stays as it is.
    """
    config, weight = tower.config, next(tower.parameters())
    width = config.hidden_size // config.num_heads
    if config._attn_implementation == NAME and has_flash(weight.device, weight.dtype, width):
        config._attn_implementation = (
            TOWER  # `set_attn_implementation` would want the package flash-attn
        )


def _flash(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    ends: Tensor,
    longest: int,
    scale: float | None,
    causal: bool,
) -> Tensor:
    """One launch for all rows: (1, T, H, d)."""
    shared = query.shape[1] // key.shape[1]  # heads of queries for each head of keys
    options: dict[str, Any] = {"scale": scale, "window_size": (-1, 0) if causal else (-1, -1)}
    if "enable_gqa" in _TAKES:
        options["enable_gqa"] = shared > 1
    elif shared > 1:
        key, value = (states.repeat_interleave(shared, dim=1) for states in (key, value))
    flat = (states[0].transpose(0, 1) for states in (query, key, value))  # (T, heads, d)
    attend: Any = varlen.varlen_attn
    with sdpa_kernel(
        SDPBackend.FLASH_ATTENTION
    ):  # cuDNN's would be planned anew for each new number of tokens
        out: Tensor = attend(*flat, ends, ends, longest, longest, **options)
    return out[None]


for name in (NAME, TOWER):
    AttentionInterface.register(name, forward)
    AttentionMaskInterface.register(name, sdpa_mask)

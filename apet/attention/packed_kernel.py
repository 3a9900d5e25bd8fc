"""The attention kernel "packed": rows of different lengths without padding, in one call.

    model, processor = load(name)  # attn="packed"

On a GPU, a call is one launch of PyTorch's own flash kernel for all rows; on a CPU each row goes
through SDPA separately. Calls without packed rows (most vision towers, and steps after the prompt)
are SDPA's, as under "sdpa", but never cuDNN's (`BACKENDS`), and a step's queries that share keys
read them once. `apet/attention/packed_rows.py` packs rows where a method is attached
and a GPU has the flash kernel (not in float32, nor on an old one). Qwen's vision tower packs its
windows and pictures itself. It hands them over one by one, unless the name of its kernel promises
that it takes all at once: `use_tower_kernel` sets such a name where a GPU has the kernel.
"""

import inspect
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel, varlen

from apet.transformers_api import (
    attention_kernel,
    register_kernel,
    sdpa_attention,
    set_attention_kernel,
)

NAME = "packed"
TOWER_NAME = "packed_flash"  # transformers looks for "flash" in it; the kernel is the same
# Later versions of PyTorch take more arguments.
_VARLEN_ARGUMENTS = set(inspect.signature(varlen.varlen_attn).parameters)
# The kernels of SDPA, the preferred first. cuDNN's, which newer GPUs prefer otherwise, is planned
# again for each new shape: nearly half a second for every width of a batch.
BACKENDS = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
AMPERE = (8, 0)  # compute capability of the first GPUs with a flash kernel


def packed_attention(
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
    """Attention (B, S, H, d) of queries (B, H, S, d) to keys and values (B, H_kv, S, d).

    row_lengths:   the lengths of packed rows, (1, H, T, d)
    cu_seq_lens_q: (rows + 1,) where they begin and end; vision towers pass only this
    """
    packed = row_lengths is not None or attention_mask is None
    options = {"scaling": scaling, "is_causal": is_causal, **kwargs}
    if not packed or cu_seq_lens_q is None or max_length_q is None:
        return _unpacked(module, query, key, value, attention_mask, **options)
    if has_flash(query.device, query.dtype, query.shape[-1]):
        causal = bool(getattr(module, "is_causal", True) if is_causal is None else is_causal)
        return _flash(query, key, value, cu_seq_lens_q, int(max_length_q), scaling, causal), None
    if row_lengths is None:
        row_lengths = cu_seq_lens_q.diff().tolist()
    rows = zip(
        *(states.split(list(row_lengths), dim=2) for states in (query, key, value)), strict=True
    )
    outputs = [sdpa_attention(module, q, k, v, None, **options)[0] for q, k, v in rows]
    return torch.cat(outputs, dim=1), None


def _unpacked(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    **options: Any,
) -> tuple[Tensor, None]:
    """SDPA of a rectangle, with or without a mask."""
    batch, heads, queries, width = query.shape
    with sdpa_kernel(BACKENDS, set_priority=True) if query.is_cuda else nullcontext():
        if (
            queries > 1
            or heads == key.shape[1]
            or (attention_mask is not None and attention_mask.shape[1] > 1)
        ):
            return sdpa_attention(module, query, key, value, attention_mask, **options)
        # A step: the heads that share a key become queries of one head. transformers repeats the
        # keys and values for each of them where there is a mask, before 5.24.
        shared = query.reshape(batch, key.shape[1], -1, width)
        out = F.scaled_dot_product_attention(
            shared, key, value, attn_mask=attention_mask, scale=options["scaling"]
        )
    return out.reshape(batch, 1, heads, value.shape[-1]), None


def has_flash(device: torch.device, dtype: torch.dtype, head_dim: int) -> bool:
    """Whether PyTorch's flash kernel takes queries of this dtype and head size on the device."""
    return (
        device.type == "cuda"
        and dtype in (torch.float16, torch.bfloat16)
        and head_dim % 8 == 0
        and head_dim <= 256
        and {"scale", "window_size"} <= _VARLEN_ARGUMENTS
        and torch.backends.cuda.is_flash_attention_available()
        and torch.cuda.get_device_capability(device) >= AMPERE
    )


def use_tower_kernel(tower: Any) -> None:
    """Let a vision tower under this kernel, whose blocks attend within windows, pass all at once.

    Changes nothing unless the device that the tower is on has a flash kernel for it.
    """
    config, weight = tower.config, next(tower.parameters())
    head_dim = config.hidden_size // config.num_heads
    if attention_kernel(config) == NAME and has_flash(weight.device, weight.dtype, head_dim):
        set_attention_kernel(config, TOWER_NAME)


def _flash(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    ends: Tensor,
    longest: int,
    scale: float | None,
    causal: bool,
) -> Tensor:
    """Attention of all rows in one launch: (1, T, H, d)."""
    options: dict[str, Any] = {"scale": scale, "window_size": (-1, 0) if causal else (-1, -1)}
    if "enable_gqa" in _VARLEN_ARGUMENTS:  # the kernel itself takes fewer heads of keys either way
        options["enable_gqa"] = query.shape[1] > key.shape[1]
    flat = (states[0].transpose(0, 1) for states in (query, key, value))  # (T, heads, d)
    attend: Any = varlen.varlen_attn
    # cuDNN's kernel would be planned again for each new number of tokens.
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        out: Tensor = attend(*flat, ends, ends, longest, longest, **options)
    return out[None]


for name in (NAME, TOWER_NAME):
    register_kernel(name, packed_attention)

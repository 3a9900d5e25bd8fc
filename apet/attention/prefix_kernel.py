"""The attention kernel "shared_prefix": rows that continue a prefix attend to one copy of it.

Several questions about a picture continue the same keys and values. All queries of a prefix are
multiplied with it at once, so it is read once for all of them and never copied for each row. The
result is merged with the attention of each row to its own tokens, as flash attention merges blocks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from apet.device import copy_async
from apet.transformers_api import register_kernel

NAME = "shared_prefix"


class PrefixRows:
    """Which of G prefixes each of B rows continues. Rows of a prefix follow each other.

    counts: rows of each prefix
    """

    def __init__(self, counts: Sequence[int], device: torch.device) -> None:
        self.counts, self._device = list(counts), device
        self._most, rows = max(counts), sum(counts)
        self._equal = rows == self._most * len(counts)
        prefix = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
        self.prefix = copy_async(prefix, device)  # (B,) the prefix of each row
        if self._equal:
            return
        # Prefixes with fewer rows repeat the first row of the batch, whose results are ignored.
        places = torch.cat(
            [number * self._most + torch.arange(count) for number, count in enumerate(counts)]
        )
        rows_at = torch.zeros(len(counts) * self._most, dtype=torch.int64)
        rows_at[places] = torch.arange(rows)
        self._places, self._rows_at = copy_async(places, device), copy_async(rows_at, device)

    def by_prefix(self, rows: Tensor) -> Tensor:
        """(B, H, S, d) to (G, H, n S, d), with n rows a prefix."""
        filled = rows if self._equal else rows[self._rows_at]
        grouped = filled.unflatten(0, (len(self.counts), self._most)).transpose(1, 2)
        return grouped.flatten(2, 3)

    def by_row(self, grouped: Tensor) -> Tensor:
        """(G, H, n S, d) to (B, H, S, d)."""
        rows = grouped.unflatten(2, (self._most, -1)).transpose(1, 2).flatten(0, 1)
        return rows if self._equal else rows[self._places]

    def keep(self, rows: Sequence[int]) -> tuple[PrefixRows, list[int]]:
        """The same for some of the rows, and the prefixes that they still need."""
        prefixes = torch.arange(len(self.counts)).repeat_interleave(torch.tensor(self.counts))
        counts = prefixes[list(rows)].bincount(minlength=len(self.counts)).tolist()
        needed = [number for number, count in enumerate(counts) if count]
        return PrefixRows([counts[number] for number in needed], self._device), needed


@dataclass(frozen=True)
class Prefix:
    """The prefixes of a batch in one decoder layer."""

    rows: PrefixRows
    keys: Tensor  # (G, H_kv, P, d)
    values: Tensor
    bias: Tensor | None  # (G, 1, 1, P): 0 for tokens, -inf for padding; None: no padding

    def keep(self, rows: PrefixRows, prefixes: Sequence[int]) -> Prefix:
        """The prefixes with these numbers, for these rows; copied only if some are dropped."""
        if len(prefixes) == len(self.keys):
            return replace(self, rows=rows)
        bias = None if self.bias is None else self.bias[prefixes]
        return Prefix(rows, self.keys[prefixes], self.values[prefixes], bias)


def prefix_bias(valid: Tensor, padded: bool) -> Tensor | None:
    """The bias of `Prefix` for columns (G, P) of which `valid` are tokens."""
    if not padded:
        return None
    return torch.zeros_like(valid, dtype=torch.float32).masked_fill(~valid, -torch.inf)[
        :, None, None
    ]


def prefix_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    shared_prefix: Prefix,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention (B, S, H, d) of queries (B, H, S, d) to a prefix and to own keys (B, H_kv, T, d).

    attention_mask: (B, 1, S, T) bool: own keys that a query sees; None: all
    """
    heads, length = key.shape[1], query.shape[2]
    sharing = query.shape[1] // heads  # query heads for each key head
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    # Query heads that share a key head are further queries of it: (B, H_kv, r S, d)
    queries = (query * scale).unflatten(1, (heads, sharing)).flatten(2, 3)
    rows = shared_prefix.rows
    far = _attend(
        rows.by_prefix(queries), shared_prefix.keys, shared_prefix.values, shared_prefix.bias
    )
    own_bias = None
    if attention_mask is not None:
        lowest = torch.finfo(torch.float32).min  # not -inf: padded queries see no own key
        own_bias = torch.zeros_like(attention_mask, dtype=torch.float32)
        own_bias = own_bias.masked_fill(~attention_mask, lowest).repeat(1, 1, sharing, 1)
    own = _attend(queries, key, value, own_bias)
    output = _merge([rows.by_row(part) for part in far], own)
    output = output.unflatten(2, (sharing, length)).flatten(1, 2)
    return output.transpose(1, 2).to(query.dtype), None


_Part = tuple[Tensor, Tensor, Tensor]


def _attend(queries: Tensor, keys: Tensor, values: Tensor, bias: Tensor | None) -> _Part:
    """Largest score (..., Q, 1), sum of exp(score - largest), and the values weighted by those."""
    scores = (queries @ keys.transpose(-1, -2)).float()
    if bias is not None:
        scores += bias
    largest = scores.amax(dim=-1, keepdim=True)
    weights = scores.sub_(largest).exp_()
    total = weights.sum(dim=-1, keepdim=True)
    return largest, total, (weights.to(values.dtype) @ values).float()


def _merge(one: Sequence[Tensor], other: Sequence[Tensor]) -> Tensor:
    """Attention to two sets of keys from the attention to each."""
    largest = torch.maximum(one[0], other[0])
    one_scale, other_scale = (one[0] - largest).exp(), (other[0] - largest).exp()
    total = one[1] * one_scale + other[1] * other_scale
    return (one[2] * one_scale + other[2] * other_scale) / total


register_kernel(NAME, prefix_attention)

"""The attention kernel "shared_prefix": rows that continue a prefix attend to one copy of it.

Several questions about a picture continue the same keys and values. All queries of a prefix are
multiplied with it at once, so it is read once for all of them and never copied for each row. The
result is merged with the attention of each row to its own tokens, as flash attention merges blocks.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from apet.device import copy_async
from apet.transformers_api import register_kernel

NAME = "shared_prefix"

MAX_SCORES = 1 << 28  # of queries and keys of prefixes, that are held at once


class PrefixRows:
    """Which of G prefixes each of B rows continues. Rows of a prefix follow each other.

    counts: rows of each prefix
    prefix: (B,) the prefix of each row
    """

    def __init__(self, counts: Sequence[int], device: torch.device) -> None:
        numbers = [number for number, count in enumerate(counts) for _ in range(count)]
        self.counts, self._numbers, self._most = tuple(counts), numbers, max(counts)
        self.prefix = copy_async(torch.tensor(numbers), device)
        self._padding: tuple[Tensor, Tensor] | None = None
        if min(counts) < self._most:
            # Prefixes with fewer rows repeat the first row of the batch; those results are ignored.
            places = torch.tensor(
                [n * self._most + row for n, count in enumerate(counts) for row in range(count)]
            )
            rows = torch.zeros(len(counts) * self._most, dtype=torch.int64)
            rows[places] = torch.arange(len(numbers))
            self._padding = copy_async(rows, device), copy_async(places, device)

    def by_prefix(self, rows: Tensor) -> Tensor:
        """(B, H, S, d) to (G, H, n S, d), with n rows a prefix."""
        if self._padding is not None:
            rows = rows[self._padding[0]]
        grouped: Tensor = rows.unflatten(0, (-1, self._most)).transpose(1, 2).flatten(2, 3)
        return grouped

    def by_row(self, grouped: Tensor) -> Tensor:
        """(G, H, n S, d) to (B, H, S, d)."""
        rows: Tensor = grouped.unflatten(2, (self._most, -1)).transpose(1, 2).flatten(0, 1)
        return rows if self._padding is None else rows[self._padding[1]]

    def keep(self, rows: Sequence[int]) -> tuple[PrefixRows, Tensor | None]:
        """The same for some of the rows, and the prefixes that they need; None: all."""
        counts = Counter(self._numbers[row] for row in rows)
        kept = PrefixRows([counts[number] for number in sorted(counts)], self.prefix.device)
        if len(counts) == len(self.counts):
            return kept, None
        return kept, copy_async(torch.tensor(sorted(counts)), self.prefix.device)


@dataclass(frozen=True)
class Prefix:
    """The prefixes of a batch in one decoder layer."""

    rows: PrefixRows
    keys: Tensor  # (G, H_kv, P, d)
    values: Tensor
    bias: Tensor | None  # (G, 1, 1, P) for `prefix_attention`; None: no padding

    def keep(self, rows: PrefixRows, prefixes: Tensor | None) -> Prefix:
        """For these rows: the prefixes with these numbers; None: all, which are not copied."""
        if prefixes is None:
            return replace(self, rows=rows)
        bias = None if self.bias is None else self.bias[prefixes]
        return Prefix(rows, self.keys[prefixes], self.values[prefixes], bias)


def attention_bias(visible: Tensor) -> Tensor:
    """Terms to add to scores: 0 for keys that a query sees, a huge negative number for others.

    The number is finite: padded queries see none of their own keys.
    """
    lowest = torch.finfo(torch.float32).min
    return torch.zeros_like(visible, dtype=torch.float32).masked_fill_(~visible, lowest)


def prefix_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor,
    *,
    scaling: float,
    shared_prefix: Prefix,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention (B, S, H, d) of queries (B, H, S, d) to a prefix and to own keys (B, H_kv, T, d).

    attention_mask: (B, 1, S, T) `attention_bias` of the own keys
    """
    heads, length = key.shape[1], query.shape[2]
    # Query heads that share a key head are further queries of it: (B, H_kv, r S, d)
    queries = query.unflatten(1, (heads, -1)).flatten(2, 3)
    prefix, rows = shared_prefix, shared_prefix.rows
    far = _attend(rows.by_prefix(queries), prefix.keys, prefix.values, scaling, prefix.bias)
    own = _attend(queries, key, value, scaling, attention_mask)
    output = _merge(_Part(*map(rows.by_row, far)), own)
    output = output.unflatten(2, (-1, length)).flatten(1, 2)
    return output.transpose(1, 2).to(query.dtype), None


class _Part(NamedTuple):
    """Attention of Q queries to some of their keys, in float32."""

    largest: Tensor  # (..., Q, 1) the largest score
    total: Tensor  # (..., Q, 1) the sum of exp(score - largest)
    values: Tensor  # (..., Q, d) the values, weighted by these


def _attend(
    queries: Tensor, keys: Tensor, values: Tensor, scaling: float, bias: Tensor | None
) -> _Part:
    """Attention (G, H, n S, .) to keys (G, H, T, d) with a bias (G, 1, S, T)."""
    step = max(1, MAX_SCORES // keys[..., 0].numel())
    if queries.shape[2] > step and (bias is None or bias.shape[2] == 1):
        parts = [_attend(part, keys, values, scaling, bias) for part in queries.split(step, dim=2)]
        return _Part(*(torch.cat(each, dim=2) for each in zip(*parts, strict=True)))
    scores = (queries @ keys.mT).float().mul_(scaling)
    if bias is not None:
        scores.unflatten(2, (-1, bias.shape[2])).add_(bias[:, :, None])
    largest = scores.amax(dim=-1, keepdim=True)
    weights = scores.sub_(largest).exp_()
    total = weights.sum(dim=-1, keepdim=True)
    return _Part(largest, total, (weights.to(values.dtype) @ values).float())


def _merge(one: _Part, other: _Part) -> Tensor:
    """Attention to both sets of keys."""
    largest = torch.maximum(one.largest, other.largest)
    one_scale, other_scale = (one.largest - largest).exp(), (other.largest - largest).exp()
    total = one.total * one_scale + other.total * other_scale
    return (one.values * one_scale + other.values * other_scale) / total


register_kernel(NAME, prefix_attention)

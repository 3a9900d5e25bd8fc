"""What a decoder layer attends to, computed once more, and only for the queries that somebody asks about.

Fast kernels never write attention weights down. A method that ranks tokens by them needs a few rows of one layer: so
that layer's queries and keys are computed again from its input, by its own modules, and all else keeps its kernel.
"""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import Tensor, nn

from apet.attention.masks import window_of
from apet.core.gram import gather, largest
from apet.view import LayerInput, View

CHUNK = 1 << 27  # attention weights held at a time
NOISE = 1e-6  # weights whose ratio is nearer to 1 count as equal


def keys(layer: LayerInput) -> Tensor:
    """What the layer's attention compares queries with, after its rotary embedding: (B, H_kv, S, d)."""
    return _heads(layer, "k", layer.hidden, layer.cos, layer.sin)


def weights(layer: LayerInput, valid: Tensor, queries: Tensor) -> Tensor:
    """The causal attention of the columns `queries` (B, Q) to all S columns: (B, H, Q, S) in float32.

    valid: (B, S) bool: columns that are not padding. A query that is padding gets numbers without meaning.
    """
    batch, count = layer.hidden.shape[:2]
    parts = [layer.hidden, *(part.expand(batch, -1, -1) for part in (layer.cos, layer.sin))]
    key = keys(layer).float()
    query = _heads(layer, "q", *(gather(part, queries) for part in parts)).float()
    alike = query.unflatten(1, (key.shape[1], -1)).flatten(
        2, 3
    )  # the queries that share a key's head
    logits: Tensor = (alike @ key.mT * _attention(layer).scaling).view(*query.shape[:3], count)
    place = torch.arange(count, device=valid.device)
    seen = valid[:, None] & (place <= queries[..., None])  # (B, Q, S)
    return logits.masked_fill(~seen[:, None], torch.finfo(logits.dtype).min).softmax(dim=-1)


def of_rows(layer: LayerInput, rows: Tensor) -> LayerInput:
    """The layer's input without other rows of the batch; `rows` (G,) may hold one twice."""
    cos, sin = (part.expand(len(layer.hidden), -1, -1)[rows] for part in (layer.cos, layer.sin))
    return LayerInput(layer.layer, layer.hidden[rows], cos, sin)


def attended(layer: LayerInput, valid: Tensor, rows: Tensor, queries: Tensor) -> Tensor:
    """The mean over the heads of `weights`, for `rows` (G,) of a batch and their `queries` (G, Q): (G, Q, S)."""
    per_row = (
        _attention(layer).q_proj.out_features
        // _attention(layer).head_dim
        * queries.shape[1]
        * valid.shape[1]
    )
    size = max(1, CHUNK // max(per_row, 1))
    chunks = zip(rows.split(size), queries.split(size), strict=True)
    return torch.cat(
        [weights(of_rows(layer, row), valid[row], query).mean(dim=1) for row, query in chunks]
    )


def attended_by_last(view: View, layer: LayerInput) -> Tensor:
    """How much the last token of each row's prompt attends to the view's tokens: (G, N)."""
    assert view.decoder is not None
    rows, sequence = view.rows[:, 0], view.decoder.sequence
    return attended(layer, sequence.valid, rows, sequence.last[rows][:, None])[:, 0].gather(
        1, view.columns
    )


def most(received: Tensor, keep: int) -> Tensor:
    """Ascending places (G, keep) of those that receive the most attention (G, N), of equals the first."""
    return largest(received, keep, NOISE * received.abs())


def _attention(layer: LayerInput) -> Any:
    """The layer's attention module, if it works the way that this file repeats."""
    attention: Any = getattr(layer.layer, "self_attn", None)
    lacks = [
        name for name in ("q_proj", "k_proj", "head_dim", "scaling") if not hasattr(attention, name)
    ]
    if not hasattr(layer.layer, "input_layernorm"):
        lacks.append("input_layernorm")
    if not hasattr(sys.modules[type(attention).__module__], "apply_rotary_pos_emb"):
        lacks.append("apply_rotary_pos_emb")
    if lacks:
        raise ValueError(
            f"attention weights cannot be computed for {type(layer.layer).__name__}: it has no {', '.join(lacks)};"
            " choose a method that needs none, such as apet"
        )
    window = window_of(layer.layer)
    if window is not None and window < layer.hidden.shape[1]:
        raise ValueError(
            f"attention weights cannot be computed for {type(layer.layer).__name__} and {layer.hidden.shape[1]} tokens:"
            f" it looks {window} tokens back; choose a method that needs none, such as apet"
        )
    return attention


def _heads(layer: LayerInput, which: str, hidden: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """The layer's queries ("q") or keys ("k") for (B, S, D): (B, heads, S, d), after norm and rotary embedding."""
    attention, module = _attention(layer), layer.layer
    assert isinstance(module.input_layernorm, nn.Module)
    heads = getattr(attention, f"{which}_proj")(module.input_layernorm(hidden)).unflatten(
        -1, (-1, attention.head_dim)
    )
    if (norm := getattr(attention, f"{which}_norm", None)) is not None:
        heads = norm(heads)
    heads = heads.transpose(1, 2)
    turned: Tensor = sys.modules[type(attention).__module__].apply_rotary_pos_emb(
        heads, heads[:, :1], cos, sin
    )[0]
    return turned

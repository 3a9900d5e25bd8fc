"""Attention weights of a decoder layer, computed again for the queries that a method needs.

Fast kernels never write attention weights to memory. A method that ranks tokens by them needs a few
rows of one layer: that layer's queries and keys are computed again from its input, by its own
modules, and everything else keeps its kernel.
"""

import torch
from torch import Tensor

from apet.core.gram import gather, stable_topk
from apet.transformers_api import (
    decoder_attention,
    decoder_heads,
    decoder_query_heads,
    sliding_window,
)
from apet.view import LayerInput, View

MAX_WEIGHTS = 1 << 27  # attention weights in memory at a time
NOISE = 1e-6  # weights whose ratio is nearer to 1 count as equal


def layer_keys(layer: LayerInput) -> Tensor:
    """The keys of the layer's attention, after the rotary embedding: (B, H_kv, S, d)."""
    return _heads(layer, "k", layer.hidden, layer.cos, layer.sin)


def attention_weights(layer: LayerInput, valid: Tensor, queries: Tensor) -> Tensor:
    """The causal attention of the columns `queries` (B, Q) to all S columns: (B, H, Q, S), float32.

    valid: (B, S) bool: columns that are not padding; the result for a padding query is meaningless
    """
    batch, count = layer.hidden.shape[:2]
    inputs = [layer.hidden, *(angle.expand(batch, -1, -1) for angle in (layer.cos, layer.sin))]
    key = layer_keys(layer).float()
    query = _heads(layer, "q", *(gather(tensor, queries) for tensor in inputs)).float()
    # Queries that share a key head, side by side.
    grouped = query.unflatten(1, (key.shape[1], -1)).flatten(2, 3)
    scaling = decoder_attention(layer.layer).scaling
    logits: Tensor = (grouped @ key.mT * scaling).view(*query.shape[:3], count)
    columns = torch.arange(count, device=valid.device)
    visible = valid[:, None] & (columns <= queries[..., None])  # (B, Q, S)
    return logits.masked_fill(~visible[:, None], torch.finfo(logits.dtype).min).softmax(dim=-1)


def select_rows(layer: LayerInput, rows: Tensor) -> LayerInput:
    """The layer's input for these rows (G,) of the batch, which may repeat."""
    cos, sin = (angle.expand(len(layer.hidden), -1, -1)[rows] for angle in (layer.cos, layer.sin))
    return LayerInput(layer.layer, layer.hidden[rows], cos, sin)


def mean_attention(layer: LayerInput, valid: Tensor, rows: Tensor, queries: Tensor) -> Tensor:
    """The mean over heads of `attention_weights`: (G, Q, S).

    rows: (G,) of the batch; queries: (G, Q) columns of those rows
    """
    heads = decoder_query_heads(layer.layer)
    size = max(1, MAX_WEIGHTS // max(1, heads * queries.shape[1] * valid.shape[1]))
    chunks = zip(rows.split(size), queries.split(size), strict=True)
    return torch.cat(
        [
            attention_weights(select_rows(layer, row), valid[row], query).mean(dim=1)
            for row, query in chunks
        ]
    )


def attention_of_last_token(view: View, layer: LayerInput) -> Tensor:
    """The attention of the last token of each row's prompt to the view's tokens: (G, N)."""
    assert view.decoder is not None
    rows, sequence = view.rows[:, 0], view.decoder.sequence
    attention = mean_attention(layer, sequence.valid, rows, sequence.last[rows][:, None])
    return attention[:, 0].gather(1, view.columns)


def most_attended(received: Tensor, keep: int) -> Tensor:
    """Ascending indices (G, keep) of the largest attention (G, N), the first among equals."""
    return stable_topk(received, keep, NOISE * received.abs())


def _heads(layer: LayerInput, kind: str, hidden: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """The layer's queries ("q") or keys ("k") for (B, S, D), if it looks back to the beginning."""
    window, tokens = sliding_window(layer.layer), layer.hidden.shape[1]
    if window is not None and window < tokens:
        raise ValueError(
            f"attention weights cannot be computed for {type(layer.layer).__name__} and {tokens}"
            f" tokens: it looks {window} tokens back; choose a method that needs none, such as apet"
        )
    return decoder_heads(layer.layer, kind, hidden, cos, sin)

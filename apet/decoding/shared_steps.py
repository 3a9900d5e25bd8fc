"""Rows that continue shared prefixes: the rest of their prompts, and the steps after it.

Each layer has the keys and values of G prefixes, which stay as they are, and a growing cache with
the B rows' own tokens: the rest of the prompt, left-padded, and the answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import NamedTuple

import torch
from torch import Tensor

from apet.attach.token_groups import TokenMask
from apet.attention.prefix_kernel import Prefix, PrefixRows, prefix_bias
from apet.decoding.decode_step import MAX_STEPS, DecodeState, per_layer, run_decoder
from apet.decoding.growing_steps import GrowingLayer
from apet.models.base import Family
from apet.transformers_api import make_cache


class Suffixes(NamedTuple):
    """What follows the shared prefixes of G prompts in B rows, in the order of the prefixes."""

    ids: Tensor  # (B, S), left-padded, at least one token a row
    valid: Tensor  # (B, S) bool: not padding
    counts: Sequence[int]  # rows of each prefix, at least one


class SharedSteps:
    """Begin with `start`; steps follow.

    state: after the prefixes, (G, ...)
    """

    full = False  # own caches are renewed as they fill

    def __init__(self, family: Family, state: DecodeState, suffixes: Suffixes) -> None:
        self._family, self._suffixes = family, suffixes
        layers, device = state.layers, state.layers[0].keys.device
        self._rows = PrefixRows(suffixes.counts, device)
        masks = per_layer(state.token_masks, len(layers))
        biases = {first: prefix_bias(*mask) for first, mask in state.token_masks.items()}
        self._valid = [mask.valid for mask in masks]
        self._prefixes = [
            Prefix(self._rows, layer.keys, layer.values, bias)
            for layer, bias in zip(layers, per_layer(biases, len(layers)), strict=True)
        ]
        self._positions = state.positions[..., self._rows.prefix, :]  # (..., B, 1) of the next
        self._own_valid = suffixes.valid.to(device)
        rows, width = self._own_valid.shape
        self._free = MAX_STEPS
        empty = (layer.keys.new_empty(rows, *_empty_shape(layer.keys)) for layer in layers)
        self._layers = [
            GrowingLayer(SimpleNamespace(keys=keys, values=keys), width + MAX_STEPS)
            for keys in empty
        ]
        self._cache = make_cache(self._layers)

    def start(self) -> Tensor:
        """Logits (B, V) after the prompts."""
        valid = self._own_valid
        count = valid.cumsum(dim=1)
        positions = self._positions + (count - 1).clamp(min=0)
        self._positions = self._positions + count[:, -1:]
        width = valid.shape[1]
        causal = torch.ones(width, width, dtype=torch.bool, device=valid.device).tril()
        mask = (causal & valid[:, None])[:, None]
        return self._run(self._suffixes.ids.to(valid.device), positions, mask)

    def __call__(self, tokens: Tensor) -> Tensor:
        """Logits (B, V) after tokens (B, 1)."""
        if self._free == 0:
            self._layers = [GrowingLayer(layer) for layer in self._layers]
            self._cache, self._free = make_cache(self._layers), MAX_STEPS
        self._free -= 1
        one = self._own_valid.new_ones(len(tokens), 1)
        self._own_valid = torch.cat([self._own_valid, one], dim=1)
        logits = self._run(tokens, self._positions, self._own_valid[:, None, None])
        self._positions = self._positions + 1
        return logits

    def _run(self, tokens: Tensor, positions: Tensor, mask: Tensor) -> Tensor:
        inputs = [{"attention_mask": mask, "shared_prefix": prefix} for prefix in self._prefixes]
        return run_decoder(self._family, tokens, positions, self._cache, inputs)

    def keep_rows(self, rows: Tensor) -> None:
        """Continue with `rows` (n,) only, and the prefixes that they need."""
        self._rows, needed = self._rows.keep(rows.tolist())
        self._prefixes = [prefix.keep(self._rows, needed) for prefix in self._prefixes]
        self._valid = [valid[needed] for valid in self._valid]
        self._own_valid = self._own_valid[rows]
        self._positions = self._positions[..., rows, :]
        for layer in self._layers:
            layer.keep_rows(rows)

    def state(self) -> DecodeState:
        """The state after these steps, with a copy of its prefix for every row."""
        layers, masks = [], {}
        pairs = zip(self._prefixes, self._layers, self._valid, strict=True)
        for number, (prefix, own, valid) in enumerate(pairs):
            keys, values = (
                torch.cat([shared[self._rows.prefix], states], dim=2)
                for shared, states in ((prefix.keys, own.keys), (prefix.values, own.values))
            )
            layers.append(SimpleNamespace(keys=keys, values=values))
            if number == 0 or valid is not self._valid[number - 1]:
                columns = torch.cat([valid[self._rows.prefix], self._own_valid], dim=1)
                masks[number] = TokenMask(columns, padded=True)
        return DecodeState(layers, masks, self._positions)


def _empty_shape(keys: Tensor) -> tuple[int, int, int]:
    return keys.shape[1], 0, keys.shape[3]


def next_positions(positions: Tensor) -> Tensor:
    """The position (..., B, 1) after those of prompts (..., B, S), which may end in a picture.

    After a picture, M-RoPE continues from the largest of its positions in all three dimensions.
    """
    following = positions.amax(dim=-1, keepdim=True) + 1
    if positions.ndim == 3:
        following[-3:] = following[-3:].amax(dim=0)
    return following

"""Rows that continue shared prefixes: the rest of their prompts, and the steps after it.

Each layer has the keys and values of G prefixes, which stay as they are, and a growing cache with
the B rows' own tokens: the rest of the prompt, left-padded, and the answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from apet.attach.token_groups import TokenMask
from apet.attention import prefix_kernel
from apet.attention.prefix_kernel import Prefix, PrefixRows, attention_bias
from apet.decoding.decode_step import MAX_STEPS, DecodeState, kernel_inside, per_layer, run_decoder
from apet.decoding.growing_steps import GrowingLayer
from apet.device import copy_async
from apet.models.base import Family
from apet.transformers_api import make_cache


class Suffixes(NamedTuple):
    """The rests of B prompts that begin with G shared prefixes, in the order of the prefixes."""

    ids: Tensor  # (B, S), left-padded, at least one token a row
    valid: Tensor  # (B, S) bool: not padding
    counts: Sequence[int]  # rows of each prefix, at least one


class SharedSteps:
    """Begin with `start`; steps follow.

    state: after the prefixes, (G, ...)
    """

    full = False  # own caches are renewed as they fill

    def __init__(self, family: Family, state: DecodeState, suffixes: Suffixes) -> None:
        self._family, device = family, state.positions.device
        self._ids, self._valid = (
            copy_async(suffixes.ids, device),
            copy_async(suffixes.valid, device),
        )
        self._rows = PrefixRows(suffixes.counts, device)
        self._positions = state.positions[..., self._rows.prefix, :]  # (..., B, 1) of the next
        self._prefix_masks = state.token_masks
        biases = {
            first: attention_bias(valid)[:, None, None] if padded else None
            for first, (valid, padded) in state.token_masks.items()
        }
        self._prefixes = [
            Prefix(self._rows, layer.keys, layer.values, bias)
            for layer, bias in zip(state.layers, per_layer(biases, len(state.layers)), strict=True)
        ]
        rows, width = self._valid.shape
        self._free = MAX_STEPS
        empty = (_without_columns(layer, rows) for layer in state.layers)
        self._layers = [GrowingLayer(layer, width + MAX_STEPS) for layer in empty]
        self._cache = make_cache(self._layers)

    def prompts(self, prefixes: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
        """The ids (B, P + S) of whole prompts, left-padded, and each row's count of padding (B,).

        prefixes: (G, P) ids; valid: (G, P) bool
        """
        ids = torch.cat([prefixes[self._rows.prefix], self._ids], dim=1)
        is_token = torch.cat([valid[self._rows.prefix], self._valid], dim=1)
        # No padding between the parts: logits processors read n-grams across the border.
        order = is_token.byte().argsort(dim=1, stable=True)
        return ids.gather(1, order), (~is_token).sum(dim=1)

    def start(self) -> Tensor:
        """Logits (B, V) after the prompts."""
        number = self._valid.cumsum(dim=1)
        positions = self._positions + (number - 1).clamp(min=0)
        self._positions = self._positions + number[:, -1:]
        width = self._valid.shape[1]
        causal = self._valid.new_ones(width, width).tril()
        return self._run(self._ids, positions, (causal & self._valid[:, None])[:, None])

    def __call__(self, tokens: Tensor) -> Tensor:
        """Logits (B, V) after tokens (B, 1)."""
        if self._free == 0:
            self._layers = [GrowingLayer(layer, MAX_STEPS) for layer in self._layers]
            self._cache, self._free = make_cache(self._layers), MAX_STEPS
        self._free -= 1
        self._valid = torch.cat([self._valid, self._valid.new_ones(len(tokens), 1)], dim=1)
        logits = self._run(tokens, self._positions, self._valid[:, None, None])
        self._positions = self._positions + 1
        return logits

    def _run(self, tokens: Tensor, positions: Tensor, visible: Tensor) -> Tensor:
        """Logits (B, V) after tokens (B, S), which see some own columns: (B, 1, S, T)."""
        bias = attention_bias(visible)
        inputs = [{"attention_mask": bias, "shared_prefix": prefix} for prefix in self._prefixes]
        with kernel_inside(self._family.decoder, prefix_kernel.NAME):
            return run_decoder(self._family, tokens, positions, self._cache, inputs)

    def keep_rows(self, rows: Tensor) -> None:
        """Continue with `rows` (n,) only, and the prefixes that they need."""
        # The shapes of what follows depend on the rows, so this waits for the device.
        self._rows, needed = self._rows.keep(rows.tolist())
        self._prefixes = [prefix.keep(self._rows, needed) for prefix in self._prefixes]
        if needed is not None:
            self._prefix_masks = {
                first: TokenMask(valid[needed], padded)
                for first, (valid, padded) in self._prefix_masks.items()
            }
        self._valid = self._valid[rows]
        self._positions = self._positions[..., rows, :]
        for layer in self._layers:
            layer.keep_rows(rows)

    def state(self) -> DecodeState:
        """The state after these steps, with a copy of its prefix for every row."""
        copies = self._rows.prefix
        layers = [
            SimpleNamespace(
                keys=torch.cat([prefix.keys[copies], own.keys], dim=2),
                values=torch.cat([prefix.values[copies], own.values], dim=2),
            )
            for prefix, own in zip(self._prefixes, self._layers, strict=True)
        ]
        masks = {
            first: TokenMask(torch.cat([valid[copies], self._valid], dim=1), padded=True)
            for first, (valid, _) in self._prefix_masks.items()
        }
        return DecodeState(layers, masks, self._positions)


def _without_columns(layer: Any, rows: int) -> SimpleNamespace:
    """A layer's cache like this one for `rows` rows, with no columns yet."""
    keys, values = (
        states[:1, :, :0].expand(rows, -1, -1, -1) for states in (layer.keys, layer.values)
    )
    return SimpleNamespace(keys=keys, values=values)


def next_positions(positions: Tensor) -> Tensor:
    """The position (..., B, 1) after those of prompts (..., B, S), which may end in a picture.

    After a picture, M-RoPE continues from the larger of its height and width: the times of a video
    may lie far beyond. The last column is a token, since prompts are left-padded.
    """
    following = positions[..., -1:] + 1
    if positions.ndim == 3:
        following[-3:] = following[-2:].amax(dim=0)
    return following

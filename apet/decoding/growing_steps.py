"""Decode steps over caches that grow into free columns: for any batch, on any device."""

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from apet.attach.token_groups import TokenMask
from apet.attention.masks import causal_mask
from apet.decoding.decode_step import MAX_STEPS, DecodeState, decode_step, extend_masks, per_layer
from apet.models.base import Family
from apet.transformers_api import FilledLayer, make_cache


class GrowingLayer(FilledLayer):
    """A layer's cache with `free` columns at its end. Takes over `layer`, and leaves it empty."""

    def __init__(self, layer: Any, free: int) -> None:
        super().__init__(layer.keys, layer.values)
        keys, values = (_with_free_columns(states, free) for states in (layer.keys, layer.values))
        self._storage = keys, values
        self._show(layer.keys.shape[2])
        layer.keys = layer.values = None

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        start = self.keys.shape[2]
        self._show(start + key_states.shape[2])
        self.keys[:, :, start:], self.values[:, :, start:] = key_states, value_states
        return self.keys, self.values

    def keep_rows(self, rows: Tensor) -> None:
        columns = self.keys.shape[2]
        self._storage = self._storage[0][rows], self._storage[1][rows]
        self._show(columns)

    def _show(self, columns: int) -> None:
        self.keys, self.values = (states[:, :, :columns] for states in self._storage)


def _with_free_columns(states: Tensor, free: int) -> Tensor:
    batch, heads, columns, width = states.shape
    storage = states.new_empty(batch, heads, columns + free, width)
    storage[:, :, :columns] = states
    return storage


class GrowingSteps:
    """Up to `MAX_STEPS` steps over growing caches."""

    def __init__(self, family: Family, state: DecodeState) -> None:
        self._family, self._token_masks, self._taken = family, state.token_masks, 0
        self._positions = state.positions
        self._layers = [GrowingLayer(layer, MAX_STEPS) for layer in state.layers]
        self._cache = make_cache(self._layers)
        self._masks: dict[int, Tensor | None] = {}  # for all steps; each step uses a part
        for first, (valid, padded) in state.token_masks.items():
            wide = torch.cat([valid, valid.new_ones(len(valid), MAX_STEPS)], dim=1)
            query = self._layers[0].keys.new_empty(len(valid), 1, 0)
            self._masks[first] = causal_mask(
                family.decoder, first, query, wide, padded, valid.shape[1]
            )

    @property
    def full(self) -> bool:
        return self._taken == MAX_STEPS

    def __call__(self, tokens: Tensor) -> Tensor:
        """Logits (B, V) after tokens (B, 1)."""
        self._taken += 1
        unused = MAX_STEPS - self._taken
        by_first = {
            first: None if mask is None else mask[..., : mask.shape[-1] - unused]
            for first, mask in self._masks.items()
        }
        masks = per_layer(by_first, len(self._layers))
        logits = decode_step(self._family, tokens, self._positions, self._cache, masks)
        self._positions = self._positions + 1
        return logits

    def keep_rows(self, rows: Tensor) -> None:
        """Continue with `rows` (n,) only."""
        for layer in self._layers:
            layer.keep_rows(rows)
        self._token_masks = {
            first: TokenMask(valid[rows], padded)
            for first, (valid, padded) in self._token_masks.items()
        }
        masks = self._masks.items()
        self._masks = {first: None if mask is None else mask[rows] for first, mask in masks}
        self._positions = self._positions[..., rows, :]

    def state(self) -> DecodeState:
        """The state after these steps, and their end: the next steps free each layer they copy."""
        layers = [SimpleNamespace(keys=layer.keys, values=layer.values) for layer in self._layers]
        self._layers.clear()
        self._cache.layers.clear()
        masks = extend_masks(self._token_masks, self._taken)
        return DecodeState(layers, masks, self._positions)

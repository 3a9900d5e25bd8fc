"""One step of an answer: a token of each row goes through the decoder, whose layers have caches of their own lengths.

The decoder is the model's own module, called as the model calls it. What differs from `generate` is what it is given:
caches with room for the answer, so that no step copies them, and for each layer a mask of that layer's length.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from transformers import Cache, DynamicLayer

from apet.attach.prefill import Left
from apet.attention.masks import causal_mask
from apet.models.base import Family

ROOM = 32  # steps that a cache has room for; a longer answer moves to new caches each time, one copy in so many steps
_T = TypeVar("_T")


@dataclass
class Past:
    """What a batch has come to: all that the next step needs."""

    layers: Sequence[Any]  # `keys` and `values` (B, H, S_l, d) of each layer
    left: dict[
        int, Left
    ]  # by the first layer that has these S_l columns: which of them are no padding
    positions: Tensor  # (..., B, 1) of the next token


def each_layer(by_first: Mapping[int, _T], count: int) -> list[_T]:
    """What holds for each layer, of what holds from some layers on."""
    found: list[_T] = []
    for depth in range(count):
        found.append(by_first[depth] if depth in by_first else found[-1])
    return found


@contextmanager
def single_queries(decoder: Any) -> Iterator[None]:
    """Within, attention is SDPA's, unless it is eager.

    For one query a row a flash kernel has nothing to offer, and as transformers calls it for padded rows, each layer
    waits for the device to count them.
    """
    kernel = decoder.config._attn_implementation
    try:
        if kernel not in ("sdpa", "eager"):
            decoder.config._attn_implementation = "sdpa"
        yield
    finally:
        decoder.config._attn_implementation = kernel


def step(
    family: Family, tokens: Tensor, positions: Tensor, cache: Cache, masks: Sequence[Tensor | None]
) -> Tensor:
    """Logits (B, V) after `tokens` (B, 1), which join the cache; `masks` has one for each layer.

    An attached method does not notice: it acts when the whole model is called, and this is its decoder alone.
    """
    hooks = [
        layer.register_forward_pre_hook(partial(_masked, mask), with_kwargs=True)
        for layer, mask in zip(family.layers, masks, strict=True)
    ]
    try:
        out = family.decoder(
            input_ids=tokens, position_ids=positions, past_key_values=cache, use_cache=True
        )
    finally:
        for hook in hooks:
            hook.remove()
    head: Any = family.model.get_output_embeddings()
    logits: Tensor = head(out.last_hidden_state[:, -1])
    return logits


def _masked(
    mask: Tensor | None, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    return args, kwargs | {"attention_mask": mask}


class Room(DynamicLayer):
    """A layer's cache with free columns behind it. It takes over from `past`, which is empty afterwards."""

    keys: Any
    values: Any

    def __init__(self, past: Any) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.is_initialized, self.dtype, self.device = True, past.keys.dtype, past.keys.device
        self._whole = _wider(past.keys), _wider(past.values)
        self._show(past.keys.shape[2])
        past.keys = past.values = None

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        there = self.keys.shape[2]
        self._show(there + key_states.shape[2])
        self.keys[:, :, there:], self.values[:, :, there:] = key_states, value_states
        return self.keys, self.values

    def keep(self, rows: Tensor) -> None:
        there = self.keys.shape[2]
        self._whole = self._whole[0][rows], self._whole[1][rows]
        self._show(there)

    def _show(self, columns: int) -> None:
        self.keys, self.values = (whole[:, :, :columns] for whole in self._whole)


def _wider(states: Tensor) -> Tensor:
    batch, heads, columns, width = states.shape
    whole = states.new_empty(batch, heads, columns + ROOM, width)
    whole[:, :, :columns] = states
    return whole


class Rooms:
    """Steps over such caches: up to `ROOM` of them, for any batch, on any device."""

    def __init__(self, family: Family, past: Past) -> None:
        self._family, self._left, self._positions, self._taken = (
            family,
            past.left,
            past.positions,
            0,
        )
        self._layers = [Room(layer) for layer in past.layers]
        self._cache = Cache(layers=[*self._layers])
        self._masks: dict[int, Tensor | None] = {}
        for first, (valid, padded) in past.left.items():
            wide = torch.cat([valid, valid.new_ones(len(valid), ROOM)], dim=1)
            query = self._layers[0].keys.new_empty(len(valid), 1, 0)
            self._masks[first] = causal_mask(
                family.decoder, first, query, wide, padded, valid.shape[1]
            )

    @property
    def full(self) -> bool:
        return self._taken == ROOM

    def __call__(self, tokens: Tensor) -> Tensor:
        """Logits (B, V) after tokens (B, 1)."""
        self._taken += 1
        unused = ROOM - self._taken
        masks = {
            first: None if mask is None else mask[..., : mask.shape[-1] - unused]
            for first, mask in self._masks.items()
        }
        each = each_layer(masks, len(self._layers))
        logits = step(self._family, tokens, self._positions, self._cache, each)
        self._positions = self._positions + 1
        return logits

    def keep(self, rows: Tensor) -> None:
        """Go on with `rows` (n,) alone."""
        for layer in self._layers:
            layer.keep(rows)
        self._left = {
            first: Left(valid[rows], padded) for first, (valid, padded) in self._left.items()
        }
        self._masks = {
            first: None if mask is None else mask[rows] for first, mask in self._masks.items()
        }
        self._positions = self._positions[..., rows, :]

    def past(self) -> Past:
        """Where they leave off, and end: whoever takes over frees each layer as it is copied."""
        layers = [SimpleNamespace(keys=layer.keys, values=layer.values) for layer in self._layers]
        self._layers.clear()
        self._cache.layers.clear()
        return Past(layers, longer(self._left, self._taken), self._positions)


def longer(left: Mapping[int, Left], steps: int) -> dict[int, Left]:
    """With the tokens of so many steps behind."""
    return {
        first: Left(torch.cat([valid, valid.new_ones(len(valid), steps)], dim=1), padded)
        for first, (valid, padded) in left.items()
    }

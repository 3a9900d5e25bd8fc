"""Steps of fixed shapes, captured once as a CUDA graph and replayed: one launch a step in the place of a thousand.

A graph reads and writes tensors of its own at addresses that never change. So the prompt's keys and values are copied
there once, and what a step changes (the column it writes, the mask, the positions) it changes in place, itself. Only
one graph is ever at work, so all share one storage, as large as the largest of them needs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from math import prod
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import Cache, DynamicLayer

from apet.decoding.step import ROOM, Past, each_layer, longer, step
from apet.models.base import Family

BUCKET = 64  # a cache's columns are a multiple: prompts of like lengths share a graph, and kernels like it
KEPT = 32  # graphs


class Shape(NamedTuple):
    """What batches that share a graph have in common."""

    rows: int
    widths: tuple[
        tuple[int, int], ...
    ]  # the first layer of each stretch, and the columns of its caches
    positions: int  # dimensions
    dtype: torch.dtype

    @classmethod
    def of(cls, past: Past) -> Shape:
        widths = tuple(
            (first, -(-(valid.shape[1] + ROOM) // BUCKET) * BUCKET)
            for first, (valid, _) in past.left.items()
        )
        keys = past.layers[0].keys
        return cls(len(keys), widths, past.positions.ndim, keys.dtype)


class Column(DynamicLayer):
    """A layer's cache that stays where it is: a step writes the column `at` (1,)."""

    keys: Any
    values: Any

    def __init__(self, keys: Tensor, values: Tensor, at: Tensor) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.is_initialized, self.dtype, self.device = True, keys.dtype, keys.device
        self.keys, self.values, self.at = keys, values, at

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        self.keys.index_copy_(2, self.at, key_states)
        self.values.index_copy_(2, self.at, value_states)
        return self.keys, self.values


class Fixed:
    """Steps of one shape. A cache is: free columns, the past up to column W - ROOM, and room for the answer.

    storage: keys and values (B, H, W, d) of each layer
    """

    def __init__(
        self, family: Family, shape: Shape, past: Past, storage: Sequence[tuple[Tensor, Tensor]]
    ) -> None:
        self._family, self._taken, self._left = family, 0, past.left
        device = storage[0][0].device
        self._tokens = torch.zeros(shape.rows, 1, dtype=torch.int64, device=device)
        self._positions = past.positions.new_zeros(*past.positions.shape[:-2], shape.rows, 1)
        self._step = torch.zeros(1, dtype=torch.int64, device=device)
        self._at = {first: torch.zeros_like(self._step) for first, _ in shape.widths}
        self._masks = {
            first: torch.zeros(shape.rows, 1, 1, width, dtype=torch.bool, device=device)
            for first, width in shape.widths
        }
        at = each_layer(self._at, len(storage))
        self._layers = [Column(*both, here) for both, here in zip(storage, at, strict=True)]
        self._cache = Cache(layers=[*self._layers])
        self._logits: Tensor | None = None
        self._graph: torch.cuda.CUDAGraph | None = None

    def capture(self, pool: Any) -> None:
        """Where there is a CUDA device; elsewhere steps run as they are."""
        device = self._tokens.device
        if device.type != "cuda":
            return
        with torch.cuda.device(device):
            side = torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                self._run()  # whatever a first run sets up is then there
            torch.cuda.current_stream().wait_stream(side)
            graph = torch.cuda.CUDAGraph()
            # others may copy to the device meanwhile: the next batch's inputs come from a thread of their own
            with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
                self._logits = self._run()
        self._graph = graph

    def load(self, past: Past) -> None:
        """Take over from `past`, which is empty afterwards."""
        self._left, self._taken = past.left, 0
        self._positions.copy_(past.positions)
        self._step.zero_()
        for first, (valid, _) in past.left.items():
            mask = self._masks[first]
            end = mask.shape[-1] - ROOM
            mask.zero_()
            mask[:, 0, 0, end - valid.shape[1] : end] = valid
        for layer, old in zip(self._layers, past.layers, strict=True):
            for mine, its in ((layer.keys, old.keys), (layer.values, old.values)):
                end = mine.shape[2] - ROOM
                start = end - its.shape[2]
                mine[:, :, start:end] = its
                mine[:, :, :start] = (
                    0  # masked, but what is not a number would spoil sums all the same
                )
                mine[:, :, end:] = 0
            old.keys = old.values = None

    def _run(self) -> Tensor:
        for first, mask in self._masks.items():
            torch.add(self._step, mask.shape[-1] - ROOM, out=self._at[first])
            mask.index_fill_(3, self._at[first], True)
        masks = each_layer(self._masks, len(self._layers))
        logits = step(self._family, self._tokens, self._positions, self._cache, masks)
        self._positions.add_(1)
        self._step.add_(1)
        return logits

    @property
    def full(self) -> bool:
        return self._taken == ROOM

    def __call__(self, tokens: Tensor) -> Tensor:
        """Logits (B, V) after tokens (B, 1), until the next step."""
        self._taken += 1
        self._tokens.copy_(tokens)
        if self._graph is None:
            return self._run()
        self._graph.replay()
        assert self._logits is not None
        return self._logits

    def past(self) -> Past:
        """Where they leave off: a copy, for the next graph has the same storage."""
        left, layers = longer(self._left, self._taken), []
        for layer, (valid, _) in zip(
            self._layers, each_layer(left, len(self._layers)), strict=True
        ):
            end = layer.keys.shape[2] - ROOM + self._taken
            here = slice(end - valid.shape[1], end)
            keys, values = layer.keys[:, :, here].clone(), layer.values[:, :, here].clone()
            layers.append(SimpleNamespace(keys=keys, values=values))
        return Past(layers, left, self._positions.clone())


class Graphs:
    """The graphs of one model, by shape, and the storage they share."""

    def __init__(self, family: Family) -> None:
        self._family = family
        self._seen: set[Shape] = set()
        self._kept: dict[Shape, Fixed] = {}
        self._storage: Tensor | None = None
        self._pool = _pool()

    def take(self, past: Past) -> Fixed | None:
        """Steps that go on from `past`; None if it is left as it was, to be continued without fixed shapes.

        To capture costs several steps. So it is done when a shape comes for the second time; until then, and for
        shapes beyond `KEPT`, the same steps run uncaptured: what a batch's answers are does not depend on what came
        before it. Answers of a single step pay it back over the batches that follow. Graphs are never given up for
        others: a sweep, whose shapes come round, would capture for ever.
        """
        if self._family.decoder.config._attn_implementation == "eager":
            return None
        shape = Shape.of(past)
        fixed = self._kept.get(shape)
        if fixed is None:
            fixed = self._made(shape, past)
            if shape in self._seen and len(self._kept) < KEPT:
                fixed.capture(self._pool)
                self._kept[shape] = fixed
            self._seen.add(shape)
        fixed.load(past)
        return fixed

    def _made(self, shape: Shape, past: Past) -> Fixed:
        widths = each_layer(dict(shape.widths), len(past.layers))
        sizes = [
            (*states.shape[:2], width, states.shape[3])
            for layer, width in zip(past.layers, widths, strict=True)
            for states in (layer.keys, layer.values)
        ]
        with torch.inference_mode(
            False
        ):  # tensors made in that mode could not be written outside it
            return Fixed(self._family, shape, past, list(self._places(sizes, past.layers[0].keys)))

    def _places(
        self, sizes: Sequence[tuple[int, ...]], like: Tensor
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Keys and values of each layer, in the storage."""
        need = sum(map(prod, sizes))
        if self._storage is None or len(self._storage) < need or self._storage.dtype != like.dtype:
            self._kept.clear()  # they know the old one's address
            self._pool = _pool()  # one whose graphs are all gone cannot be captured into
            self._storage = None  # before there is a new one: both may not fit
            self._storage = torch.zeros(need, dtype=like.dtype, device=like.device)
        parts = self._storage[:need].split([prod(size) for size in sizes])
        views = [part.view(size) for part, size in zip(parts, sizes, strict=True)]
        yield from list(pairwise(views))[::2]


def _pool() -> Any:
    """Memory that graphs share, since one of them is at work at a time."""
    return torch.cuda.graph_pool_handle() if torch.cuda.is_available() else None

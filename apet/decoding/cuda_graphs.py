"""Decode steps of fixed shapes, captured as CUDA graphs: one launch a step instead of a thousand.

A graph reads and writes tensors of its own at addresses that never change. So the prompt's keys and
values are copied there once, and the graph itself changes in place what a step changes: the column
it writes, the mask, the positions. Only one graph runs at a time, so all share one storage, as
large as the largest of them needs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from math import prod
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from apet.decoding.decode_step import MAX_STEPS, DecodeState, decode_step, extend_masks, per_layer
from apet.models.base import Family
from apet.transformers_api import FilledLayer, attention_kernel, make_cache

# Caches have a multiple of so many columns: prompts of similar lengths share a graph, and kernels
# prefer such widths.
WIDTH_MULTIPLE = 64
# Graphs that one model keeps. Each holds memory on the device.
MAX_GRAPHS = 32


class CaptureError(Exception):
    """A capture failed. Some versions of PyTorch then allocate from the capture's pool for good."""


class GraphShape(NamedTuple):
    """The properties that batches with the same graph have in common."""

    rows: int
    widths: tuple[tuple[int, int], ...]  # columns of caches, with the first layer that has them
    position_dims: int
    dtype: torch.dtype

    @classmethod
    def of(cls, state: DecodeState) -> GraphShape:
        widths = tuple(
            (first, -(-(valid.shape[1] + MAX_STEPS) // WIDTH_MULTIPLE) * WIDTH_MULTIPLE)
            for first, (valid, _) in state.token_masks.items()
        )
        keys = state.layers[0].keys
        return cls(len(keys), widths, state.positions.ndim, keys.dtype)


class FixedLayer(FilledLayer):
    """A layer's cache at a fixed address. A step writes column number `column` (1,)."""

    def __init__(self, keys: Tensor, values: Tensor, column: Tensor) -> None:
        super().__init__(keys, values)
        self.column = column

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        self.keys.index_copy_(2, self.column, key_states)
        self.values.index_copy_(2, self.column, value_states)
        return self.keys, self.values


class FixedSteps:
    """Up to `MAX_STEPS` steps of one shape.

    The columns of a cache: first free ones, then the prompt, which ends at column W - MAX_STEPS,
    then free ones for the answer.
    storage: keys and values (B, H, W, d) of each layer
    """

    def __init__(
        self,
        family: Family,
        shape: GraphShape,
        state: DecodeState,
        storage: Sequence[tuple[Tensor, Tensor]],
    ) -> None:
        self._family, self._taken, self._token_masks = family, 0, state.token_masks
        device = storage[0][0].device
        self._tokens = torch.zeros(shape.rows, 1, dtype=torch.int64, device=device)
        self._positions = state.positions.new_zeros(*state.positions.shape[:-2], shape.rows, 1)
        self._step = torch.zeros(1, dtype=torch.int64, device=device)
        self._columns = {first: torch.zeros_like(self._step) for first, _ in shape.widths}
        self._masks = {
            first: torch.zeros(shape.rows, 1, 1, width, dtype=torch.bool, device=device)
            for first, width in shape.widths
        }
        columns = per_layer(self._columns, len(storage))
        pairs = zip(storage, columns, strict=True)
        self._layers = [FixedLayer(*states, column) for states, column in pairs]
        self._cache = make_cache(self._layers)
        self._logits: Tensor | None = None
        self._graph: torch.cuda.CUDAGraph | None = None

    def capture(self, pool: Any) -> None:
        """Capture a step on a CUDA device. On other devices steps run uncaptured."""
        device = self._tokens.device
        if device.type != "cuda":
            return
        with torch.cuda.device(device):
            side = torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                self._run()  # so that everything a first run sets up exists before the capture
            torch.cuda.current_stream().wait_stream(side)
            graph = torch.cuda.CUDAGraph()
            try:
                # Other threads may copy to the device meanwhile, e.g. the next batch's inputs.
                with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
                    self._logits = self._run()
            except Exception as error:
                raise CaptureError(
                    "a CUDA graph could not be captured, after which this process cannot rely on"
                    f" its GPU; start another: {error}"
                ) from error
        self._graph = graph

    def load(self, state: DecodeState) -> None:
        """Copy `state` into the storage. Its layers are empty afterwards."""
        self._token_masks, self._taken = state.token_masks, 0
        self._positions.copy_(state.positions)
        self._step.zero_()
        for first, (valid, _) in state.token_masks.items():
            mask = self._masks[first]
            end = mask.shape[-1] - MAX_STEPS
            mask.zero_()
            mask[:, 0, 0, end - valid.shape[1] : end] = valid
        for layer, source in zip(self._layers, state.layers, strict=True):
            for stored, states in ((layer.keys, source.keys), (layer.values, source.values)):
                end = stored.shape[2] - MAX_STEPS
                start = end - states.shape[2]
                stored[:, :, start:end] = states
                # Free columns are masked, but NaN there would still spoil sums.
                stored[:, :, :start] = 0
                stored[:, :, end:] = 0
            source.keys = source.values = None

    def _run(self) -> Tensor:
        for first, mask in self._masks.items():
            torch.add(self._step, mask.shape[-1] - MAX_STEPS, out=self._columns[first])
            mask.index_fill_(3, self._columns[first], True)
        masks = per_layer(self._masks, len(self._layers))
        logits = decode_step(self._family, self._tokens, self._positions, self._cache, masks)
        self._positions.add_(1)
        self._step.add_(1)
        return logits

    @property
    def full(self) -> bool:
        return self._taken == MAX_STEPS

    def __call__(self, tokens: Tensor) -> Tensor:
        """Logits (B, V) after tokens (B, 1), valid until the next step."""
        self._taken += 1
        self._tokens.copy_(tokens)
        if self._graph is None:
            return self._run()
        self._graph.replay()
        assert self._logits is not None
        return self._logits

    def state(self) -> DecodeState:
        """The state after these steps, as a copy: the next graph uses the same storage."""
        masks, layers = extend_masks(self._token_masks, self._taken), []
        layer_masks = per_layer(masks, len(self._layers))
        for layer, (valid, _) in zip(self._layers, layer_masks, strict=True):
            end = layer.keys.shape[2] - MAX_STEPS + self._taken
            used = slice(end - valid.shape[1], end)
            keys, values = layer.keys[:, :, used].clone(), layer.values[:, :, used].clone()
            layers.append(SimpleNamespace(keys=keys, values=values))
        return DecodeState(layers, masks, self._positions.clone())


class GraphStore:
    """The graphs of one model, by shape, and the storage they share."""

    def __init__(self, family: Family) -> None:
        self._family = family
        self._seen: set[GraphShape] = set()
        self._captured: dict[GraphShape, FixedSteps] = {}
        self._storage: Tensor | None = None
        self._pool = _memory_pool()

    def steps_from(self, state: DecodeState) -> FixedSteps | None:
        """Steps that continue from `state`; None if attention is eager, which leaves it unchanged.

        Capturing costs several steps, so a shape is captured when it comes for the second time.
        Until then, and beyond `MAX_GRAPHS`, the same steps run uncaptured: a batch's answers do not
        depend on earlier batches. Even answers of a single step repay the capture over later
        batches. Graphs are never replaced: a sweep, whose shapes recur, would capture forever.
        """
        if attention_kernel(self._family.decoder.config) == "eager":
            return None
        shape = GraphShape.of(state)
        steps = self._captured.get(shape)
        if steps is None:
            steps = self._new_steps(shape, state)
            if shape in self._seen and len(self._captured) < MAX_GRAPHS:
                steps.capture(self._pool)
                self._captured[shape] = steps
            self._seen.add(shape)
        steps.load(state)
        return steps

    def _new_steps(self, shape: GraphShape, state: DecodeState) -> FixedSteps:
        widths = per_layer(dict(shape.widths), len(state.layers))
        sizes = [
            (*states.shape[:2], width, states.shape[3])
            for layer, width in zip(state.layers, widths, strict=True)
            for states in (layer.keys, layer.values)
        ]
        # Tensors made in inference mode could not be written outside it.
        with torch.inference_mode(False):
            storage = list(self._allocate(sizes, state.layers[0].keys))
            return FixedSteps(self._family, shape, state, storage)

    def _allocate(
        self, sizes: Sequence[tuple[int, ...]], like: Tensor
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Keys and values of each layer, as views of the storage."""
        total = sum(map(prod, sizes))
        if self._storage is None or len(self._storage) < total or self._storage.dtype != like.dtype:
            self._captured.clear()  # they use the old storage's address
            self._pool = _memory_pool()  # a pool cannot be captured into once its graphs are gone
            self._storage = None  # first, because old and new storage together may not fit
            self._storage = torch.zeros(total, dtype=like.dtype, device=like.device)
        parts = self._storage[:total].split([prod(size) for size in sizes])
        views = [part.view(size) for part, size in zip(parts, sizes, strict=True)]
        yield from list(pairwise(views))[::2]


def _memory_pool() -> Any:
    """Memory that graphs share, since only one of them runs at a time."""
    return torch.cuda.graph_pool_handle() if torch.cuda.is_available() else None

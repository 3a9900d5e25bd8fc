"""Qwen's vision tower: show methods its attention, and drop tokens between its blocks.

The patches of all pictures lie in one sequence, in windows; the four patches of a token lie side by
side. A block attends within the segments that it is given. A picture is an image or one step of a
video's temporal grid, and a token is only dropped with all its patches.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from apet.schedule import share
from apet.towers.labels import write_labels
from apet.towers.vision_record import TowerSession
from apet.transformers_api import qwen_queries_and_keys, window_order
from apet.view import View

MAX_QUERIES = 1024  # of a block's attention at a time: a large picture has too many for one matrix


@dataclass(frozen=True)
class QwenTower:
    """A tower whose tokens can be dropped between its blocks."""

    module: Any  # the vision model
    mergers: tuple[nn.Module, ...]  # modules that merge patches into tokens
    resized: ClassVar[bool] = False

    @property
    def layers(self) -> Any:
        return self.module.blocks

    @property
    def patches_per_token(self) -> int:
        return int(self.module.spatial_merge_size**2)

    def hooks(self, module: nn.Module, session: TowerSession) -> Iterator[RemovableHandle]:
        yield module.register_forward_pre_hook(partial(self._start, session), with_kwargs=True)
        for depth, block in enumerate(self.layers):
            yield block.register_forward_pre_hook(
                partial(self._enter_block, session, depth), with_kwargs=True
            )
        for merger in self.mergers:
            yield merger.register_forward_hook(partial(self._leave_merger, session))

    def _start(
        self,
        session: TowerSession,
        module: nn.Module,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> None:
        grid, config, device = kwargs["grid_thw"], self.module.config, args[0].device
        sizes = [
            (steps, height * width // self.patches_per_token)
            for steps, height, width in grid.tolist()
        ]
        tokens = torch.arange(sum(steps * size for steps, size in sizes), device=device)
        order = tokens
        if hasattr(config, "window_size"):
            order = window_order(self.module, grid).to(device)
        pictures = list(tokens.split([size for steps, size in sizes for _ in range(steps)]))
        position = torch.empty_like(tokens).scatter(0, order, tokens)
        call = QwenTowerCall(self, order, pictures, position)
        session.record.calls.append(call)
        if session.inside:
            for steps, size in sizes:
                for layer, keep in session.sites(steps * size, len(self.layers)).items():
                    call.sites.setdefault(layer, []).extend(share(keep, [size] * steps))

    def _enter_block(
        self,
        session: TowerSession,
        depth: int,
        block: nn.Module,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        call, hidden = self._call(session), args[0]  # (patches, D)
        if depth in call.sites:
            hidden = call.drop(session, depth, hidden)
        if call.cells is not None:
            kwargs = kwargs | call.shortened_inputs(kwargs)
        if session.method.needs_tower and depth == len(self.layers) - 1:
            with session.timed(hidden):
                call.store_attention(block, hidden, kwargs)
        return (hidden, *args[1:]), kwargs

    def _leave_merger(
        self, session: TowerSession, merger: nn.Module, args: object, output: Tensor
    ) -> Tensor | None:
        return self._call(session).mark(output)

    def _call(self, session: TowerSession) -> QwenTowerCall:
        call = session.record.calls[-1]
        assert isinstance(call, QwenTowerCall)
        return call


@dataclass
class QwenTowerCall:
    """One call of a tower, on pictures of U tokens in all."""

    tower: QwenTower
    order: Tensor  # (U,) which token, in reading order, stands at each position of the sequence
    pictures: list[Tensor]  # the remaining tokens of each picture, ascending
    position: Tensor  # (U,) the current position of each token
    # How many tokens each picture keeps, by the block at whose entry.
    sites: dict[int, list[int]] = field(default_factory=dict)
    cells: Tensor | None = None  # (U',) remaining positions of the full sequence; None: all
    # (U,) in reading order: attention that a token receives in the last block, ...
    received: Tensor | None = None
    metric: Tensor | None = None  # ... and (U, d) its key
    memory: dict[str, Tensor] = field(default_factory=dict)
    # Shortened inputs of blocks since the last site, by the id of their segments.
    inputs: dict[int, tuple[Tensor, dict[str, Any]]] = field(default_factory=dict)

    def drop(self, session: TowerSession, depth: int, hidden: Tensor) -> Tensor:
        """Let each picture keep its number of tokens at this site."""
        device = hidden.device
        tokens = hidden.view(len(hidden) // self.tower.patches_per_token, -1).clone()
        alive = torch.ones(len(tokens), dtype=torch.bool, device=device)
        alike: dict[tuple[int, int], list[int]] = {}
        for number, (picture, keep) in enumerate(
            zip(self.pictures, self.sites[depth], strict=True)
        ):
            if keep < len(picture):
                alike.setdefault((len(picture), keep), []).append(number)
        for (size, keep), numbers in alike.items():
            labels = torch.stack([self.pictures[number] for number in numbers])  # (G, n)
            columns = self.position[labels]
            rows = torch.zeros(len(numbers), 1, dtype=torch.int64, device=device)
            zeros = (0,) * len(numbers)
            view = View(
                "vision", depth, tokens[columns], keep, (1, size), zeros, zeros, rows, columns
            )
            with session.timed(hidden):
                merged, index = session.method.select(view)
            stay = columns.gather(1, index)
            alive[columns] = False
            alive[stay] = True
            tokens[stay] = merged.to(tokens.dtype)
            for number, remaining in zip(numbers, labels.gather(1, index), strict=True):
                self.pictures[number] = remaining
        count = sum(map(len, self.pictures))
        kept = alive.byte().argsort(descending=True, stable=True)[:count]
        full = torch.arange(len(self.order), device=device)
        self.cells = (full if self.cells is None else self.cells)[kept]
        self.position = torch.zeros_like(full).scatter(0, self.order[self.cells], full[:count])
        self.inputs.clear()
        return tokens[kept].view(-1, hidden.shape[-1])

    def shortened_inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """A block's segments and rotary angles, for the remaining patches."""
        assert self.cells is not None
        unit, ends = self.tower.patches_per_token, inputs["cu_seqlens"]
        # Counting segments waits for the device: it is done once for each kind of block.
        if (stored := self.inputs.get(id(ends))) is not None:
            return stored[1]
        device = self.cells.device
        segment = torch.bucketize(self.cells * unit, ends.to(device), right=True)
        counts = torch.unique_consecutive(segment, return_counts=True)[1] * unit
        patches = (self.cells[:, None] * unit + torch.arange(unit, device=device)).flatten()
        shortened = {
            "cu_seqlens": torch.cat([ends.new_zeros(1), counts.cumsum(0).to(ends)]),
            "position_embeddings": tuple(angle[patches] for angle in inputs["position_embeddings"]),
        }
        # The tensor is stored as well, so that no other one can take its id.
        self.inputs[id(ends)] = ends, shortened
        return shortened

    def store_attention(self, block: Any, hidden: Tensor, inputs: dict[str, Any]) -> None:
        """Compute the attention that each token receives, beside the model's own kernel.

        It is the mean over the queries of its segment, the heads and its patches: the measure where
        there is no CLS.
        """
        unit = self.tower.patches_per_token
        query, key, scaling = qwen_queries_and_keys(block, hidden)
        cos, sin = inputs["position_embeddings"]
        query, key = (apply_rotary(vectors.float(), cos, sin) for vectors in (query, key))
        lengths = inputs["cu_seqlens"].diff().tolist()
        received = []
        for queries, keys in zip(query.split(lengths), key.split(lengths), strict=True):
            total = keys.new_zeros(len(keys))
            for block_queries in queries.split(MAX_QUERIES):
                scores = torch.einsum("qhd,khd->hqk", block_queries, keys * scaling)
                total += scores.softmax(dim=-1).mean(dim=0).sum(dim=0)
            received.append(total / len(queries))
        labels = self.order if self.cells is None else self.order[self.cells]
        values = torch.cat(received).view(-1, unit).mean(dim=1)
        keys = key.mean(dim=1).view(len(labels), unit, -1).mean(dim=1)
        self.received = values.new_zeros(len(self.order)).scatter(0, labels, values)
        self.metric = keys.new_zeros(len(self.order), keys.shape[1]).index_copy(0, labels, keys)

    def mark(self, features: Tensor) -> Tensor | None:
        """Merged features (U', D) with marks for dropped tokens; None if none were dropped."""
        if self.cells is None:
            return None
        dropped = torch.ones_like(self.order, dtype=torch.bool).scatter(0, self.cells, False)
        marks = write_labels(torch.zeros_like(self.order), features, dropped)
        return marks.index_copy(0, self.cells, features)

    def patches(self, name: str) -> Tensor | None:
        """(U, ...): `received` or `metric`; there is no CLS, and keys are not stored."""
        return {"received": self.received, "metric": self.metric}.get(name)


def apply_rotary(vectors: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding of (P, H, d) by angles (P, d)."""
    first, second = vectors.chunk(2, dim=-1)
    rotated = torch.cat([-second, first], dim=-1)
    return vectors * cos[:, None].float() + rotated * sin[:, None].float()

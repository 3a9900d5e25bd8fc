"""Towers of tiles (CLIP, SigLIP): show methods their attention, and drop tokens between layers.

A tile is one input of the tower: an image, a crop, a frame. All tiles of a call keep the same
number of tokens, so that the tower's batch stays a rectangle. Dropped tokens are marked
(`apet.towers.labels`), and the decoder's entry takes them out. Where the model resizes the tower's
output, a picture must have no holes: there, a kept token stands in for each dropped one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from apet.core.compression import split_into_chunks
from apet.core.gram import Gram, gather
from apet.core.merge import most_similar
from apet.towers.labels import write_labels
from apet.towers.vision_record import TowerSession
from apet.transformers_api import (
    clip_key_projection,
    clip_layers,
    clip_queries_and_keys,
    has_cls,
)
from apet.view import View


@dataclass(frozen=True)
class TileTower:
    """A tower whose tokens can be dropped one by one between its layers."""

    layers: Sequence[Any]  # those whose output is used
    size: int  # patches of a tile
    prefix: int  # tokens before them: CLS
    tiles: int  # tiles of a medium; 0: varies
    resized: bool = False  # the model resizes pictures of its tokens

    def hooks(self, module: nn.Module, session: TowerSession) -> Iterator[RemovableHandle]:
        yield module.register_forward_pre_hook(partial(self._start, session))
        for depth, layer in enumerate(self.layers):
            yield layer.register_forward_pre_hook(partial(self._enter_layer, session, depth))
            if session.method.inside_tower:
                projection, heads = clip_key_projection(layer)
                yield projection.register_forward_hook(partial(self._store_keys, session, heads))
        yield self.layers[-1].register_forward_hook(partial(self._store_cls, session))

    def _start(self, session: TowerSession, module: nn.Module, args: object) -> None:
        sites = self._sites(session) if session.inside else {}
        session.record.calls.append(TileTowerCall(self, sites))

    def _sites(self, session: TowerSession) -> dict[int, int]:
        """How many tokens each tile keeps, by layer. The size of the medium may be unknown."""
        tiles = self.tiles or 1
        sites = session.sites(self.size * tiles, len(self.layers))
        if sites and not self.tiles and not session.asks_for_shares:
            raise ValueError(
                "inside this model's vision tower, the number of an image's tokens is not known;"
                " give shares, such as budget='10%' or schedule='vision.6=50%'"
            )
        for layer, keep in sites.items():
            if keep < tiles:
                raise ValueError(
                    f"'vision.{layer}={keep}' leaves no token for each of {tiles} frames; keep"
                    f" {tiles} or more"
                )
        return {layer: keep // tiles for layer, keep in sites.items()}

    def _enter_layer(
        self, session: TowerSession, depth: int, layer: nn.Module, args: tuple[Any, ...]
    ) -> tuple[Any, ...] | None:
        call, hidden = self._call(session), args[0]  # (tiles, prefix + k, D)
        call.tiles = len(hidden)
        if session.method.needs_tower and depth == len(self.layers) - 1:
            with session.timed(hidden):
                call.received, call.metric = clip_attention(layer, hidden, self.prefix)
        keep = call.sites.get(depth)
        if keep is None or keep >= hidden.shape[1] - self.prefix:
            return None
        patches = hidden[:, self.prefix :]
        if call.cells is None:
            cells = torch.arange(self.size, device=hidden.device)
            call.cells = cells.expand(len(hidden), self.size)
        side = int(self.size**0.5)
        view = View(
            stage="vision",
            layer=depth,
            tokens=patches,
            keep=keep,
            grid=(side, side) if patches.shape[1] == self.size else (1, patches.shape[1]),
            seeds=(0,) * len(hidden),
            row_numbers=(0,) * len(hidden),
            rows=torch.zeros(len(hidden), 1, dtype=torch.int64, device=hidden.device),
            columns=call.cells,
            keys=None if call.keys is None else call.keys[:, self.prefix :],
            memory=call.memory,
        )
        with session.timed(hidden):
            tokens, index = session.method.select(view)
        if self.resized:
            call.update_stand_ins(patches, index)
        call.cells = call.cells.gather(1, index)
        return (torch.cat([hidden[:, : self.prefix], tokens.to(hidden.dtype)], dim=1), *args[1:])

    def _call(self, session: TowerSession) -> TileTowerCall:
        call = session.record.calls[-1]
        assert isinstance(call, TileTowerCall)
        return call

    def _store_keys(
        self,
        session: TowerSession,
        heads: int,
        projection: nn.Module,
        args: object,
        output: Tensor,
    ) -> None:
        self._call(session).keys = output.unflatten(-1, (heads, -1)).mean(dim=2)

    def _store_cls(
        self, session: TowerSession, layer: nn.Module, args: object, output: Any
    ) -> None:
        if self.prefix and session.method.needs_tower:
            self._call(session).cls = (output if isinstance(output, Tensor) else output[0])[:, 0]


@dataclass
class TileTowerCall:
    """One call of a tower."""

    tower: TileTower
    sites: dict[int, int]  # how many tokens each tile keeps, by the layer at whose entry
    tiles: int = 0
    cells: Tensor | None = None  # (tiles, k) which of its patches remain; None: all
    keys: Tensor | None = None  # (tiles, prefix + k, d) of the latest layer, mean over its heads
    # (tiles, k) each: what the method left at the last site
    memory: dict[str, Tensor] = field(default_factory=dict)
    received: Tensor | None = None  # (tiles, T) attention in the last layer, see `clip_attention`
    metric: Tensor | None = None  # (tiles, T, d) and its keys
    cls: Tensor | None = None  # (tiles, D) the output for CLS
    # (tiles, T) which kept token stands in for each patch, where pictures must have no holes
    slot: Tensor | None = None

    def update_stand_ins(self, patches: Tensor, index: Tensor) -> None:
        """Let the most similar of `index` (tiles, K) stand in for each patch (tiles, k, D)."""
        chunks = split_into_chunks(patches)
        slots = [
            most_similar(Gram(chunk), kept)
            for chunk, kept in zip(chunks, index.split(len(chunks[0])), strict=True)
        ]
        slot = torch.cat(slots)
        self.slot = slot if self.slot is None else slot.gather(1, self.slot)

    def expand(self, remaining: Tensor, full: Tensor | None = None) -> Tensor:
        """Write the remaining tokens (tiles, p + k, D) into `full` (tiles, p + T, D), or zeros.

        p is the prefix, or 0 where the model has removed it.
        """
        if self.cells is None:
            return remaining
        prefix = remaining.shape[1] - self.cells.shape[1]
        if full is None:
            shape = len(remaining), prefix + self.tower.size, remaining.shape[-1]
            full = remaining.new_zeros(shape)
        full = full.clone()
        full[:, :prefix] = remaining[:, :prefix]
        cells = self.cells[..., None].expand(-1, -1, full.shape[-1])
        return full.scatter_(1, prefix + cells, remaining[:, prefix:])

    def dropped(self, size: int) -> Tensor | None:
        """(tiles x size,) bool: which tokens the tower dropped, of size = p + T for each tile."""
        if self.cells is None:
            return None
        tiles, count = self.cells.shape
        kept = torch.ones(tiles, size - self.tower.size + count, 1, device=self.cells.device)
        return self.expand(kept).flatten() == 0

    def mark(self, features: Tensor) -> Tensor | None:
        """Projected features (tiles, p + k, D) with marks, or stand-ins, for dropped ones.

        None if none were dropped.
        """
        if self.cells is None:
            return None
        if self.slot is not None:
            return gather(features, self.slot)
        size = self.tower.size + features.shape[1] - self.cells.shape[1]
        dropped = self.dropped(size)
        assert dropped is not None
        marks = write_labels(torch.zeros_like(dropped, dtype=torch.int64), features, dropped)
        return self.expand(features, marks.view(len(features), size, -1))

    def patches(self, name: str) -> Tensor | None:
        """(tiles x T, ...): `keys`, `received`, `metric`, `cls` or an entry of `memory`.

        Dropped tokens have zeros.
        """
        value: Tensor | None = self.memory[name] if name in self.memory else getattr(self, name)
        if value is None:
            return None
        if name == "cls":
            return value.repeat_interleave(self.tower.size, dim=0)
        vectors = value if value.ndim == 3 else value[..., None]
        count = self.tower.size if self.cells is None else self.cells.shape[1]
        full = self.expand(vectors[:, vectors.shape[1] - count :]).flatten(0, 1)
        return full if value.ndim == 3 else full[:, 0]


def clip_tower(
    tower: Any, feature_layer: int | list[int], tiles: int, resized: bool = False
) -> TileTower:
    """A CLIP or SigLIP tower up to `feature_layer` (-2: all but the last); see `TileTower`."""
    layers = clip_layers(tower)
    used = [feature_layer] if isinstance(feature_layer, int) else feature_layer
    depth = max(layer % (len(layers) + 1) for layer in used)
    size = (tower.config.image_size // tower.config.patch_size) ** 2
    return TileTower(layers[:depth], size, int(has_cls(tower)), tiles, resized)


def clip_attention(layer: Any, hidden: Tensor, prefix: int) -> tuple[Tensor, Tensor]:
    """Attention (tiles, T) of CLS to a layer's patches, summed over heads, and keys (tiles, T, d).

    Without CLS (`prefix` 0), the attention is the mean over all queries. Both are computed here,
    whatever kernel the tower runs.
    """
    query, keys, scale = clip_queries_and_keys(layer, hidden, prefix or hidden.shape[1])
    keys = keys.float()
    weights = torch.einsum("tqhd,tkhd->thqk", query.float(), keys * scale).softmax(dim=-1)
    return weights.mean(dim=2).sum(dim=1)[:, prefix:], keys.mean(dim=2)[:, prefix:]

"""Inside a vision tower of tiles (CLIP): what a method may read there, and tokens dropped between its layers.

A tile is one input of the tower: an image, a crop, a frame. All tiles of a call keep the same number, so that the
tower's batch stays a rectangle; what was dropped is marked (`apet.towers.labels`) for the decoder's entry to take out. Where
the model resizes what the tower saw, a picture must have no holes: there a survivor stands in for what was dropped.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from apet.core.compression import chunks
from apet.core.gram import Gram, gather
from apet.core.merge import most_similar
from apet.towers.labels import write_labels
from apet.view import View

if TYPE_CHECKING:
    from apet.attach.vision import Vision


@dataclass(frozen=True)
class TileTower:
    """A tower whose tokens can be dropped one by one between its layers."""

    layers: Sequence[Any]  # those whose output is used
    size: int  # patches of a tile
    prefix: int  # tokens before them: CLS
    tiles: int  # tiles of a medium; 0: that differs
    resized: bool = False  # the model resizes pictures of its tokens

    def hooks(self, module: nn.Module, vision: Vision) -> Iterator[RemovableHandle]:
        yield module.register_forward_pre_hook(partial(self._start, vision))
        for depth, layer in enumerate(self.layers):
            yield layer.register_forward_pre_hook(partial(self._layer, vision, depth))
            if vision.method.inside_tower:
                yield layer.self_attn.k_proj.register_forward_hook(
                    partial(self._keys, vision, layer.self_attn)
                )
        yield self.layers[-1].register_forward_hook(partial(self._last, vision))

    def _start(self, vision: Vision, module: nn.Module, args: object) -> None:
        vision.seen.runs.append(TileRun(self, self._sites(vision) if vision.inside else {}))

    def _sites(self, vision: Vision) -> dict[int, int]:
        """What each tile keeps, by the layer at whose entry. How many tokens the medium will have may be unknown."""
        tiles = self.tiles or 1
        sites = vision.sites(self.size * tiles, len(self.layers))
        if sites and not self.tiles and not vision.asks_for_shares:
            raise ValueError(
                "inside this model's vision tower it is not known how many tokens an image will have; give shares,"
                " such as budget='10%' or schedule='vision.6=50%'"
            )
        for layer, keep in sites.items():
            if keep < tiles:
                raise ValueError(
                    f"'vision.{layer}={keep}' leaves no token for each of {tiles} frames; keep {tiles} or more"
                )
        return {layer: keep // tiles for layer, keep in sites.items()}

    def _layer(
        self, vision: Vision, depth: int, layer: nn.Module, args: tuple[Any, ...]
    ) -> tuple[Any, ...] | None:
        run, hidden = self._run(vision), args[0]  # (tiles, prefix + k, D)
        run.tiles = len(hidden)
        if vision.method.needs_tower and depth == len(self.layers) - 1:
            with vision.timed(hidden):
                run.received, run.metric = clip_attention(layer, hidden, self.prefix)
        keep = run.sites.get(depth)
        if keep is None or keep >= hidden.shape[1] - self.prefix:
            return None
        patches = hidden[:, self.prefix :]
        if run.cells is None:
            run.cells = torch.arange(self.size, device=hidden.device).expand(len(hidden), self.size)
        side = int(self.size**0.5)
        view = View(
            stage="vision",
            layer=depth,
            tokens=patches,
            keep=keep,
            grid=(side, side) if patches.shape[1] == self.size else (1, patches.shape[1]),
            seeds=(0,) * len(hidden),
            rows=torch.zeros(len(hidden), 1, dtype=torch.int64, device=hidden.device),
            columns=run.cells,
            keys=None if run.keys is None else run.keys[:, self.prefix :],
            memory=run.memory,
        )
        with vision.timed(hidden):
            tokens, places = vision.method.select(view)
        if self.resized:
            run.stand_in(patches, places)
        run.cells = run.cells.gather(1, places)
        return (torch.cat([hidden[:, : self.prefix], tokens.to(hidden.dtype)], dim=1), *args[1:])

    def _run(self, vision: Vision) -> TileRun:
        run = vision.seen.runs[-1]
        assert isinstance(run, TileRun)
        return run

    def _keys(
        self, vision: Vision, attention: Any, projection: nn.Module, args: object, output: Tensor
    ) -> None:
        self._run(vision).keys = output.unflatten(-1, (attention.num_heads, -1)).mean(dim=2)

    def _last(self, vision: Vision, layer: nn.Module, args: object, output: Any) -> None:
        if self.prefix and vision.method.needs_tower:
            self._run(vision).cls = (output if isinstance(output, Tensor) else output[0])[:, 0]


@dataclass
class TileRun:
    """One call of a tower."""

    tower: TileTower
    sites: dict[int, int]  # what each tile keeps, by the layer at whose entry
    tiles: int = 0
    cells: Tensor | None = None  # (tiles, k) which of its patches are left; None: all
    keys: Tensor | None = (
        None  # (tiles, prefix + k, d) of the layer that ran last, the mean over its heads
    )
    memory: dict[str, Tensor] = field(
        default_factory=dict
    )  # (tiles, k) each: what the method left at the last site
    received: Tensor | None = None  # (tiles, T) attention in the last layer, see `clip_attention`
    metric: Tensor | None = None  # (tiles, T, d) and its keys
    cls: Tensor | None = None  # (tiles, D) what it makes of CLS
    slot: Tensor | None = (
        None  # (tiles, T) which of those left stands for each patch, where holes must not be
    )

    def stand_in(self, patches: Tensor, places: Tensor) -> None:
        """For each of `patches` (tiles, k, D), the one of `places` (tiles, K) that it is most like takes its place."""
        parts = zip(chunks(patches), places.split(len(chunks(patches)[0])), strict=True)
        slot = torch.cat([most_similar(Gram(part), place) for part, place in parts])
        self.slot = slot if self.slot is None else slot.gather(1, self.slot)

    def expand(self, left: Tensor, full: Tensor | None = None) -> Tensor:
        """What is left of all tiles (tiles, p + k, D), at its places among all (tiles, p + T, D), by default zeros.

        p is the prefix, or 0 where the model has taken it off.
        """
        if self.cells is None:
            return left
        prefix = left.shape[1] - self.cells.shape[1]
        if full is None:
            full = left.new_zeros(len(left), prefix + self.tower.size, left.shape[-1])
        full = full.clone()
        full[:, :prefix] = left[:, :prefix]
        return full.scatter_(
            1, prefix + self.cells[..., None].expand(-1, -1, full.shape[-1]), left[:, prefix:]
        )

    def lost(self, size: int) -> Tensor | None:
        """(tiles x size,) bool: which tokens of all tiles, of size = p + T each, were dropped inside the tower."""
        if self.cells is None:
            return None
        tiles, count = self.cells.shape
        kept = torch.ones(tiles, size - self.tower.size + count, 1, device=self.cells.device)
        return self.expand(kept).flatten() == 0

    def mark(self, features: Tensor) -> Tensor | None:
        """Projected features (tiles, p + k, D) among marks, or stand-ins, for dropped ones; None if none were."""
        if self.cells is None:
            return None
        if self.slot is not None:
            return gather(features, self.slot)
        size = self.tower.size + features.shape[1] - self.cells.shape[1]
        lost = self.lost(size)
        assert lost is not None
        marks = write_labels(torch.zeros_like(lost, dtype=torch.int64), features, lost)
        return self.expand(features, marks.view(len(features), size, -1))

    def patches(self, name: str) -> Tensor | None:
        """(tiles x T, ...): `keys`, `received`, `metric`, `cls` or of `memory`; zeros for what was dropped."""
        value: Tensor | None = self.memory[name] if name in self.memory else getattr(self, name)
        if value is None:
            return None
        if name == "cls":
            return value.repeat_interleave(self.tower.size, dim=0)
        wide = value if value.ndim == 3 else value[..., None]
        count = self.tower.size if self.cells is None else self.cells.shape[1]
        full = self.expand(wide[:, wide.shape[1] - count :]).flatten(0, 1)
        return full if value.ndim == 3 else full[:, 0]


def clip_tower(
    tower: Any, feature_layer: int | list[int], tiles: int, resized: bool = False
) -> TileTower:
    """A CLIP or SigLIP tower, as far as its `feature_layer` (-2: all but the last); the others as in `TileTower`."""
    layers = list(tower.encoder.layers)
    used = [feature_layer] if isinstance(feature_layer, int) else feature_layer
    depth = max(layer % (len(layers) + 1) for layer in used)
    side = tower.config.image_size // tower.config.patch_size
    return TileTower(
        layers[:depth],
        side * side,
        int(hasattr(tower.embeddings, "class_embedding")),
        tiles,
        resized,
    )


def clip_attention(layer: Any, hidden: Tensor, prefix: int) -> tuple[Tensor, Tensor]:
    """Attention (tiles, T) of the `prefix`, CLS, summed over the heads, and keys (tiles, T, d) of a layer's patches.

    Without CLS the attention is the mean over all queries. Computed here, whatever kernel the tower runs.
    """
    attn = layer.self_attn
    normed = layer.layer_norm1(hidden)
    keys = attn.k_proj(normed).unflatten(-1, (attn.num_heads, -1)).float()
    query = (
        attn.q_proj(normed[:, :prefix] if prefix else normed)
        .unflatten(-1, (attn.num_heads, -1))
        .float()
    )
    weights = torch.einsum("tqhd,tkhd->thqk", query, keys * attn.scale).softmax(dim=-1)
    return weights.mean(dim=2).sum(dim=1)[:, prefix:], keys.mean(dim=2)[:, prefix:]

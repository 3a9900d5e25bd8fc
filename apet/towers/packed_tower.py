"""Inside Qwen's vision tower: what a method may read there, and tokens dropped between its blocks.

The patches of all pictures lie in one sequence, four of a token side by side, in windows; a block attends within the
segments it is given. A picture is an image or one step of a video's temporal grid, and a token is only dropped whole.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers.vision_utils import get_vision_window_index

from apet.schedule import share
from apet.towers.labels import write_labels
from apet.view import View

if TYPE_CHECKING:
    from apet.attach.vision import Vision


@dataclass(frozen=True)
class PackedTower:
    module: Any  # the vision model
    mergers: tuple[nn.Module, ...]  # modules that make tokens of patches
    resized: ClassVar[bool] = False

    @property
    def layers(self) -> Any:
        return self.module.blocks

    @property
    def unit(self) -> int:
        """Patches of a token."""
        return int(self.module.spatial_merge_size**2)

    def hooks(self, module: nn.Module, vision: Vision) -> Iterator[RemovableHandle]:
        yield module.register_forward_pre_hook(partial(self._start, vision), with_kwargs=True)
        for depth, block in enumerate(self.layers):
            yield block.register_forward_pre_hook(
                partial(self._block, vision, depth), with_kwargs=True
            )
        for merger in self.mergers:
            yield merger.register_forward_hook(partial(self._merged, vision))

    def _start(
        self, vision: Vision, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        grid = kwargs["grid_thw"]
        config, merge = self.module.config, self.module.spatial_merge_size
        order = None
        if hasattr(config, "window_size"):
            order, _ = get_vision_window_index(
                grid,
                spatial_merge_size=merge,
                window_size=config.window_size,
                patch_size=config.patch_size,
            )
            order = order.to(grid.device)
        sizes = [(steps, height * width // self.unit) for steps, height, width in grid.tolist()]
        total = sum(steps * size for steps, size in sizes)
        there = torch.arange(total, device=args[0].device)
        run = PackedRun(
            self, sizes, there if order is None else order.to(there.device), pictures=[]
        )
        run.pictures = list(there.split([size for steps, size in sizes for _ in range(steps)]))
        run.place = torch.empty_like(there).scatter(0, run.order, there)
        vision.seen.runs.append(run)
        if vision.inside:
            for steps, size in sizes:
                for layer, keep in vision.sites(steps * size, len(self.layers)).items():
                    run.sites.setdefault(layer, []).extend(share(keep, [size] * steps))

    def _block(
        self,
        vision: Vision,
        depth: int,
        block: nn.Module,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        run, hidden = vision.seen.runs[-1], args[0]  # (patches, D)
        assert isinstance(run, PackedRun)
        if depth in run.sites:
            hidden = run.drop(vision, depth, hidden)
        if run.cells is not None:
            kwargs = kwargs | run.shorter(kwargs)
        if vision.method.needs_tower and depth == len(self.layers) - 1:
            with vision.timed(hidden):
                run.attend(block, hidden, kwargs)
        return (hidden, *args[1:]), kwargs

    def _merged(
        self, vision: Vision, merger: nn.Module, args: object, output: Tensor
    ) -> Tensor | None:
        run = vision.seen.runs[-1]
        assert isinstance(run, PackedRun)
        return run.mark(output)


@dataclass
class PackedRun:
    """One call of the tower."""

    tower: PackedTower
    sizes: list[tuple[int, int]]  # of each medium: pictures, and tokens of each
    order: Tensor  # (U,) which token, in reading order, stands at each place of the whole sequence
    pictures: list[Tensor]  # of each picture, which tokens are left, ascending
    place: Tensor = field(default_factory=lambda: torch.empty(0))  # (U,) where a token stands now
    sites: dict[int, list[int]] = field(
        default_factory=dict
    )  # what each picture keeps, by the block at whose entry
    cells: Tensor | None = None  # (U',) places of the whole sequence that are left; None: all
    received: Tensor | None = (
        None  # (U,) in reading order: attention that a token receives in the last block
    )
    metric: Tensor | None = None  # (U, d) and its key
    memory: dict[str, Tensor] = field(default_factory=dict)
    inputs: dict[int, tuple[Tensor, dict[str, Any]]] = field(
        default_factory=dict
    )  # of blocks since the last site

    def drop(self, vision: Vision, depth: int, hidden: Tensor) -> Tensor:
        """A site: each picture keeps its number of tokens."""
        unit = self.tower.unit
        tokens = hidden.view(
            len(hidden) // unit, -1
        ).clone()  # a token is its patches, one after the other
        alive = torch.ones(len(tokens), dtype=torch.bool, device=hidden.device)
        alike: dict[tuple[int, int], list[int]] = {}
        for picture, (left, keep) in enumerate(zip(self.pictures, self.sites[depth], strict=True)):
            if keep < len(left):
                alike.setdefault((len(left), keep), []).append(picture)
        for (size, keep), group in alike.items():
            which = torch.stack([self.pictures[picture] for picture in group])  # (G, n)
            here = self.place[which]
            zeros = torch.zeros(len(group), 1, dtype=torch.int64, device=hidden.device)
            view = View(
                "vision", depth, tokens[here], keep, (1, size), (0,) * len(group), zeros, here
            )
            with vision.timed(hidden):
                merged, places = vision.method.select(view)
            stay = here.gather(1, places)
            alive[here] = False
            alive[stay] = True
            tokens[stay] = merged.to(tokens.dtype)
            for picture, left in zip(group, which.gather(1, places), strict=True):
                self.pictures[picture] = left
        count = sum(map(len, self.pictures))
        index = alive.byte().argsort(descending=True, stable=True)[:count]
        whole = torch.arange(len(self.order), device=hidden.device)
        self.cells = (whole if self.cells is None else self.cells)[index]
        self.place = torch.zeros_like(whole).scatter(0, self.order[self.cells], whole[:count])
        self.inputs.clear()
        return tokens[index].view(-1, hidden.shape[-1])

    def shorter(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """A block's segments and rotary angles, for the patches that are left."""
        assert self.cells is not None
        unit, ends = self.tower.unit, inputs["cu_seqlens"]
        if (
            known := self.inputs.get(id(ends))
        ) is not None:  # counting segments waits for the device: once for a kind
            return known[1]
        segment = torch.bucketize(self.cells * unit, ends.to(self.cells.device), right=True)
        counts = torch.unique_consecutive(segment, return_counts=True)[1] * unit
        patches = (
            self.cells[:, None] * unit + torch.arange(unit, device=self.cells.device)
        ).flatten()
        shorter = {
            "cu_seqlens": torch.cat([ends.new_zeros(1), counts.cumsum(0).to(ends)]),
            "position_embeddings": tuple(angle[patches] for angle in inputs["position_embeddings"]),
        }
        self.inputs[id(ends)] = ends, shorter  # holding the tensor, lest another one take its id
        return shorter

    def attend(self, block: Any, hidden: Tensor, inputs: dict[str, Any]) -> None:
        """Attention that each token receives, the mean over the queries of its segment, the heads and its patches.

        That is what counts where there is no CLS. Computed beside the model's own kernel.
        """
        attn, unit = block.attn, self.tower.unit
        query, key, _ = (
            attn.qkv(block.norm1(hidden)).view(len(hidden), 3, attn.num_heads, -1).unbind(1)
        )
        cos, sin = inputs["position_embeddings"]
        query, key = rotate(query.float(), cos, sin), rotate(key.float(), cos, sin)
        lengths = inputs["cu_seqlens"].diff().tolist()
        received = []
        for queries, keys in zip(query.split(lengths), key.split(lengths), strict=True):
            total = keys.new_zeros(len(keys))
            for part in queries.split(1024):  # a large picture has too many for one matrix
                weights = torch.einsum("qhd,khd->hqk", part, keys * attn.scaling).softmax(dim=-1)
                total += weights.mean(dim=0).sum(dim=0)
            received.append(total / len(queries))
        back = self.order if self.cells is None else self.order[self.cells]
        values = torch.cat(received).view(-1, unit).mean(dim=1)
        keys = key.mean(dim=1).view(len(back), unit, -1).mean(dim=1)
        self.received = values.new_zeros(len(self.order)).scatter(0, back, values)
        self.metric = keys.new_zeros(len(self.order), keys.shape[1]).index_copy(0, back, keys)

    def mark(self, features: Tensor) -> Tensor | None:
        """Merged features (U', D) among marks where some were dropped; None if none were."""
        if self.cells is None:
            return None
        lost = torch.ones_like(self.order, dtype=torch.bool).scatter(0, self.cells, False)
        return write_labels(torch.zeros_like(self.order), features, lost).index_copy(
            0, self.cells, features
        )

    def patches(self, name: str) -> Tensor | None:
        """(U, ...): `received` or `metric`; a Qwen tower has no CLS, and its keys are not kept."""
        return {"received": self.received, "metric": self.metric}.get(name)


def rotate(vectors: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding of (P, H, d) by angles (P, d)."""
    first, second = vectors.chunk(2, dim=-1)
    return (
        vectors * cos[:, None].float() + torch.cat([-second, first], dim=-1) * sin[:, None].float()
    )

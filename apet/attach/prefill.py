"""One batch of prompts on its way through a model: where its visual tokens stand, what was dropped, what is left.

Lengths live on the host and columns on the device of the embeddings. Which tokens are kept is known on the device
alone, how many is known before, so nothing here waits for the device: what goes there is copied without blocking.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any, NamedTuple

import torch
from torch import Tensor

from apet.device import copy_async
from apet.methods.base import Method, Model
from apet.models.base import Group, Medium
from apet.schedule import Schedule, Stage, share
from apet.shortened import Shortened
from apet.stopwatch import Stopwatch
from apet.view import View


@dataclass(frozen=True)
class RowStats:
    """What became of one row's visual tokens."""

    visual_tokens: int  # what the decoder would see
    kept: dict[str, int]  # what each site left, by the site's name in a schedule: "encoder", "16"
    budget: float  # the average over the decoder's layers that this really is
    index: (
        dict[str, Tensor] | None
    )  # which of the row's visual tokens each site left, ascending; if asked for
    compress_ms: float  # the batch's time divided by its rows
    cache_bytes: (
        int  # keys and values of all layers after the last call, the batch's divided by its rows
    )
    media: Sequence[Medium] = field(
        repr=False, compare=False
    )  # their groups, in the order of `index`, and their grids


@dataclass
class Part:
    """What is left of visual tokens that are compressed together: of a group, and inside the decoder of a medium."""

    row: int
    columns: Tensor  # (n,) where they stand in the sequence
    origin: Tensor  # (n,) which of the medium's tokens they are
    group: Group | None = None  # None once the groups of a medium are one
    cells: Tensor | None = (
        None  # (n,) on the host: which of the tower's tokens they are, where that is known
    )


@dataclass
class Tracked:
    """A medium on its way."""

    row: int
    first: int  # visual tokens of the row's earlier media
    size: int
    schedule: Schedule
    parts: list[Part]


class Batch(NamedTuple):
    """G parts of N tokens each, to be compressed alike."""

    parts: list[Part]
    rows: Tensor  # (G, 1)
    columns: Tensor  # (G, N)
    origin: Tensor  # (G, N)
    keep: int
    grid: tuple[int, int]
    seeds: tuple[int, ...]

    def view(self, stage: Stage, layer: int, tokens: Tensor, **more: Any) -> View:
        """What a method sees of them."""
        return View(
            stage, layer, tokens, self.keep, self.grid, self.seeds, self.rows, self.columns, **more
        )


class Chosen(NamedTuple):
    """What was kept of a `Batch`."""

    batch: Batch
    tokens: Tensor  # (G, K, D)
    columns: Tensor  # (G, K) of the batch's columns


class Left(NamedTuple):
    """What is left of a batch from some layer on."""

    valid: Tensor  # (B, S) bool: not padding
    padded: bool  # is any of it padding?


class Prefill:
    """The state of a batch.

    valid: (B, S) bool on the host: what is not padding
    visual: likewise, the columns that are no text: visual tokens, and CLS and newlines among them
    seeds: a number for each row
    lost:  (B, S) bool on the host: tokens that were dropped inside the vision tower
    """

    def __init__(
        self,
        rows: Sequence[Sequence[Medium]],
        valid: Tensor,
        visual: Tensor,
        method: Method,
        model: Model,
        seeds: Sequence[int],
        device: torch.device,
        keep_index: bool,
        lost: Tensor | None = None,
    ) -> None:
        self.media, self.method, self.model, self.seeds, self.device = (
            rows,
            method,
            model,
            seeds,
            device,
        )
        self.batch, self.width = valid.shape  # of the prompt as it was given
        self.right = not bool(valid[:, -1].all())
        self.lost = lost if lost is not None and lost.any() else None
        left = valid if self.lost is None else valid & ~self.lost
        self.lengths: list[int] = left.sum(dim=1).tolist()  # of what stays
        self.layout = valid  # (B, S) of the sequence as it is now, on the host
        self.valid = self.to_device(valid)  # and on the device
        self.visual = self.to_device(visual)  # likewise
        self.tracked = [
            Tracked(
                row,
                sum(len(before.columns) for before in media[:place]),
                len(medium.columns),
                *self._plan(row, medium),
            )
            for row, media in enumerate(rows)
            for place, medium in enumerate(media)
        ]
        self._parts_to_device()
        self.sites = {
            s.layer for t in self.tracked for s in t.schedule.sites if s.stage == "decoder"
        }
        self.dropped = torch.zeros(
            self.batch, 1, dtype=torch.int64, device=device
        )  # by the encoder's site, per row
        self.left: dict[int, Left] = {}  # by layer: from there on; -1: from the entry on
        self.repacked = (
            False  # the sequence that enters the decoder is not the prompt's, even if it is as wide
        )
        self.stopwatch = Stopwatch(device)
        self.cache_bytes = 0
        self.keep_index = keep_index
        self.kept: list[dict[str, int]] = [{} for _ in rows]
        self.index: list[dict[str, list[Tensor]]] = [{} for _ in rows]

    def _plan(self, row: int, medium: Medium) -> tuple[Schedule, list[Part]]:
        schedule = self.method.plan(len(medium.columns), self.model)
        earliest = self.model.first_decoder_site
        for site in schedule.sites:
            if (
                site.stage == "decoder"
                and site.layer < earliest
                and site.keep < len(medium.columns)
            ):
                raise ValueError(
                    f"'{site}' is too early: this decoder adds visual features in its first {earliest} layers;"
                    f" choose layer {earliest} or later"
                )
        ends = list(accumulate(len(group.columns) for group in medium.groups))
        parts = []
        for group, end in zip(medium.groups, ends, strict=True):
            part = Part(
                row, group.columns, torch.arange(end - len(group.columns), end), group, group.cells
            )
            if self.lost is not None:
                there = ~self.lost[row, part.columns]
                part.columns, part.origin = part.columns[there], part.origin[there]
                part.cells = None if part.cells is None else part.cells[there]
            parts.append(part)
        return schedule, parts

    def parts(self) -> list[Part]:
        return [part for tracked in self.tracked for part in tracked.parts]

    def to_device(self, tensor: Tensor) -> Tensor:
        return copy_async(tensor, self.device)

    def _parts_to_device(self) -> None:
        """All columns in one copy."""
        parts = self.parts()
        if not parts:  # a prompt of text alone
            return
        sizes = [len(part.columns) for part in parts]
        columns, origin = self.to_device(
            torch.stack(
                [
                    torch.cat([part.columns for part in parts]),
                    torch.cat([part.origin for part in parts]),
                ]
            )
        )
        for part, here, which in zip(
            parts, torch.split(columns, sizes), torch.split(origin, sizes), strict=True
        ):
            part.columns, part.origin = here, which

    # ---- choosing

    def encoder_work(self) -> list[tuple[Part, int]]:
        """What each group keeps at the encoder's output: its share of what the medium keeps."""
        work: list[tuple[Part, int]] = []
        for tracked in self.tracked:
            sizes = [len(part.columns) for part in tracked.parts]
            work += zip(
                tracked.parts, share(tracked.schedule.tokens_at(0, "encoder"), sizes), strict=True
            )
        return work

    def decoder_work(self, layer: int) -> list[tuple[Part, int]]:
        return [(tracked.parts[0], tracked.schedule.tokens_at(layer)) for tracked in self.tracked]

    def choose(
        self, work: Sequence[tuple[Part, int]], look: Callable[[Batch], View]
    ) -> list[Chosen]:
        """Let the method choose, for all parts at once. Parts that keep all are left alone."""
        alike: dict[tuple[int, int, tuple[int, int]], list[Part]] = {}
        for part, keep in work:
            if keep < len(part.columns):
                whole = part.group is not None and len(part.columns) == len(part.group.columns)
                grid = part.group.grid if part.group and whole else (1, len(part.columns))
                alike.setdefault((len(part.columns), keep, grid), []).append(part)
        batches = [
            Batch(
                parts,
                self.to_device(torch.tensor([[part.row] for part in parts])),
                torch.stack([part.columns for part in parts]),
                torch.stack([part.origin for part in parts]),
                keep,
                grid,
                tuple(self.seeds[part.row] for part in parts),
            )
            for (_, keep, grid), parts in alike.items()
        ]
        if not batches:
            return []
        views = [look(batch) for batch in batches]
        with self.stopwatch.running():
            selected = self.method.select_batches(views)
        chosen = []
        for batch, (tokens, places) in zip(batches, selected, strict=True):
            columns, origin = batch.columns.gather(1, places), batch.origin.gather(1, places)
            for part, here, which in zip(batch.parts, columns, origin, strict=True):
                part.columns, part.origin = here, which
                self.lengths[part.row] -= batch.columns.shape[1] - batch.keep
            chosen.append(Chosen(batch, tokens, columns))
        return chosen

    def join_groups(self) -> None:
        """Past the encoder, a medium's tokens are one."""
        for tracked in self.tracked:
            columns = torch.cat([part.columns for part in tracked.parts])
            origin = torch.cat([part.origin for part in tracked.parts])
            tracked.parts = [Part(tracked.row, columns, origin)]

    def note(self, site: str) -> None:
        """For the statistics: what is there now; inside the decoder, in rows whose schedule has the site."""
        everyone = site in ("vision", "encoder")
        rows = {
            t.row
            for t in self.tracked
            if everyone or site in {str(s.layer) for s in t.schedule.sites}
        }
        for tracked in self.tracked:
            for part in tracked.parts if tracked.row in rows else ():
                self.kept[part.row][site] = self.kept[part.row].get(site, 0) + len(part.columns)
                if self.keep_index:
                    self.index[part.row].setdefault(site, []).append(part.origin + tracked.first)

    # ---- dropping

    def drop(self, chosen: Sequence[Chosen]) -> Shortened:
        """Take from the sequence what was not chosen; everything that says where tokens stand follows."""
        alive = self.valid.clone() if self.lost is None else self.valid & ~self.lost.to(self.device)
        self.lost = None
        for one in chosen:
            alive[one.batch.rows, one.batch.columns] = False
            alive[one.batch.rows, one.columns] = True
        short = Shortened(alive, self.lengths, self.right)
        self.layout = short.layout
        self.valid, self.visual = short.valid, short.last(self.visual) & short.valid
        parts = self.parts()
        sizes = [len(part.columns) for part in parts]
        rows = self.to_device(
            torch.tensor([part.row for part in parts]).repeat_interleave(torch.tensor(sizes))
        )
        moved = short.place[rows, torch.cat([part.columns for part in parts])]
        for part, columns in zip(parts, torch.split(moved, sizes), strict=True):
            part.columns = columns
        return short

    def pass_layer(self, layer: int) -> None:
        """From this layer on, the sequence is what it is now."""
        self.left[layer] = Left(self.valid, min(self.lengths) < self.valid.shape[1])

    @property
    def shortened(self) -> bool:
        return self.repacked or len(self.left) > 1

    def _average(self, row: int, there: int) -> float:
        """Visual tokens of a row that a decoder layer sees, over all layers."""
        kept, total = self.kept[row], 0
        there = kept.get("encoder", there)
        for layer in range(self.model.layers):
            there = kept.get(str(layer), there)
            total += there
        return total / self.model.layers

    @property
    def stats(self) -> list[RowStats]:
        found = []
        for row in range(self.batch):
            media = [tracked for tracked in self.tracked if tracked.row == row]
            found.append(
                RowStats(
                    visual_tokens=sum(tracked.size for tracked in media),
                    kept=self.kept[row],
                    budget=self._average(row, sum(tracked.size for tracked in media)),
                    index={s: torch.cat(i).cpu() for s, i in self.index[row].items()}
                    if self.keep_index
                    else None,
                    compress_ms=self.stopwatch.ms / self.batch,
                    cache_bytes=self.cache_bytes // self.batch,
                    media=self.media[row],
                )
            )
        return found

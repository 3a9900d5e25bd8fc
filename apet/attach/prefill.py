"""One batch of prompts on its way through a model: its visual tokens, dropped and remaining.

Lengths are on the host, columns on the device of the embeddings. Only the device knows which tokens
are kept, but their number is known in advance. So nothing here waits for the device: tensors are
copied to it without blocking.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from apet.attach.row_stats import RowStats
from apet.attach.token_groups import GroupBatch, Selection, TokenGroup, TokenMask, TrackedMedium
from apet.device import copy_async
from apet.methods.base import Method, ModelLayout
from apet.models.base import Medium
from apet.schedule import share
from apet.shortened_batch import ShortenedBatch
from apet.stopwatch import Stopwatch
from apet.view import View


class Prefill:
    """The state of a batch. Give the media of each row, and for each row a seed.

    valid:            (B, S) bool on the host: not padding
    visual:           (B, S) bool on the host: not text, so also CLS tokens and newlines of media
    dropped_in_tower: (B, S) bool on the host: tokens that a site inside the vision tower dropped
    """

    def __init__(
        self,
        media: Sequence[Sequence[Medium]],
        valid: Tensor,
        visual: Tensor,
        method: Method,
        model: ModelLayout,
        seeds: Sequence[int],
        device: torch.device,
        keep_index: bool,
        dropped_in_tower: Tensor | None = None,
    ) -> None:
        self.media, self.method, self.model, self.seeds = media, method, model, seeds
        self.device, self.keep_index, self.stopwatch = device, keep_index, Stopwatch(device)
        self.rows, self.prompt_width = valid.shape  # before anything is dropped
        self.padded_right = not bool(valid[:, -1].all())
        # Tokens dropped inside the tower stay in the sequence, as marks, until the next `drop`.
        self.marked = (
            dropped_in_tower if dropped_in_tower is not None and dropped_in_tower.any() else None
        )
        remaining = valid if self.marked is None else valid & ~self.marked
        self.lengths: list[int] = remaining.sum(dim=1).tolist()  # of each row, without marks
        self.layout = valid  # (B, S) of the current sequence, on the host
        self.valid = self.to_device(valid)  # the same on the device
        self.visual = self.to_device(visual)  # (B, S) of the current sequence
        self.tracked = [
            self._track(row, sum(earlier.size for earlier in row_media[:number]), medium)
            for row, row_media in enumerate(media)
            for number, medium in enumerate(row_media)
        ]
        self._groups_to_device()
        sites = (site for medium in self.tracked for site in medium.schedule.sites)
        self.sites = {site.layer for site in sites if site.stage == "decoder"}
        # (B, 1): how far the encoder's site moved the positions of the answer down, in each row.
        self.position_shift = torch.zeros(self.rows, 1, dtype=torch.int64, device=device)
        # By the first decoder layer that sees these tokens; -1: the decoder's input.
        self.token_masks: dict[int, TokenMask] = {}
        # Whether the decoder's input differs from the prompt. It may still be as wide.
        self.changed_input = False
        self.cache_bytes = 0
        self.kept: list[dict[str, int]] = [{} for _ in media]
        self.index: list[dict[str, list[Tensor]]] = [{} for _ in media]

    def _track(self, row: int, first: int, medium: Medium) -> TrackedMedium:
        size = medium.size
        schedule = self.method.cached_plan(size, self.model)
        earliest = self.model.first_decoder_site
        for site in schedule.sites:
            too_early = site.stage == "decoder" and site.layer < earliest
            if too_early and site.keep < size:
                raise ValueError(
                    f"'{site}' is too early: this decoder adds visual features in its first"
                    f" {earliest} layers; choose layer {earliest} or later"
                )
        groups, first_origin = [], 0
        for group in medium.groups:
            columns, cells = group.columns, group.cells
            origin = torch.arange(first_origin, first_origin + len(columns))
            first_origin += len(columns)
            if self.marked is not None:
                stays = ~self.marked[row, columns]
                columns, origin = columns[stays], origin[stays]
                cells = None if cells is None else cells[stays]
            groups.append(TokenGroup(row, columns, origin, group, cells))
        return TrackedMedium(row, first, size, schedule, groups)

    def groups(self) -> list[TokenGroup]:
        return [group for medium in self.tracked for group in medium.groups]

    def to_device(self, tensor: Tensor) -> Tensor:
        return copy_async(tensor, self.device)

    def _groups_to_device(self) -> None:
        """Copy all columns at once."""
        groups = self.groups()
        if not groups:  # a prompt of text alone
            return
        columns = torch.cat([group.columns for group in groups])
        origin = torch.cat([group.origin for group in groups])
        both = self.to_device(torch.stack([columns, origin]))
        sizes = [len(group.columns) for group in groups]
        for group, (columns, origin) in zip(groups, both.split(sizes, dim=1), strict=True):
            group.columns, group.origin = columns, origin

    # ---- selecting

    def encoder_targets(self) -> list[tuple[TokenGroup, int]]:
        """The number of tokens each group keeps at the encoder: its share of the medium's."""
        targets: list[tuple[TokenGroup, int]] = []
        for medium in self.tracked:
            keep = medium.schedule.tokens_at(0, "encoder")
            shares = share(keep, [len(group.columns) for group in medium.groups])
            targets += zip(medium.groups, shares, strict=True)
        return targets

    def decoder_targets(self, layer: int) -> list[tuple[TokenGroup, int]]:
        return [(medium.groups[0], medium.schedule.tokens_at(layer)) for medium in self.tracked]

    def select(
        self, targets: Sequence[tuple[TokenGroup, int]], make_view: Callable[[GroupBatch], View]
    ) -> list[Selection]:
        """Let the method select tokens of all groups at once, except of groups that keep all."""
        alike: dict[tuple[int, int, tuple[int, int]], list[TokenGroup]] = {}
        for group, keep in targets:
            if keep < len(group.columns):
                alike.setdefault((len(group.columns), keep, group.grid), []).append(group)
        batches = [
            GroupBatch(
                groups,
                self.to_device(torch.tensor([[group.row] for group in groups])),
                torch.stack([group.columns for group in groups]),
                torch.stack([group.origin for group in groups]),
                keep,
                grid,
                tuple(self.seeds[group.row] for group in groups),
            )
            for (_, keep, grid), groups in alike.items()
        ]
        if not batches:
            return []
        views = [make_view(batch) for batch in batches]
        with self.stopwatch.running():
            results = self.method.select_batches(views)
        selections = []
        for batch, (tokens, indices) in zip(batches, results, strict=True):
            all_columns, all_origin = (
                batch.columns.gather(1, indices),
                batch.origin.gather(1, indices),
            )
            for group, columns, origin in zip(batch.groups, all_columns, all_origin, strict=True):
                group.columns, group.origin = columns, origin
                self.lengths[group.row] -= batch.columns.shape[1] - batch.keep
            selections.append(Selection(batch, tokens, all_columns))
        return selections

    def join_groups(self) -> None:
        """Join the groups of each medium: inside the decoder they are compressed together."""
        for medium in self.tracked:
            first, *others = medium.groups
            columns, origin = first.columns, first.origin
            if others:
                columns = torch.cat([group.columns for group in medium.groups])
                origin = torch.cat([group.origin for group in medium.groups])
            medium.groups = [TokenGroup(medium.row, columns, origin)]

    # ---- dropping

    def drop(self, selections: Sequence[Selection]) -> ShortenedBatch:
        """Remove all tokens that were not selected, and update every column that is stored here."""
        alive = self.valid.clone()
        if self.marked is not None:
            alive &= ~self.to_device(self.marked)
            self.marked = None
        for batch, _, columns in selections:
            alive[batch.rows, batch.columns] = False
            alive[batch.rows, columns] = True
        short = ShortenedBatch(alive, self.lengths, self.padded_right)
        self.layout = short.layout
        self.valid, self.visual = short.valid, short.take_scalars(self.visual) & short.valid
        groups = self.groups()
        sizes = [len(group.columns) for group in groups]
        rows = torch.tensor([group.row for group in groups]).repeat_interleave(torch.tensor(sizes))
        all_columns = torch.cat([group.columns for group in groups])
        moved = short.destination[self.to_device(rows), all_columns]
        for group, columns in zip(groups, moved.split(sizes), strict=True):
            group.columns = columns
        return short

    def store_token_mask(self, layer: int) -> None:
        """Store that decoder layers from `layer` on see the current sequence."""
        self.token_masks[layer] = TokenMask(self.valid, min(self.lengths) < self.valid.shape[1])

    @property
    def shortened(self) -> bool:
        return self.changed_input or len(self.token_masks) > 1

    # ---- statistics

    def record_site(self, site: str) -> None:
        """Count the remaining tokens; of a decoder site, in rows whose schedule has it."""
        rows = {
            medium.row
            for medium in self.tracked
            if site in ("vision", "encoder")
            or site in {str(scheduled.layer) for scheduled in medium.schedule.sites}
        }
        for medium in self.tracked:
            for group in medium.groups if medium.row in rows else ():
                counts = self.kept[medium.row]
                counts[site] = counts.get(site, 0) + len(group.columns)
                if self.keep_index:
                    tokens = group.origin + medium.first
                    self.index[medium.row].setdefault(site, []).append(tokens)

    def _average(self, row: int, visual_tokens: int) -> float:
        """A row's visual tokens that a decoder layer sees, averaged over all layers."""
        kept, total = self.kept[row], 0
        count = kept.get("encoder", visual_tokens)
        for layer in range(self.model.layers):
            count = kept.get(str(layer), count)
            total += count
        return total / self.model.layers

    @property
    def stats(self) -> list[RowStats]:
        return [self._row_stats(row) for row in range(self.rows)]

    def _row_stats(self, row: int) -> RowStats:
        visual_tokens = sum(medium.size for medium in self.tracked if medium.row == row)
        index = {site: torch.cat(parts).cpu() for site, parts in self.index[row].items()}
        return RowStats(
            visual_tokens,
            self.kept[row],
            self._average(row, visual_tokens),
            index if self.keep_index else None,
            compress_ms=self.stopwatch.ms / self.rows,
            cache_bytes=self.cache_bytes // self.rows,
            media=self.media[row],
        )

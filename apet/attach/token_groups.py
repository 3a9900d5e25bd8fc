"""The visual tokens of a batch by groups, from all tokens of a prompt to those a method selects."""

from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor

from apet.models.base import Group
from apet.schedule import Schedule, Stage
from apet.view import View


@dataclass
class TokenGroup:
    """Remaining tokens that are compressed together: of a group, or of a medium later."""

    row: int
    columns: Tensor  # (n,) in the sequence
    origin: Tensor  # (n,) numbers among the medium's tokens
    vision_group: Group | None = None  # None once the groups of a medium are joined
    cells: Tensor | None = None  # (n,) on the host: numbers among the tower's tokens, if known

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of the picture; one row once tokens are missing or groups joined."""
        group = self.vision_group
        complete = group is not None and len(self.columns) == len(group.columns)
        return group.grid if group and complete else (1, len(self.columns))


@dataclass
class TrackedMedium:
    """An image or video of a row, its schedule and its remaining tokens."""

    row: int
    first: int  # visual tokens of the row's earlier media
    size: int
    schedule: Schedule
    groups: list[TokenGroup]


class GroupBatch(NamedTuple):
    """G groups of N tokens each, to be compressed alike."""

    groups: list[TokenGroup]
    rows: Tensor  # (G, 1)
    columns: Tensor  # (G, N)
    origin: Tensor  # (G, N)
    keep: int
    grid: tuple[int, int]
    seeds: tuple[int, ...]

    def view(self, stage: Stage, layer: int, tokens: Tensor, **optional: Any) -> View:
        """The method's view of `tokens` (G, N, D); `optional` are further fields of `View`."""
        row_numbers = tuple(group.row for group in self.groups)
        common = self.keep, self.grid, self.seeds, row_numbers, self.rows, self.columns
        return View(stage, layer, tokens, *common, **optional)


class Selection(NamedTuple):
    """Tokens that a method kept of a `GroupBatch`."""

    batch: GroupBatch
    tokens: Tensor  # (G, K, D)
    columns: Tensor  # (G, K), a subset of the batch's columns


class TokenMask(NamedTuple):
    """Columns of a padded batch that hold tokens, from some decoder layer on."""

    valid: Tensor  # (B, S) bool: not padding
    padded: bool  # whether any column is padding, known on the host

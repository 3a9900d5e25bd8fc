"""Encode equal media of a batch once: call a tower with the distinct ones, expand its output.

Questions about a picture bring it again with every row. A medium is what a tower keeps apart from
all others: a tile (an image, a crop, a frame), or with Qwen an image or a video, which is a run of
patches in one sequence. Media are equal if all their bits are.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from apet.device import copy_async

INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def encode_distinct(compute: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Call a tower's `compute` with the distinct media among its inputs; returns what all get.

    args: the tiles (N, ...), or patches (N, D) whose media are in `grid_thw` (M, 3)
    """
    grid = kwargs.get("grid_thw")
    tensors = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
    # Any further tensor could have a part for each medium as well.
    known = bool(args) and len(tensors) == 1 + (grid is not None)
    distinct = find_distinct(args[0], grid) if known else None
    if distinct is None:
        return compute(*args, **kwargs)
    if grid is not None:
        kwargs["grid_thw"] = grid[distinct.numbers.to(grid.device)]
    return distinct.expand(compute(args[0][distinct.rows], *args[1:], **kwargs))


@dataclass
class DistinctMedia:
    """The first of each medium among M media, and which of them equals each of the M."""

    numbers: Tensor  # (M',) of the distinct ones among all
    rows: Tensor  # (N',) rows of the tower's input that belong to them
    sizes: list[int]  # (M',) how many rows each of them has
    owners: list[int]  # (M,) the distinct medium that equals each one, from 0 to M' - 1
    _places: dict[int, Tensor] = field(default_factory=dict)  # by the number of rows

    def expand(self, output: Any) -> Any:
        """A tower's output for the distinct media, as it is for all: tensors in any nesting."""
        if isinstance(output, Tensor):
            return output[self._rows_of_all(len(output))]
        if isinstance(output, dict):
            return type(output)(**{name: self.expand(value) for name, value in output.items()})
        if isinstance(output, tuple | list):
            return type(output)(map(self.expand, output))
        return output

    def _rows_of_all(self, count: int) -> Tensor:
        """The rows of `count` rows for the distinct media, in proportion to sizes, for each of all.

        Merged tokens are fewer than patches, and the rows of each medium lie side by side.
        """
        if count not in self._places:
            total = sum(self.sizes)
            lengths = [size * count // total for size in self.sizes]
            if sum(lengths) != count:
                raise RuntimeError(
                    f"a tower's output has {count} rows for media of {self.sizes} rows, which it"
                    " cannot be divided among; call it without `towers`"
                )
            ends = [*accumulate(lengths)]
            rows = [torch.arange(ends[own] - lengths[own], ends[own]) for own in self.owners]
            self._places[count] = copy_async(torch.cat(rows), self.rows.device)
        return self._places[count]


def find_distinct(inputs: Tensor, grid: Tensor | None) -> DistinctMedia | None:
    """The distinct media among tiles (N, ...), or patches (N, D) of media `grid` (M, 3).

    None: all are distinct. That costs one pass over the inputs, and waits for the device once.
    """
    media = len(inputs) if grid is None else len(grid)
    if media < 2:
        return None
    hashes = row_hashes(inputs)
    shapes: list[tuple[int, ...]] = [(1,)] * media
    if grid is None:
        hashes = hashes.cpu()
    else:
        hashes, numbers = (
            torch.cat([hashes, grid.flatten().to(hashes)]).cpu().split([len(inputs), 3 * media])
        )
        shapes = [tuple(shape) for shape in numbers.view(media, 3).tolist()]
    sizes = [torch.Size(shape).numel() for shape in shapes]
    first: dict[tuple[object, bytes], int] = {}  # numbers of distinct media, by shape and hashes
    owners = [
        first.setdefault((shape, part.numpy().tobytes()), len(first))
        for shape, part in zip(shapes, hashes.split(sizes), strict=True)
    ]
    if len(first) == media:
        return None
    chosen = [owners.index(number) for number in range(len(first))]
    ends = [*accumulate(sizes)]
    rows = torch.cat(
        [torch.arange(ends[number] - sizes[number], ends[number]) for number in chosen]
    )
    distinct = DistinctMedia(
        copy_async(torch.tensor(chosen), inputs.device),
        copy_async(rows, inputs.device),
        [sizes[number] for number in chosen],
        owners,
    )
    # Hashes may agree by chance. (This waits for the device, which saves it at least a medium.)
    return distinct if torch.equal(distinct.expand(inputs[distinct.rows]), inputs) else None


def row_hashes(rows: Tensor) -> Tensor:
    """Hashes (N,) int64 of rows (N, ...). Sums of integers are the same in any order."""
    bits = rows.flatten(1).view(INTEGERS[rows.element_size()])
    return (bits * _weights(bits.shape[1], bits.device)).sum(dim=1)


@lru_cache(maxsize=4)
def _weights(count: int, device: torch.device) -> Tensor:
    """Odd random numbers (count,) int32, whose products with a row's bits overflow."""
    generator = torch.Generator().manual_seed(0)
    numbers = torch.randint(-(2**30), 2**30, (count,), generator=generator, dtype=torch.int32)
    return copy_async(2 * numbers + 1, device)

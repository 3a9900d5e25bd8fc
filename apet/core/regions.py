"""A picture cut into any number of regions: a coarser grid where there is one, else the nearest thing to it."""

from __future__ import annotations

from fractions import Fraction

import torch
from torch import Tensor

OBLONG = (
    2  # a true grid is preferred while its regions are at most this many times longer than wide
)


def partition(rows: int, columns: int, regions: int) -> tuple[Tensor, Tensor]:
    """Cut rows x columns tokens, in reading order, into exactly so many regions, 1 to all of them.

    The rows are cut into bands, and each band's columns into its share of the regions. All bands have the same
    share (576 tokens of 24 x 24 in 64 regions: 8 x 8, each of 3 x 3) if some number of bands allows it and leaves
    the regions about as wide as high; otherwise shares differ by one.

    Gives the region of every token, (N,), and the token nearest each region's centre, (regions,): both int64,
    on the host, ascending along the picture. Of two tokens in the middle it is the one above or to the left.
    """
    if not 1 <= regions <= rows * columns:
        raise ValueError(
            f"cannot cut {rows} x {columns} tokens into {regions} regions; 1 to {rows * columns} can be"
        )

    def oblong(bands: int) -> Fraction:
        high, wide = (
            rows * regions,
            columns * bands * bands,
        )  # in proportion to a region's height and width
        return Fraction(max(high, wide), min(high, wide))

    possible = range(-(-regions // columns), min(rows, regions) + 1)
    even = [bands for bands in possible if regions % bands == 0 and oblong(bands) <= OBLONG]
    bands = min(even or possible, key=oblong)
    region = torch.empty(rows, columns, dtype=torch.int64)
    centres, first = [], 0
    for band in range(bands):
        top, bottom = rows * band // bands, rows * (band + 1) // bands
        count = regions * (band + 1) // bands - first
        region[top:bottom] = first + torch.arange(columns) * count // columns
        left = -(
            -torch.arange(count + 1) * columns // count
        )  # where its regions begin, and their end
        centres.append((top + bottom - 1) // 2 * columns + (left[:-1] + left[1:] - 1) // 2)
        first += count
    return region.flatten(), torch.cat(centres)

"""Cut a picture into a number of regions: a coarser grid if there is one, else close to one."""

from fractions import Fraction

import torch
from torch import Tensor

MAX_ASPECT_RATIO = 2  # a true grid is preferred unless its regions are longer than this


def partition(rows: int, columns: int, regions: int) -> tuple[Tensor, Tensor]:
    """Cut rows x columns tokens, in reading order, into exactly `regions` regions.

    The rows are cut into bands, and each band's columns into its share of the regions. All bands
    have the same share (576 tokens of 24 x 24 in 64 regions: 8 x 8, each of 3 x 3) if some number
    of bands allows it and leaves the regions about as wide as high; otherwise shares differ by one.

    Returns the region of every token, (N,), and the token nearest each region's centre, (regions,):
    both int64, on the host, ascending along the picture. Of two middle tokens, the centre is the
    one above or to the left.
    """
    if not 1 <= regions <= rows * columns:
        raise ValueError(
            f"cannot cut {rows} x {columns} tokens into {regions} regions; expected 1 to"
            f" {rows * columns} regions"
        )

    def aspect_ratio(bands: int) -> Fraction:
        height, width = rows * regions, columns * bands * bands  # in proportion to a region's
        return Fraction(max(height, width), min(height, width))

    possible = range(-(-regions // columns), min(rows, regions) + 1)
    even = [
        bands
        for bands in possible
        if regions % bands == 0 and aspect_ratio(bands) <= MAX_ASPECT_RATIO
    ]
    bands = min(even or possible, key=aspect_ratio)
    region = torch.empty(rows, columns, dtype=torch.int64)
    centres, first = [], 0
    for band in range(bands):
        top, bottom = rows * band // bands, rows * (band + 1) // bands
        count = regions * (band + 1) // bands - first
        region[top:bottom] = first + torch.arange(columns) * count // columns
        edges = -(-torch.arange(count + 1) * columns // count)  # each region's first column, + end
        centres.append((top + bottom - 1) // 2 * columns + (edges[:-1] + edges[1:] - 1) // 2)
        first += count
    return region.flatten(), torch.cat(centres)

"""ApET's loops as Triton kernels: the same numbers as `basis`, `error` and `merge`, read straight from the tokens.

`apet.core.fused` launches them. Only it imports this module, and only where the kernels are used: Triton comes with
torch's builds for GPUs, not with all others. Tokens are flat, (T, D), in their own dtype; all sums are float64.

The tokens of each group are dealt into tiles of TILE, the last of which may be short, and a program works on one
tile. So a GPU is full whether it has hundreds of small groups or one large. What all tiles of a group must know (who
is farthest?) each leaves behind as two numbers; the next launch looks through those of its group.
"""

from __future__ import annotations

import triton
import triton.language as tl

from apet.core import error, fused, gram

NOISE = tl.constexpr(gram.NOISE)
DEPENDENT = tl.constexpr(error.DEPENDENT)
UNSURE = tl.constexpr(error.UNSURE)

TILE = tl.constexpr(fused.TILE)  # tokens of a program
SLOTS = tl.constexpr(64)  # kept tokens that they are compared with at a time
SCAN = tl.constexpr(128)  # tiles looked through at a time
COLUMNS = tl.constexpr(64)  # entries of the tokens read at a time
NOWHERE = tl.constexpr(2**31 - 1)  # a place behind all others


@triton.jit
def group_means(
    tokens: tl.tensor, starts: tl.tensor, means: tl.tensor, WIDTH: tl.constexpr
) -> None:
    """The mean of each group. One program for each group and COLUMNS of its entries."""
    group = tl.program_id(0)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    begin, end = tl.load(starts + group), tl.load(starts + group + 1)
    total = tl.full((TILE, COLUMNS), 0.0, tl.float64)
    for first in range(begin, end, TILE):
        row = first + tl.arange(0, TILE)
        there = (row < end)[:, None] & (column < WIDTH)[None, :]
        total += tl.load(tokens + row[:, None] * WIDTH + column[None, :], mask=there, other=0.0).to(
            tl.float64
        )
    mean = tl.sum(total, axis=0) / (end - begin).to(tl.float64)
    tl.store(means + group * WIDTH + column, mean, mask=column < WIDTH)


@triton.jit
def tile_of(starts: tl.tensor, tile_starts: tl.tensor, of_tile: tl.tensor) -> tuple[tl.tensor, ...]:
    """This program's group, where that begins and ends, the rows of the program's tokens, and which are no padding."""
    tile = tl.program_id(0)
    group = tl.load(of_tile + tile)
    begin, end = tl.load(starts + group), tl.load(starts + group + 1)
    row = begin + (tile - tl.load(tile_starts + group)) * TILE + tl.arange(0, TILE)
    return group, begin, end, row, row < end


@triton.jit
def leave(
    distance: tl.tensor,
    uncertain: tl.tensor,
    row: tl.tensor,
    real: tl.tensor,
    far: tl.tensor,
    noise: tl.tensor,
    low: tl.tensor,
    high: tl.tensor,
) -> None:
    """Distances and the noise in them; and for the tile: some token is at least `low` away, none above `high`."""
    tl.store(far + row, distance, mask=real)
    tl.store(noise + row, uncertain, mask=real)
    tl.store(
        low + tl.program_id(0), tl.max(tl.where(real, distance - uncertain, float("-inf")), axis=0)
    )
    tl.store(
        high + tl.program_id(0), tl.max(tl.where(real, distance + uncertain, float("-inf")), axis=0)
    )


@triton.jit
def from_mean(
    tokens: tl.tensor,
    means: tl.tensor,
    starts: tl.tensor,
    tile_starts: tl.tensor,
    of_tile: tl.tensor,
    squares: tl.tensor,
    far: tl.tensor,
    noise: tl.tensor,
    low: tl.tensor,
    high: tl.tensor,
    WIDTH: tl.constexpr,
) -> None:
    """The square of every token, and its squared distance from the mean of its group."""
    group, _, _, row, real = tile_of(starts, tile_starts, of_tile)
    own = tl.full((TILE, COLUMNS), 0.0, tl.float64)
    across = tl.full((TILE, COLUMNS), 0.0, tl.float64)
    middle = tl.full((COLUMNS,), 0.0, tl.float64)
    for first in range(0, WIDTH, COLUMNS):
        column = first + tl.arange(0, COLUMNS)
        inside = column < WIDTH
        there = real[:, None] & inside[None, :]
        token = tl.load(tokens + row[:, None] * WIDTH + column[None, :], mask=there, other=0.0).to(
            tl.float64
        )
        mean = tl.load(means + group * WIDTH + column, mask=inside, other=0.0)
        own += token * token
        across += token * mean[None, :]
        middle += mean * mean
    square = tl.sum(own, axis=1)
    ends = square + tl.sum(middle, axis=0)
    tl.store(squares + row, square, mask=real)
    leave(
        tl.maximum(ends - 2 * tl.sum(across, axis=1), 0.0),
        ends * NOISE,
        row,
        real,
        far,
        noise,
        low,
        high,
    )


@triton.jit
def farthest(
    begin: tl.tensor,
    end: tl.tensor,
    tile: tl.tensor,
    last: tl.tensor,
    far: tl.tensor,
    noise: tl.tensor,
    low: tl.tensor,
    high: tl.tensor,
) -> tl.tensor:
    """The token of a group that is farthest away, of equals the first: `gram.first_largest`.

    Its tiles are `tile` to `last`. Always a token of the group, even of one that holds NaN.
    """
    best = tl.full((SCAN,), float("-inf"), tl.float64)
    for first in range(tile, last, SCAN):
        here = first + tl.arange(0, SCAN)
        best = tl.maximum(best, tl.load(low + here, mask=here < last, other=float("-inf")))
    least = tl.max(best, axis=0)
    found = last - 1
    for first in range(tile, last, SCAN):
        here = first + tl.arange(0, SCAN)
        reach = tl.load(high + here, mask=here < last, other=float("-inf")) >= least
        found = tl.minimum(found, tl.min(tl.where(reach & (here < last), here, last - 1), axis=0))
    row = begin + (found - tile) * TILE + tl.arange(0, TILE)
    real = row < end
    reach = (
        tl.load(far + row, mask=real, other=float("-inf"))
        + tl.load(noise + row, mask=real, other=0.0)
        >= least
    )
    return tl.min(tl.where(reach & real, row, end - 1), axis=0)


@triton.jit(do_not_specialize=["step", "count"])
def next_pick(
    tokens: tl.tensor,
    starts: tl.tensor,
    tile_starts: tl.tensor,
    of_tile: tl.tensor,
    bases: tl.tensor,
    squares: tl.tensor,
    far: tl.tensor,
    noise: tl.tensor,
    low: tl.tensor,
    high: tl.tensor,
    new_far: tl.tensor,
    new_noise: tl.tensor,
    new_low: tl.tensor,
    new_high: tl.tensor,
    explained: tl.tensor,
    error: tl.tensor,
    score: tl.tensor,
    step: int,
    count: int,
    WIDTH: tl.constexpr,
) -> None:
    """Pick the token that is farthest from earlier picks, and say what it explains: one step, 1 to M, of both loops.

    far, noise, low, high: what the step before left; new_*: what this one leaves. A pick is -inf away ever after.
    explained: (M, T) how much of each token every pick's own direction holds; this step adds its row
    error:     (T,) what of each token's square the picks so far leave; `error.squared_error` once the last is done
    score:     likewise, with inf for the picks
    """
    group, begin, end, row, real = tile_of(starts, tile_starts, of_tile)
    if step > tl.load(bases + group):
        return
    tile, last = tl.load(tile_starts + group), tl.load(tile_starts + group + 1)
    pick = farthest(begin, end, tile, last, far, noise, low, high)

    across = tl.full((TILE, COLUMNS), 0.0, tl.float64)
    for first in range(0, WIDTH, COLUMNS):
        column = first + tl.arange(0, COLUMNS)
        inside = column < WIDTH
        there = real[:, None] & inside[None, :]
        token = tl.load(tokens + row[:, None] * WIDTH + column[None, :], mask=there, other=0.0).to(
            tl.float64
        )
        across += (
            token
            * tl.load(tokens + pick * WIDTH + column, mask=inside, other=0.0).to(tl.float64)[
                None, :
            ]
        )
    product = tl.sum(across, axis=1)
    square = tl.load(squares + row, mask=real, other=0.0)
    square_of_pick = tl.load(squares + pick)

    ends = square_of_pick + square
    distance = tl.maximum(ends - 2 * product, 0.0)
    before = tl.load(far + row, mask=real, other=0.0)
    before = tl.where(step > 1, before, float("inf"))  # the first was far from the mean
    nearer = distance < before
    uncertain = tl.where(nearer, ends * NOISE, tl.load(noise + row, mask=real, other=0.0))
    distance = tl.where(row == pick, float("-inf"), tl.where(nearer, distance, before))
    leave(distance, uncertain, row, real, new_far, new_noise, new_low, new_high)

    pivot = square_of_pick
    gone = tl.full((TILE,), 0.0, tl.float64)
    for earlier in range(step - 1):
        line = explained + earlier * count
        known, of_pick = tl.load(line + row, mask=real, other=0.0), tl.load(line + pick)
        product -= of_pick * known
        pivot -= of_pick * of_pick
        gone += known * known
    usable = pivot > square_of_pick * DEPENDENT
    direction = tl.where(usable, product / tl.sqrt(tl.where(usable, pivot, 1.0)), 0.0)
    tl.store(explained + (step - 1) * count + row, direction, mask=real)
    left = square - (gone + direction * direction)
    left = tl.where(left > square * UNSURE, left, 0.0)
    tl.store(error + row, left, mask=real)
    tl.store(score + row, tl.where(distance == float("-inf"), float("inf"), left), mask=real)


@triton.jit
def nearest_kept(
    tokens: tl.tensor,
    starts: tl.tensor,
    tile_starts: tl.tensor,
    slot_starts: tl.tensor,
    of_tile: tl.tensor,
    squares: tl.tensor,
    kept: tl.tensor,
    slot: tl.tensor,
    WIDTH: tl.constexpr,
) -> None:
    """Give each token whose `slot` is -1 that of the kept token it is most like: `merge.most_similar`.

    The kept tokens, `kept` their rows, are gone through from the last block to the first. So the first of equals is
    found in one pass: a block that holds one within the noise of the best so far comes before all blocks seen.
    """
    group, _, _, row, real = tile_of(starts, tile_starts, of_tile)
    begin = tl.load(slot_starts + group)
    size = (tl.load(slot_starts + group + 1) - begin).to(tl.int32)
    noise = tl.sqrt(tl.load(squares + row, mask=real, other=0.0)) * NOISE
    top = tl.full((TILE,), float("-inf"), tl.float64)
    found = tl.full((TILE,), 0, tl.int32)
    blocks = (size + SLOTS - 1) // SLOTS
    for turn in range(blocks):
        place = (blocks - 1 - turn) * SLOTS + tl.arange(0, SLOTS)
        open_ = place < size
        its_row = tl.load(kept + begin + place, mask=open_, other=0)
        cosine = tl.full((TILE, SLOTS), 0.0, tl.float64)
        for first in range(0, WIDTH, COLUMNS):
            column = first + tl.arange(0, COLUMNS)
            inside = column < WIDTH
            a = tl.load(
                tokens + row[:, None] * WIDTH + column[None, :],
                mask=real[:, None] & inside[None, :],
                other=0.0,
            )
            b = tl.load(
                tokens + its_row[None, :] * WIDTH + column[:, None],
                mask=open_[None, :] & inside[:, None],
                other=0.0,
            )
            cosine = tl.dot(a.to(tl.float64), b.to(tl.float64), cosine, out_dtype=tl.float64)
        length = tl.sqrt(tl.load(squares + its_row, mask=open_, other=0.0))
        # A zero vector is equally unlike everything. The other norm scales the noise instead.
        cosine = cosine * tl.where(length > 0, 1 / tl.where(length > 0, length, 1.0), 0.0)[None, :]
        cosine = tl.where(open_[None, :], cosine, float("-inf"))
        top = tl.maximum(top, tl.max(cosine, axis=1))
        alike = cosine >= (top - 2 * noise)[:, None]
        first_alike = tl.min(tl.where(alike & open_[None, :], place[None, :], NOWHERE), axis=1)
        found = tl.where(first_alike < NOWHERE, first_alike, found)
    own = tl.load(slot + row, mask=real, other=0)
    tl.store(slot + row, tl.where(own >= 0, own, found.to(tl.int64)), mask=real)


@triton.jit
def slot_means(
    tokens: tl.tensor, members: tl.tensor, bounds: tl.tensor, means: tl.tensor, WIDTH: tl.constexpr
) -> None:
    """The mean of the tokens of each slot. One program for each slot and COLUMNS of its entries.

    Rows `members[bounds[s] : bounds[s + 1]]` are those of slot s, always in the same order: no sum depends on chance.
    """
    slot = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    begin, end = tl.load(bounds + slot), tl.load(bounds + slot + 1)
    total = tl.full((TILE, COLUMNS), 0.0, tl.float64)
    for first in range(begin, end, TILE):
        place = first + tl.arange(0, TILE)
        row = tl.load(members + place, mask=place < end, other=0)
        there = (place < end)[:, None] & (column < WIDTH)[None, :]
        total += tl.load(tokens + row[:, None] * WIDTH + column[None, :], mask=there, other=0.0).to(
            tl.float64
        )
    mean = tl.sum(total, axis=0) / (end - begin).to(tl.float64)
    tl.store(means + slot * WIDTH + column, mean, mask=column < WIDTH)

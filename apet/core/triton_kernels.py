"""ApET's loops as Triton kernels: the numbers of the torch path, read straight from the tokens.

`apet.core.triton_launch` launches them. Only it imports this module, and only where the kernels are
used: Triton comes with torch's GPU builds alone. Tokens are flat, (T, D), in their own dtype; all
sums are float64.

The tokens of each group are dealt into tiles of TILE, the last of which may be short, and a program
works on one tile. So a GPU is full whether it has hundreds of small groups or a large one. Whatever
all tiles of a group must know (which token is farthest?) each tile leaves behind as two numbers;
the next launch looks through those of its group.

Arguments that recur: `starts`, `tile_starts`, `slot_starts` and `group_of_tile` of
`apet.core.group_layout`; `squares` (T,), the tokens' squared norms; and of each step of the loop,
`far` and `noise` (T,), the squared distance from the nearest pick and its noise, with `low` and
`high` (tiles,): some token of the tile is at least `low` away, and none more than `high`.
"""

from __future__ import annotations

import triton
import triton.language as tl

from apet.core import approximation_error, gram, group_layout

NOISE = tl.constexpr(gram.NOISE)
DEPENDENCE_TOLERANCE = tl.constexpr(approximation_error.DEPENDENCE_TOLERANCE)
ERROR_TOLERANCE = tl.constexpr(approximation_error.ERROR_TOLERANCE)

TILE = tl.constexpr(group_layout.TILE)  # tokens of a program
SLOTS = tl.constexpr(64)  # kept tokens that they are compared with at a time
SCAN = tl.constexpr(128)  # tiles looked through at a time
COLUMNS = tl.constexpr(64)  # entries of the tokens read at a time
DEPTH = tl.constexpr(16)  # entries of the tokens that one step of a product sums
NO_SLOT = tl.constexpr(2**31 - 1)  # larger than any slot


@triton.jit
def load_block(
    tokens: tl.tensor, row: tl.tensor, column: tl.tensor, mask: tl.tensor, WIDTH: tl.constexpr
) -> tl.tensor:
    """A block of `tokens` in float64, with zeros where `mask` is false."""
    return tl.load(tokens + row * WIDTH + column, mask=mask, other=0.0).to(tl.float64)


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
        mask = (row < end)[:, None] & (column < WIDTH)[None, :]
        total += load_block(tokens, row[:, None], column[None, :], mask, WIDTH)
    mean = tl.sum(total, axis=0) / (end - begin).to(tl.float64)
    tl.store(means + group * WIDTH + column, mean, mask=column < WIDTH)


@triton.jit
def tile_rows(
    starts: tl.tensor, tile_starts: tl.tensor, group_of_tile: tl.tensor
) -> tuple[tl.tensor, ...]:
    """This program's group, its first row and its end, the tile's rows, and which are in it."""
    tile = tl.program_id(0)
    group = tl.load(group_of_tile + tile)
    begin, end = tl.load(starts + group), tl.load(starts + group + 1)
    row = begin + (tile - tl.load(tile_starts + group)) * TILE + tl.arange(0, TILE)
    return group, begin, end, row, row < end


@triton.jit
def store_distances(
    distance: tl.tensor,
    uncertainty: tl.tensor,
    row: tl.tensor,
    real: tl.tensor,
    far: tl.tensor,
    noise: tl.tensor,
    low: tl.tensor,
    high: tl.tensor,
) -> None:
    """Write a tile's distances, the noise in them, and the tile's `low` and `high`."""
    tile = tl.program_id(0)
    tl.store(far + row, distance, mask=real)
    tl.store(noise + row, uncertainty, mask=real)
    least = tl.where(real, distance - uncertainty, float("-inf"))
    most = tl.where(real, distance + uncertainty, float("-inf"))
    tl.store(low + tile, tl.max(least, axis=0))
    tl.store(high + tile, tl.max(most, axis=0))


@triton.jit
def distances_to_mean(
    tokens: tl.tensor,
    means: tl.tensor,
    starts: tl.tensor,
    tile_starts: tl.tensor,
    group_of_tile: tl.tensor,
    squares: tl.tensor,
    far: tl.tensor,
    noise: tl.tensor,
    low: tl.tensor,
    high: tl.tensor,
    WIDTH: tl.constexpr,
) -> None:
    """The square of every token, and its squared distance from the mean of its group."""
    group, _, _, row, real = tile_rows(starts, tile_starts, group_of_tile)
    token_square = tl.full((TILE, COLUMNS), 0.0, tl.float64)
    product = tl.full((TILE, COLUMNS), 0.0, tl.float64)
    mean_square = tl.full((COLUMNS,), 0.0, tl.float64)
    for first in range(0, WIDTH, COLUMNS):
        column = first + tl.arange(0, COLUMNS)
        inside = column < WIDTH
        mask = real[:, None] & inside[None, :]
        token = load_block(tokens, row[:, None], column[None, :], mask, WIDTH)
        mean = load_block(means, group, column, inside, WIDTH)
        token_square += token * token
        product += token * mean[None, :]
        mean_square += mean * mean
    square = tl.sum(token_square, axis=1)
    both = square + tl.sum(mean_square, axis=0)
    tl.store(squares + row, square, mask=real)
    distance = tl.maximum(both - 2 * tl.sum(product, axis=1), 0.0)
    store_distances(distance, both * NOISE, row, real, far, noise, low, high)


@triton.jit
def farthest_token(
    begin: tl.tensor,
    end: tl.tensor,
    tile: tl.tensor,
    last: tl.tensor,
    far: tl.tensor,
    noise: tl.tensor,
    low: tl.tensor,
    high: tl.tensor,
) -> tl.tensor:
    """The farthest token of a group, the first among equals: `gram.first_argmax`.

    The group's tiles are `tile` to `last`. The result is a token of the group even if it holds NaN.
    """
    best = tl.full((SCAN,), float("-inf"), tl.float64)
    for first in range(tile, last, SCAN):
        here = first + tl.arange(0, SCAN)
        best = tl.maximum(best, tl.load(low + here, mask=here < last, other=float("-inf")))
    least = tl.max(best, axis=0)
    first_tile = last - 1
    for first in range(tile, last, SCAN):
        here = first + tl.arange(0, SCAN)
        reaches = tl.load(high + here, mask=here < last, other=float("-inf")) >= least
        candidate = tl.where(reaches & (here < last), here, last - 1)
        first_tile = tl.minimum(first_tile, tl.min(candidate, axis=0))
    row = begin + (first_tile - tile) * TILE + tl.arange(0, TILE)
    real = row < end
    distance = tl.load(far + row, mask=real, other=float("-inf"))
    reaches = distance + tl.load(noise + row, mask=real, other=0.0) >= least
    return tl.min(tl.where(reaches & real, row, end - 1), axis=0)


@triton.jit(do_not_specialize=["step", "count"])
def next_pick(
    tokens: tl.tensor,
    starts: tl.tensor,
    tile_starts: tl.tensor,
    group_of_tile: tl.tensor,
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
    """Pick the token farthest from earlier picks, and project it out: step 1 to M of both loops.

    far, noise, low, high: of the previous step; new_*: of this one. A pick's distance becomes -inf.
    explained: (M, T) the tokens' coordinates along each pick's direction; this step adds its row
    error:     (T,) squared residuals so far; after the last step, `squared_error`
    score:     the same, with inf for the picks
    """
    group, begin, end, row, real = tile_rows(starts, tile_starts, group_of_tile)
    if step > tl.load(bases + group):
        return
    tile, last = tl.load(tile_starts + group), tl.load(tile_starts + group + 1)
    pick = farthest_token(begin, end, tile, last, far, noise, low, high)

    products = tl.full((TILE, COLUMNS), 0.0, tl.float64)
    for first in range(0, WIDTH, COLUMNS):
        column = first + tl.arange(0, COLUMNS)
        inside = column < WIDTH
        mask = real[:, None] & inside[None, :]
        token = load_block(tokens, row[:, None], column[None, :], mask, WIDTH)
        products += token * load_block(tokens, pick, column, inside, WIDTH)[None, :]
    product = tl.sum(products, axis=1)
    square = tl.load(squares + row, mask=real, other=0.0)
    pick_square = tl.load(squares + pick)

    both = pick_square + square
    distance = tl.maximum(both - 2 * product, 0.0)
    previous = tl.load(far + row, mask=real, other=0.0)
    # The first pick was the farthest from the mean: those distances do not count from now on.
    previous = tl.where(step > 1, previous, float("inf"))
    nearer = distance < previous
    previous_noise = tl.load(noise + row, mask=real, other=0.0)
    uncertainty = tl.where(nearer, both * NOISE, previous_noise)
    distance = tl.where(row == pick, float("-inf"), tl.where(nearer, distance, previous))
    store_distances(distance, uncertainty, row, real, new_far, new_noise, new_low, new_high)

    pivot = pick_square
    total = tl.full((TILE,), 0.0, tl.float64)
    for earlier in range(step - 1):
        line = explained + earlier * count
        part, pick_part = tl.load(line + row, mask=real, other=0.0), tl.load(line + pick)
        product -= pick_part * part
        pivot -= pick_part * pick_part
        total += part * part
    usable = pivot > pick_square * DEPENDENCE_TOLERANCE
    direction = tl.where(usable, product / tl.sqrt(tl.where(usable, pivot, 1.0)), 0.0)
    tl.store(explained + (step - 1) * count + row, direction, mask=real)
    residual = square - (total + direction * direction)
    residual = tl.where(residual > square * ERROR_TOLERANCE, residual, 0.0)
    tl.store(error + row, residual, mask=real)
    tl.store(score + row, tl.where(distance == float("-inf"), float("inf"), residual), mask=real)


@triton.jit
def cosine_operands(
    tokens: tl.tensor,
    row: tl.tensor,
    real: tl.tensor,
    kept_row: tl.tensor,
    valid: tl.tensor,
    column: tl.tensor,
    WIDTH: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor]:
    """Some columns of a tile's tokens and, transposed, of kept tokens, for a product of both."""
    inside = column < WIDTH
    mask = real[:, None] & inside[None, :]
    kept_mask = valid[None, :] & inside[:, None]
    token = load_block(tokens, row[:, None], column[None, :], mask, WIDTH)
    kept_token = load_block(tokens, kept_row[None, :], column[:, None], kept_mask, WIDTH)
    return token, kept_token


@triton.jit
def nearest_kept(
    tokens: tl.tensor,
    starts: tl.tensor,
    tile_starts: tl.tensor,
    slot_starts: tl.tensor,
    group_of_tile: tl.tensor,
    squares: tl.tensor,
    kept: tl.tensor,
    slot: tl.tensor,
    WIDTH: tl.constexpr,
) -> None:
    """Give each token whose `slot` is -1 that of its most similar kept token: `most_similar`.

    The kept tokens (`kept` holds their rows) are visited from the last block to the first. So one
    pass finds the first among equals: a block that holds a token within the noise of the best so
    far comes before all blocks that were visited.
    """
    group, _, _, row, real = tile_rows(starts, tile_starts, group_of_tile)
    begin = tl.load(slot_starts + group)
    size = (tl.load(slot_starts + group + 1) - begin).to(tl.int32)
    noise = tl.sqrt(tl.load(squares + row, mask=real, other=0.0)) * NOISE
    top = tl.full((TILE,), float("-inf"), tl.float64)
    nearest = tl.full((TILE,), 0, tl.int32)
    blocks = (size + SLOTS - 1) // SLOTS
    for turn in range(blocks):
        candidate = (blocks - 1 - turn) * SLOTS + tl.arange(0, SLOTS)
        valid = candidate < size
        kept_row = tl.load(kept + begin + candidate, mask=valid, other=0)
        cosine = tl.full((TILE, SLOTS), 0.0, tl.float64)
        column = tl.arange(0, DEPTH)
        # The operands of the next step are loaded after a product: older compilers would otherwise
        # move the conversion to float64 behind a layout that only 16-bit numbers can have.
        a, b = cosine_operands(tokens, row, real, kept_row, valid, column, WIDTH)
        for first in range(DEPTH, WIDTH + DEPTH, DEPTH):
            cosine = tl.dot(a, b, cosine, out_dtype=tl.float64)
            a, b = cosine_operands(tokens, row, real, kept_row, valid, first + column, WIDTH)
        length = tl.sqrt(tl.load(squares + kept_row, mask=valid, other=0.0))
        # A zero vector is similar to nothing. The token's own norm scales the noise instead.
        cosine = cosine * tl.where(length > 0, 1 / tl.where(length > 0, length, 1.0), 0.0)[None, :]
        cosine = tl.where(valid[None, :], cosine, float("-inf"))
        top = tl.maximum(top, tl.max(cosine, axis=1))
        alike = cosine >= (top - 2 * noise)[:, None]
        first_alike = tl.min(tl.where(alike & valid[None, :], candidate[None, :], NO_SLOT), axis=1)
        nearest = tl.where(first_alike < NO_SLOT, first_alike, nearest)
    own = tl.load(slot + row, mask=real, other=0)
    tl.store(slot + row, tl.where(own >= 0, own, nearest.to(tl.int64)), mask=real)


@triton.jit
def slot_means(
    tokens: tl.tensor, members: tl.tensor, bounds: tl.tensor, means: tl.tensor, WIDTH: tl.constexpr
) -> None:
    """The mean of the tokens of each slot. One program for each slot and COLUMNS of its entries.

    Rows `members[bounds[s] : bounds[s + 1]]` are those of slot s, always in the same order, so that
    no sum depends on chance.
    """
    slot = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    begin, end = tl.load(bounds + slot), tl.load(bounds + slot + 1)
    total = tl.full((TILE, COLUMNS), 0.0, tl.float64)
    for first in range(begin, end, TILE):
        position = first + tl.arange(0, TILE)
        row = tl.load(members + position, mask=position < end, other=0)
        mask = (position < end)[:, None] & (column < WIDTH)[None, :]
        total += load_block(tokens, row[:, None], column[None, :], mask, WIDTH)
    mean = tl.sum(total, axis=0) / (end - begin).to(tl.float64)
    tl.store(means + slot * WIDTH + column, mean, mask=column < WIDTH)

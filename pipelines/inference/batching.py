"""Which rows are answered at once: as many as `--batch-size` says, and no more tokens than fit.

A batch costs what a rectangle of its longest row costs: rows x (prompt of the unmodified model + answer). How many
tokens fit is measured on a GPU: a batch of known size is answered under every point, and what it takes of the memory
at its worst, keys and values with it, is set against what is free. The number is rounded down and kept: the job's first
worker tells the others, by the ledger, and the runs' records tell a job that goes on. Batches are then made of the
same rows in all workers, and again after an interruption.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

import torch

from pipelines.inference.prepared_row import PreparedRow

MARGIN = 0.8  # of what is free: the next batch's pixels, what fragments, and rows unlike the measured ones
PROBE = 4096  # tokens that are measured with
DIGITS = 3  # binary ones that are kept of a measured number, so that a little more memory in use changes nothing
SIDE = 448  # pixels of its pictures, where a model takes any size


def cut(
    rows: Sequence[PreparedRow], most: int, tokens: int | None, room: int
) -> Iterator[list[PreparedRow]]:
    """Batches of rows that are sorted by tokens, the fewest first. A row that exceeds `tokens` alone is a batch.

    most: rows of a batch
    tokens: of a batch; None: any number
    room: tokens that an answer may have
    """
    batch: list[PreparedRow] = []
    for row in rows:
        cost = (len(batch) + 1) * (row.tokens + room)  # it is the longest so far
        if batch and (len(batch) == most or (tokens is not None and cost > tokens)):
            yield batch
            batch = []
        batch.append(row)
    if batch:
        yield batch


def rounded(number: float) -> int:
    """Down to DIGITS binary digits: 57,343 becomes 49,152."""
    whole = max(1, int(number))  # of a GPU that is full: every row is a batch of its own
    spare = max(0, whole.bit_length() - DIGITS)
    return whole >> spare << spare


def fitting(ways: Iterable[Callable[[], object]], tokens: int, share: float) -> int:
    """How many tokens a batch may have, measured on the GPUs of this process; `rounded`.

    ways: each answers a batch of so many `tokens`; what they leave behind, all of them together hold
    share: of its GPU that this process may fill
    """
    gpus = range(torch.cuda.device_count())
    held = [torch.cuda.memory_allocated(gpu) for gpu in gpus]
    peaks = held
    for way in ways:
        for gpu in gpus:
            torch.cuda.reset_peak_memory_stats(gpu)
        way()
        peaks = [
            max(peak, torch.cuda.max_memory_allocated(gpu))
            for gpu, peak in zip(gpus, peaks, strict=True)
        ]
    rooms = [_room(gpu, share, before) for gpu, before in zip(gpus, held, strict=True)]
    grown = [
        (room, peak - before)
        for room, peak, before in zip(rooms, peaks, held, strict=True)
        if peak > before
    ]
    return rounded(MARGIN * tokens * min((room / more for room, more in grown), default=0.0))


def _room(gpu: int, share: float, held: int) -> float:
    """Bytes that this process can still take of a GPU, what its allocator has in stock among them."""
    free, total = torch.cuda.mem_get_info(gpu)
    stock = torch.cuda.memory_reserved(gpu) - torch.cuda.memory_allocated(gpu)
    return max(0.0, min(free + stock, share * total - held))

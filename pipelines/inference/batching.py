"""Which rows are answered together: at most `--batch-size` rows, and no more tokens than fit.

A batch costs what a rectangle of its longest row costs: rows x (uncompressed prompt + answer). Rows
that share a prefix (the tokens up to a picture's last one) count it once, so a batch holds more.

On a GPU the limit is measured: a batch of known size is answered under every method, and its peak
memory, keys and values included, is compared with what is free. The limit is rounded down and
kept: the job's first worker shares it through the failure tracker, and the runs' records keep it
for a resumed job. So batches are made of the same rows in all workers, and again after an
interruption.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import torch

from pipelines.inference.prepared_row import PreparedRow

# Share of the free memory that is used. The rest is for the next batch's pixels, fragmentation
# and rows unlike the measured ones.
SAFETY_MARGIN = 0.8
PROBE_TOKENS = 4096  # size of the measured batch
PROBE_SIDE = 448  # pixels of its pictures, where a model takes any size
# Binary digits kept of a measured limit, so that slightly different memory use changes nothing.
KEPT_DIGITS = 3


def split_into_batches(
    rows: Sequence[PreparedRow],
    max_rows: int,
    max_tokens: int | None,
    answer_tokens: int,
    *,
    share: bool = False,
) -> Iterator[list[PreparedRow]]:
    """Batches of rows of similar length. A row above `max_tokens` is its own batch.

    max_rows:      rows that share nothing; others count by their tokens
    max_tokens:    of a whole batch; None: unlimited
    answer_tokens: that an answer may have
    share:         rows of a prefix follow each other, and its tokens count once
    """
    batch = Batch(answer_tokens, share)
    for row in sorted_by_prefix(rows) if share else sorted(rows, key=_length):
        longer = batch.with_row(row)
        too_many = longer.cost > max_rows * longer.row_cost
        # Methods that read the question, and CUDA graphs, have a copy of the prefix for every row.
        memory = len(longer.rows) * longer.row_cost
        too_large = max_tokens is not None and memory > max_tokens
        if batch.rows and (too_many or too_large):
            yield batch.rows
            longer = Batch(answer_tokens, share).with_row(row)
        batch = longer
    if batch.rows:
        yield batch.rows


def sorted_by_prefix(rows: Sequence[PreparedRow]) -> list[PreparedRow]:
    """Rows with the same prefix together, in an order that depends on these rows alone."""
    prefixes: dict[str, list[PreparedRow]] = {}
    for row in sorted(rows, key=_length):
        prefixes.setdefault(row.prefix_key, []).append(row)

    # Prefixes of a batch are padded to the longest one, and their rows to the largest group.
    def size(rows: list[PreparedRow]) -> tuple[int, int, str]:
        return rows[0].prefix_tokens, len(rows), rows[0].row_id

    return [row for group in sorted(prefixes.values(), key=size) for row in group]


def _length(row: PreparedRow) -> tuple[int, str]:
    return row.tokens, row.row_id


@dataclass(frozen=True)
class Batch:
    """A batch that grows, and its cost: that of a rectangle for prefixes and one for the rest."""

    answer_tokens: int
    share: bool
    rows: list[PreparedRow] = field(default_factory=list)
    prefixes: int = 0
    longest_prefix: int = 0
    longest_rest: int = 0

    def with_row(self, row: PreparedRow) -> Batch:
        prefix = row.prefix_tokens if self.share else 0
        known = bool(self.rows) and self.share and self.rows[-1].prefix_key == row.prefix_key
        return Batch(
            self.answer_tokens,
            self.share,
            [*self.rows, row],
            self.prefixes + (not known),
            max(self.longest_prefix, prefix),
            max(self.longest_rest, row.tokens - prefix),
        )

    @property
    def row_cost(self) -> int:
        """Tokens of one row that shares nothing."""
        return self.longest_prefix + self.longest_rest + self.answer_tokens

    @property
    def cost(self) -> int:
        rest = self.longest_rest + self.answer_tokens
        return self.prefixes * self.longest_prefix + len(self.rows) * rest


def round_down(number: float) -> int:
    """Round down to KEPT_DIGITS binary digits, at least 1: 57,343 becomes 49,152."""
    integer = max(1, int(number))  # a full GPU still answers row by row
    dropped_bits = max(0, integer.bit_length() - KEPT_DIGITS)
    return integer >> dropped_bits << dropped_bits


def measure_batch_tokens(
    probes: Iterable[Callable[[], object]], tokens: int, gpu_share: float
) -> int:
    """The number of tokens that fit into a batch on this process's GPUs, rounded down.

    probes: each answers a batch of `tokens` tokens; memory they keep is shared by all of them
    gpu_share: fraction of its GPUs that this process may fill
    """
    gpus = range(torch.cuda.device_count())
    before = [torch.cuda.memory_allocated(gpu) for gpu in gpus]
    peaks = before
    for probe in probes:
        for gpu in gpus:
            torch.cuda.reset_peak_memory_stats(gpu)
        probe()
        peaks = [max(peaks[gpu], torch.cuda.max_memory_allocated(gpu)) for gpu in gpus]
    batches_that_fit = [
        _free_bytes(gpu, gpu_share, before[gpu]) / (peaks[gpu] - before[gpu])
        for gpu in gpus
        if peaks[gpu] > before[gpu]
    ]
    return round_down(SAFETY_MARGIN * tokens * min(batches_that_fit, default=0.0))


def _free_bytes(gpu: int, gpu_share: float, allocated: int) -> float:
    """Bytes that this process can still take of a GPU, including its allocator's reserve."""
    free, total = torch.cuda.mem_get_info(gpu)
    reserve = torch.cuda.memory_reserved(gpu) - torch.cuda.memory_allocated(gpu)
    return max(0.0, min(free + reserve, gpu_share * total - allocated))

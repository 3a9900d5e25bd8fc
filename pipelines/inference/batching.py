"""Which rows are answered together: at most `--batch-size` rows, and no more tokens than fit.

A batch costs what a rectangle of its longest row costs: rows x (uncompressed prompt + answer). On
a GPU the limit is measured: a batch of known size is answered under every method, and its peak
memory, keys and values included, is compared with what is free. The limit is rounded down and
kept: the job's first worker shares it through the failure tracker, and the runs' records keep it
for a resumed job. So batches are made of the same rows in all workers, and again after an
interruption.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence

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
    rows: Sequence[PreparedRow], max_rows: int, max_tokens: int | None, answer_tokens: int
) -> Iterator[list[PreparedRow]]:
    """Batches of rows, which must be sorted by tokens. A row above `max_tokens` is its own batch.

    max_tokens: for a whole batch; None: unlimited
    answer_tokens: that an answer may have
    """
    batch: list[PreparedRow] = []
    for row in rows:
        cost = (len(batch) + 1) * (row.tokens + answer_tokens)  # this row is the longest so far
        too_large = max_tokens is not None and cost > max_tokens
        if batch and (len(batch) == max_rows or too_large):
            yield batch
            batch = []
        batch.append(row)
    if batch:
        yield batch


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

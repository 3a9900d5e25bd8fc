"""Batches by tokens: how rows are split, and how the limit is measured."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from pipelines.data.rows import Row
from pipelines.inference.batching import (
    SAFETY_MARGIN,
    measure_batch_tokens,
    round_down,
    split_into_batches,
)
from pipelines.inference.failure_tracker import FailureTracker, FailureTrackerClient
from pipelines.inference.prepared_row import PreparedRow


def rows(*tokens: int) -> list[PreparedRow]:
    return [PreparedRow(0, Row(f"{place}"), (), tokens=each) for place, each in enumerate(tokens)]


def sizes(
    *tokens: int, most: int = 100, limit: int | None = None, room: int = 0
) -> list[list[int]]:
    return [
        [row.tokens for row in batch]
        for batch in split_into_batches(rows(*tokens), most, limit, room)
    ]


def test_split_limits_rows_and_tokens() -> None:
    assert sizes() == []
    assert sizes(1, 2, 3, 4, 5, most=2) == [[1, 2], [3, 4], [5]]
    assert sizes(10, 10, 20, 30, limit=60) == [
        [10, 10, 20],
        [30],
    ]  # 3 x 20, and 4 x 30 would be too many
    assert sizes(10, 10, 20, 30, limit=59) == [[10, 10], [20], [30]]
    assert sizes(10, 10, 20, 30, limit=59, room=5) == [[10, 10], [20], [30]]
    assert sizes(10, 10, 20, 30, limit=29, room=5) == [[10], [10], [20], [30]]
    assert sizes(10, 500, 500, limit=100) == [
        [10],
        [500],
        [500],
    ]  # too many alone: a batch of its own
    assert sizes(10, 10, 10, most=2, limit=1000) == [[10, 10], [10]]


def test_split_makes_the_largest_allowed_batches() -> None:
    draw = torch.Generator().manual_seed(0)
    tokens = torch.randint(1, 400, (300,), generator=draw).sort().values.tolist()
    found = list(split_into_batches(rows(*tokens), 16, 2000, 10))
    assert [row.tokens for batch in found for row in batch] == tokens
    for batch, after in pairwise(found):
        assert len(batch) <= 16
        assert len(batch) == 1 or len(batch) * (max(row.tokens for row in batch) + 10) <= 2000
        more = [*batch, after[0]]
        assert len(more) > 16 or len(more) * (max(row.tokens for row in more) + 10) > 2000


def test_round_down_keeps_three_binary_digits() -> None:
    assert [round_down(number) for number in (0.0, 1.9, 7, 8, 9, 15.5, 57_343)] == [
        1,
        1,
        7,
        8,
        8,
        14,
        49_152,
    ]
    assert {round_down(number) for number in range(98_304, 114_688)} == {98_304}


def test_measure_takes_the_tightest_gpu_and_the_worst_probe(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Two GPUs with 100 and 60 free bytes; a batch of 8 tokens takes at most 10 and 12 of them."""
    used, peaks = [20, 30], [20, 30]
    known = {
        "device_count": lambda: 2,
        "memory_allocated": lambda gpu: used[gpu],
        "memory_reserved": lambda gpu: used[gpu] + 5,
        "max_memory_allocated": lambda gpu: peaks[gpu],
        "reset_peak_memory_stats": lambda gpu: peaks.__setitem__(gpu, used[gpu]),
        "mem_get_info": lambda gpu: ([95, 55][gpu], 1000),
    }
    for name, function in known.items():
        monkeypatch.setattr(torch.cuda, name, function)

    def probe(first: int, second: int) -> None:
        peaks[:] = [20 + first, 30 + second]

    probes = [lambda: probe(10, 3), lambda: probe(4, 12), lambda: probe(0, 0)]
    assert measure_batch_tokens(probes, 8, gpu_share=1.0) == round_down(SAFETY_MARGIN * 8 * 60 / 12)
    assert measure_batch_tokens(probes, 8, gpu_share=0.05) == round_down(
        SAFETY_MARGIN * 8 * (50 - 30) / 12
    )  # a twentieth of 1,000 is its own
    assert measure_batch_tokens([lambda: probe(990, 0)], 8, gpu_share=1.0) == 1
    assert measure_batch_tokens([lambda: None], 8, gpu_share=1.0) == 1


def test_first_measured_limit_holds_for_all_workers() -> None:
    tracker = FailureTracker()
    first, second = FailureTrackerClient(tracker, "w1"), FailureTrackerClient(tracker, "w2")
    assert first.batch_tokens() is None
    assert second.batch_tokens(4096) == 4096
    assert first.batch_tokens(8192) == 4096
    assert first.batch_tokens() == 4096

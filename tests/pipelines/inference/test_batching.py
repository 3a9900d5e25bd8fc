"""Batches by tokens: how rows are cut, and how many tokens are found to fit."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from pipelines.data.rows import Row
from pipelines.inference.batching import MARGIN, cut, fitting, rounded
from pipelines.inference.failure_tracker import FailureTracker, FailureTrackerClient
from pipelines.inference.prepared_row import PreparedRow


def rows(*tokens: int) -> list[PreparedRow]:
    return [PreparedRow(0, Row(f"{place}"), (), tokens=each) for place, each in enumerate(tokens)]


def sizes(
    *tokens: int, most: int = 100, limit: int | None = None, room: int = 0
) -> list[list[int]]:
    return [[row.tokens for row in batch] for batch in cut(rows(*tokens), most, limit, room)]


def test_by_hand() -> None:
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


def test_no_batch_is_too_large_and_none_could_be_larger() -> None:
    draw = torch.Generator().manual_seed(0)
    tokens = torch.randint(1, 400, (300,), generator=draw).sort().values.tolist()
    found = list(cut(rows(*tokens), 16, 2000, 10))
    assert [row.tokens for batch in found for row in batch] == tokens
    for batch, after in pairwise(found):
        assert len(batch) <= 16
        assert len(batch) == 1 or len(batch) * (max(row.tokens for row in batch) + 10) <= 2000
        more = [*batch, after[0]]
        assert len(more) > 16 or len(more) * (max(row.tokens for row in more) + 10) > 2000


def test_a_measured_number_is_rounded_down_to_few_digits() -> None:
    assert [rounded(number) for number in (0.0, 1.9, 7, 8, 9, 15.5, 57_343)] == [
        1,
        1,
        7,
        8,
        8,
        14,
        49_152,
    ]
    assert {rounded(number) for number in range(98_304, 114_688)} == {98_304}


def test_what_fits_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two GPUs of 100 and 60 bytes' room: a batch of 8 tokens takes 10 and 12 of them at its worst."""
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

    def way(first: int, second: int) -> None:
        peaks[:] = [20 + first, 30 + second]

    ways = [lambda: way(10, 3), lambda: way(4, 12), lambda: way(0, 0)]
    assert fitting(ways, 8, share=1.0) == rounded(MARGIN * 8 * 60 / 12)
    assert fitting(ways, 8, share=0.05) == rounded(
        MARGIN * 8 * (50 - 30) / 12
    )  # a twentieth of 1,000 is its own
    assert fitting([lambda: way(990, 0)], 8, share=1.0) == 1
    assert fitting([lambda: None], 8, share=1.0) == 1


def test_what_one_worker_has_found_holds_for_all() -> None:
    book = FailureTracker()
    first, second = FailureTrackerClient(book, "w1"), FailureTrackerClient(book, "w2")
    assert first.most_tokens() is None
    assert second.most_tokens(4096) == 4096
    assert first.most_tokens(8192) == 4096
    assert first.most_tokens() == 4096

"""Nights with faults, each once: every row is there exactly once, and those that are wrong say so (`tests/faults`)."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from faults import FAULTS
from faults.scene import Count, Theatre

pytestmark = pytest.mark.filterwarnings("default")  # Ray and MLflow warn of themselves
NIGHTS = [  # faults that can share a job do: starting one is what takes time
    (
        "raises",
        "hangs",
        "memory",
        "crowded",
        "killed",
        "store_slow",
        "store_mute",
        "store_busy",
        "store_cut",
    ),
    ("worker_killed", "machine_lost", "driver_killed", "clock_jumps", "mlflow_killed"),
    ("head_lost",),
]


@pytest.fixture(scope="module")
def theatre() -> Iterator[Theatre]:
    with Theatre() as made:
        yield made


@pytest.mark.parametrize("faults", NIGHTS, ids=" ".join)
def test_no_row_is_lost_or_doubled(theatre: Theatre, faults: tuple[str, ...]) -> None:
    assert theatre.night(seed=1).play([FAULTS[name] for name in faults]) == Count(lost=0, doubled=0)

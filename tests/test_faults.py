"""Nights with faults, each once: every row is there exactly once, and those that are wrong say so (`tests/faults`)."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from faults import FAULTS, NIGHTS
from faults.scene import Count, Theatre

pytestmark = pytest.mark.filterwarnings("default")  # Ray and MLflow warn of themselves


@pytest.fixture(scope="module")
def theatre() -> Iterator[Theatre]:
    with Theatre() as made:
        yield made


@pytest.mark.parametrize("faults", NIGHTS[:3], ids=" ".join)  # the others fill disks and memory
def test_no_row_is_lost_or_doubled(theatre: Theatre, faults: list[str]) -> None:
    assert theatre.night(seed=1).play([FAULTS[name] for name in faults]) == Count(lost=0, doubled=0)

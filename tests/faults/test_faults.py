"""Nights with faults, each once: every row is there exactly once, and those that are wrong say so (`tests/faults`)."""

from __future__ import annotations

from collections.abc import Generator, Iterator

import pytest

from tests.faults import FAULTS, NIGHTS
from tests.faults.places import mounts
from tests.faults.scene import Count, Night, Theatre

pytestmark = pytest.mark.filterwarnings("default")  # Ray and MLflow warn of themselves


@pytest.fixture(scope="module")
def theatre() -> Iterator[Theatre]:
    with Theatre() as made:
        yield made


@pytest.mark.parametrize("faults", NIGHTS, ids=" ".join)
def test_no_row_is_lost_or_doubled(theatre: Theatre, faults: list[str]) -> None:
    if "disk_full" in faults and not mounts():
        pytest.skip("a small disk to fill is a file system to mount, which takes root")
    assert theatre.night(seed=1).play([FAULTS[name] for name in faults]) == Count(lost=0, doubled=0)


def test_two_actors_on_two_machines_have_a_gpu_each(theatre: Theatre) -> None:
    def both(night: Night) -> Generator[None, None, None]:
        (night.folder / "hold").touch()
        yield
        night.job.until(lambda: len(list((night.folder / "devices").iterdir())) == 2, "two workers")
        (night.folder / "hold").unlink()
        yield

    night = theatre.night(seed=2)
    assert night.play([both], actors=(2, 2)) == Count(lost=0, doubled=0)
    seen = {path.name: path.read_text().split() for path in (night.folder / "devices").iterdir()}
    assert {row["actor"] for row in night.answers()} == set(seen)
    assert len({node for node, *_ in seen.values()}) == 2
    assert [gpu for _, *gpu in seen.values()] == [
        ["[0]", "0"]
    ] * 2  # the first of its machine, and no other

"""Too small a cluster is said before anything loads, and what a worker dies of is found out and bounded."""

from __future__ import annotations

import pytest
import ray

from pipelines.cluster import Share, share
from pipelines.ledger import ALONE, DEATHS, Book, Desk, Done
from pipelines.plan import rows_per_block


@pytest.fixture
def resources(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    has: dict[str, float] = {}
    monkeypatch.setattr(ray, "cluster_resources", lambda: has)
    return has


@pytest.mark.parametrize(
    ("has", "actors", "cpus", "gpus"),
    [
        ({"CPU": 1}, 1, 0.5, 0),
        ({"CPU": 2}, 2, 0.5, 0),
        ({"CPU": 64}, 8, 7.8, 0),
        ({"CPU": 16, "GPU": 1}, 1, 1, 1),
        ({"CPU": 64, "GPU": 8}, 8, 1, 1),
    ],
)
def test_what_fits(resources: dict[str, float], has: dict[str, float], actors: int, cpus: float, gpus: float) -> None:
    resources.update(has)
    found = share(None, None, None)
    assert (found.least, found.most, found.cpus, found.gpus) == (actors, actors, cpus, gpus)
    assert found.most * found.cpus + found.prepare_cpus <= has["CPU"]


def test_fractions_of_a_gpu(resources: dict[str, float]) -> None:
    resources.update({"CPU": 16, "GPU": 2})
    assert share(None, 0.25, None).most == 8
    assert share((1, 4), 0.5, 2.0) == Share(1, 4, 0.5, 2.0, 1.0, None)


def test_reading_is_never_fused_into_the_actors(resources: dict[str, float]) -> None:
    resources.update({"CPU": 4})
    found = share((2, 2), None, 1.0)
    assert found.prepare_cpus != found.cpus


@pytest.mark.parametrize(
    ("actors", "gpus", "cpus", "says"),
    [
        ((4, 4), None, 1.0, "need 5 CPUs, and the cluster has 4"),
        ((1, 1), None, 3.5, "need 4.5 CPUs"),
        ((1, 1), 1.0, None, "need 1 GPUs, and the cluster has 0"),
    ],
)
def test_too_small(
    resources: dict[str, float], actors: tuple[int, int], gpus: float | None, cpus: float | None, says: str
) -> None:
    resources.update({"CPU": 4})
    with pytest.raises(ValueError, match=says):
        share(actors, gpus, cpus)


def test_blocks_suit_the_length_of_the_job() -> None:
    assert rows_per_block(10, actors=2, batch_size=16) == 16
    assert rows_per_block(200, actors=1, batch_size=16) == 48
    assert rows_per_block(10_000, actors=2, batch_size=16) == 64
    assert rows_per_block(10_000_000, actors=8, batch_size=16) == 2500


def test_a_row_that_kills_its_worker_is_found_and_given_up() -> None:
    book = Book()
    rows, deaths, answered = ["a", "b", "poison", "c"], 0, []

    def work(batch: list[str]) -> bool:
        """False if the worker dies."""
        if "poison" in batch:
            return False
        answered.extend(batch)
        return True

    while len(answered) < 3 and deaths < 10:
        desk = Desk(book, "w1")
        desk.arrive()
        suspects, lost = desk.begin([row for row in rows if row not in answered])
        batches = [[row] for row in suspects] if suspects else [[r for r in rows if r not in (*answered, *lost)]]
        for batch in batches:
            if suspects:
                desk.alone(batch[0])
            if not work(batch):
                deaths += 1
                break
            desk.end([Done("p", rows=len(batch))])
    assert sorted(answered) == ["a", "b", "c"]
    assert deaths == 1 + ALONE
    assert Desk(book, "w1").begin(rows)[1] == ["poison"]


def test_a_job_without_hope_ends() -> None:
    book = Book()
    for number in range(DEATHS):
        desk = Desk(book, "w1")
        desk.arrive()
        desk.begin([f"row {number}"])
    with pytest.raises(RuntimeError, match=f"died {DEATHS} times"):
        Desk(book, "w1").arrive()


def test_a_job_that_gets_on_does_not() -> None:
    book = Book()
    for number in range(3 * DEATHS):
        desk = Desk(book, "w1")
        desk.arrive()
        desk.begin([f"row {number}"])
        if number % 3 == 0:
            desk.end([Done("p", rows=1)])

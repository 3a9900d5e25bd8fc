"""Too small a cluster is said before anything loads, and what a worker dies of is found out and bounded."""

from __future__ import annotations

import subprocess
import sys

import pytest

from pipelines.inference.cluster import ClusterShare, Node, plan_resources
from pipelines.inference.failure_tracker import (
    MAX_BARREN_DEATHS,
    MAX_SOLO_DEATHS,
    MAX_STALLS,
    BusyTime,
    FailureTracker,
    FailureTrackerClient,
    RunProgress,
)
from pipelines.inference.plan import patience, rows_per_task


@pytest.fixture
def machines(monkeypatch: pytest.MonkeyPatch) -> list[Node]:
    has: list[Node] = []
    monkeypatch.setattr("pipelines.inference.cluster.nodes", lambda: has)
    return has


@pytest.mark.parametrize(
    ("has", "actors", "cpus", "gpus"),
    [
        ([Node(1, 0)], 1, 0.5, 0),
        ([Node(2, 0)], 2, 0.5, 0),
        ([Node(64, 0)], 8, 7.8, 0),
        ([Node(16, 1)], 1, 1, 1),
        ([Node(64, 8)], 8, 1, 1),
        ([Node(8, 8)], 8, 0.8, 1),
        ([Node(4, 2), Node(8, 0), Node(16, 1)], 3, 1, 1),
    ],
)
def test_what_fits(
    machines: list[Node], has: list[Node], actors: int, cpus: float, gpus: float
) -> None:
    machines += has
    found = plan_resources(None, None, None)
    assert (found.least, found.most, found.cpus, found.gpus) == (actors, actors, cpus, gpus)
    assert found.most * found.cpus + found.prepare_cpus <= sum(node.cpus for node in has)


def test_fractions_of_a_gpu(machines: list[Node]) -> None:
    machines.append(Node(16, 2))
    assert plan_resources(None, 0.25, None).most == 8
    assert plan_resources((1, 4), 0.5, 2.0) == ClusterShare(1, 4, 0.5, 2.0, 1.0, None)


def test_a_pool_that_grows_leaves_a_cpu_for_reading(machines: list[Node]) -> None:
    machines.append(Node(4, 0))
    assert plan_resources((1, 4), None, 1.0).most == 3
    assert plan_resources((1, 8), None, 0.5).most == 6


def test_reading_is_never_fused_into_the_actors(machines: list[Node]) -> None:
    machines.append(Node(4, 0))
    found = plan_resources((2, 2), None, 1.0)
    assert found.prepare_cpus != found.cpus


@pytest.mark.parametrize(
    ("has", "actors", "gpus", "cpus", "says"),
    [
        ([Node(4, 0)], (4, 4), None, 1.0, "need 5 CPUs, and the cluster has 4"),
        ([Node(4, 0)], (1, 1), None, 3.5, "need 4.5 CPUs"),
        ([Node(4, 0)], (1, 1), 1.0, None, "need 1 GPUs, and the cluster has 0"),
        ([Node(8, 1), Node(8, 1)], (1, 1), 2.0, None, "has 2 on 2 machines, at most 1 on one"),
        ([Node(4, 0), Node(4, 0)], (1, 1), None, 5.0, "has 8 on 2 machines, at most 4 on one"),
        ([Node(2, 0), Node(2, 0)], (2, 2), None, 1.5, "need 4 CPUs, and the cluster has 4"),
    ],
)
def test_too_small(
    machines: list[Node],
    has: list[Node],
    actors: tuple[int, int],
    gpus: float | None,
    cpus: float | None,
    says: str,
) -> None:
    machines += has
    with pytest.raises(ValueError, match=says):
        plan_resources(actors, gpus, cpus)


def test_tasks_suit_the_length_of_the_job() -> None:
    assert rows_per_task(10, actors=2, batch_size=16) == 16
    assert rows_per_task(200, actors=1, batch_size=16) == 48
    assert rows_per_task(10_000, actors=2, batch_size=16) == 64
    assert rows_per_task(10_000_000, actors=8, batch_size=16) == 2500


def test_a_row_that_kills_its_worker_is_found_and_given_up() -> None:
    book = FailureTracker()
    rows, deaths, answered = ["a", "b", "poison", "c"], 0, []

    def work(batch: list[str]) -> bool:
        """False if the worker dies."""
        if "poison" in batch:
            return False
        answered.extend(batch)
        return True

    while len(answered) < 3 and deaths < 10:
        desk = FailureTrackerClient(book, "w1")
        assert desk.arrive() is bool(deaths)
        suspects, lost = desk.begin([row for row in rows if row not in answered])
        batches = (
            [[row] for row in suspects]
            if suspects
            else [[r for r in rows if r not in (*answered, *lost)]]
        )
        for batch in batches:
            if suspects:
                desk.alone(batch[0])
            if not work(batch):
                deaths += 1
                break
            desk.end([RunProgress("p", rows=len(batch))], BusyTime())
    assert sorted(answered) == ["a", "b", "c"]
    assert deaths == 1 + MAX_SOLO_DEATHS
    assert FailureTrackerClient(book, "w1").begin(rows)[1] == {
        "poison": "WorkerDied: the worker died"
    }


HANGS = """
import sys, time
from pipelines import ledger
ledger.GRACE = 0.5
desk = ledger.Desk(ledger.Book(), "w1")
with desk.within(60):
    time.sleep(0.01)
time.sleep(0.5)  # what is done in time is left alone
desk.begin(["hangs"])
with desk.within(0.3):
    {hang}
"""


@pytest.mark.parametrize(
    ("hang", "status", "says"),
    [
        ("time.sleep(60)", 75, "took longer than 0.3 s"),
        (
            "import ctypes; ctypes.PyDLL(None).sleep(60)",
            1,
            "Timeout (0:00:00.8",
        ),  # Python's lock held all the time
    ],
)
def test_what_hangs_ends_and_says_where(hang: str, status: int, says: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", HANGS.format(hang=hang)],
        capture_output=True,
        text=True,
        check=False,
        timeout=50,
    )
    assert done.returncode == status
    assert says in done.stderr
    assert 'File "<string>", line 11 in <module>' in done.stderr


def test_a_row_that_hangs_is_given_up_as_late() -> None:
    book = FailureTracker()
    for _ in range(MAX_SOLO_DEATHS):
        desk = FailureTrackerClient(book, "w1")
        desk.arrive()
        suspects, lost = desk.begin(["hangs"])
        assert not lost
        if suspects:
            desk.alone("hangs")
        book.late("w1", 9.0)
    FailureTrackerClient(book, "w1").arrive()
    assert FailureTrackerClient(book, "w1").begin(["hangs"])[1] == {
        "hangs": "TimeoutError: the worker took longer than --batch-timeout 9 s"
    }


def test_a_job_without_hope_ends() -> None:
    book = FailureTracker()
    for number in range(MAX_BARREN_DEATHS):
        desk = FailureTrackerClient(book, "w1")
        desk.arrive()
        desk.begin([f"row {number}"])
    with pytest.raises(RuntimeError, match=f"died {MAX_BARREN_DEATHS} times"):
        FailureTrackerClient(book, "w1").arrive()


def test_what_no_row_is_to_blame_for_is_not_waited_for_as_often() -> None:
    """A store that does not give the rows of a manifest hangs in each attempt, and each takes a whole timeout."""
    book = FailureTracker()
    desk = FailureTrackerClient(book, "prepare 1")
    for attempt in range(1 + MAX_STALLS):
        desk.arrive()
        suspects, _ = desk.begin(["reading 0/a", "reading 0/b"])
        assert bool(suspects) == (attempt > 0)
        book.late("prepare 1", 600.0)
    with pytest.raises(
        RuntimeError,
        match="reading rows of the manifest took longer than --batch-timeout each time",
    ):
        desk.arrive()
    assert (attempt + 1) * 600 < patience(600)


def test_a_job_that_gets_on_does_not() -> None:
    book = FailureTracker()
    for number in range(3 * MAX_BARREN_DEATHS):
        desk = FailureTrackerClient(book, "w1")
        desk.arrive()
        desk.begin([f"row {number}"])
        if number % 3 == 0:
            desk.end([RunProgress("p", rows=1)], BusyTime())


def test_the_clock_starts_with_the_first_batch() -> None:
    """Whose time is that of all its runs: a sweep's first words on its speed are true."""
    book = FailureTracker()
    desk = FailureTrackerClient(book, "w1")
    desk.end([], BusyTime())
    assert not book.progress.started
    desk.end(
        [RunProgress(f"run {number}", spent_s=2.0) for number in range(5)], BusyTime()
    )  # nothing is on disk yet
    desk.end([RunProgress(f"run {number}", rows=8) for number in range(5)], BusyTime())
    assert book.progress.latest - book.progress.started == pytest.approx(10.0, abs=1.0)
    assert book.progress.spent_s.total() == 10.0
    first = book.progress.started
    desk.end([RunProgress("run 0", rows=8, spent_s=2.0)], BusyTime())
    assert book.progress.started == first

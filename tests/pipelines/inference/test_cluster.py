"""Resources of a cluster, and the failure tracker: what kills a worker is found and bounded."""

from __future__ import annotations

import subprocess
import sys

import pytest

from pipelines.inference.cluster import ClusterShare, Node, plan_resources
from pipelines.inference.failure_tracker import (
    MAX_BARREN_DEATHS,
    MAX_SOLO_DEATHS,
    MAX_STALLS,
    FailureTracker,
    FailureTrackerClient,
)
from pipelines.inference.plan import rows_per_task, stall_timeout_s
from pipelines.inference.progress import BusyTime, RunProgress


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
def test_default_actors_fit_the_cluster(
    machines: list[Node], has: list[Node], actors: int, cpus: float, gpus: float
) -> None:
    machines += has
    found = plan_resources(None, None, None)
    assert (found.min_actors, found.max_actors, found.cpus, found.gpus) == (
        actors,
        actors,
        cpus,
        gpus,
    )
    assert found.max_actors * found.cpus + found.prepare_cpus <= sum(node.cpus for node in has)


def test_actors_share_gpus_by_fractions(machines: list[Node]) -> None:
    machines.append(Node(16, 2))
    assert plan_resources(None, 0.25, None).max_actors == 8
    assert plan_resources((1, 4), 0.5, 2.0) == ClusterShare(1, 4, 0.5, 2.0, 1.0, None)


def test_growing_pool_leaves_a_cpu_for_reading(machines: list[Node]) -> None:
    machines.append(Node(4, 0))
    assert plan_resources((1, 4), None, 1.0).max_actors == 3
    assert plan_resources((1, 8), None, 0.5).max_actors == 6


def test_reading_tasks_are_never_fused_into_actors(machines: list[Node]) -> None:
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
def test_request_beyond_the_cluster_is_refused(
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


def test_rows_per_task_grow_with_the_job() -> None:
    assert rows_per_task(10, actors=2, batch_size=16) == 16
    assert rows_per_task(200, actors=1, batch_size=16) == 48
    assert rows_per_task(10_000, actors=2, batch_size=16) == 64
    assert rows_per_task(10_000_000, actors=8, batch_size=16) == 2500


def test_row_that_kills_its_worker_is_given_up() -> None:
    tracker = FailureTracker()
    rows, deaths, answered = ["a", "b", "poison", "c"], 0, []

    def answer_batch(batch: list[str]) -> bool:
        """False if the worker dies."""
        if "poison" in batch:
            return False
        answered.extend(batch)
        return True

    while len(answered) < 3 and deaths < 10:
        client = FailureTrackerClient(tracker, "w1")
        assert client.register() is bool(deaths)
        suspects, given_up = client.begin_batch([row for row in rows if row not in answered])
        batches = (
            [[row] for row in suspects]
            if suspects
            else [[r for r in rows if r not in (*answered, *given_up)]]
        )
        for batch in batches:
            if suspects:
                client.begin_alone(batch[0])
            if not answer_batch(batch):
                deaths += 1
                break
            client.report_progress([RunProgress("p", rows=len(batch))], BusyTime())
    assert sorted(answered) == ["a", "b", "c"]
    assert deaths == 1 + MAX_SOLO_DEATHS
    assert FailureTrackerClient(tracker, "w1").begin_batch(rows)[1] == {
        "poison": "WorkerDied: the worker died"
    }


HANGS = """
import sys, time
from pipelines.inference import failure_tracker
failure_tracker.EXIT_GRACE_S = 0.5
client = failure_tracker.FailureTrackerClient(failure_tracker.FailureTracker(), "w1")
with client.time_limit(60):
    time.sleep(0.01)
time.sleep(0.5)  # what is done in time is left alone
client.begin_batch(["hangs"])
with client.time_limit(0.3):
    {hang}
"""


@pytest.mark.usefixtures("subprocesses")
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
def test_time_limit_ends_a_hanging_process_and_shows_where(
    hang: str, status: int, says: str
) -> None:
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


def test_row_that_hangs_is_given_up_with_a_timeout() -> None:
    tracker = FailureTracker()
    for _ in range(MAX_SOLO_DEATHS):
        client = FailureTrackerClient(tracker, "w1")
        client.register()
        suspects, given_up = client.begin_batch(["hangs"])
        assert not given_up
        if suspects:
            client.begin_alone("hangs")
        tracker.timed_out("w1", 9.0)
    FailureTrackerClient(tracker, "w1").register()
    assert FailureTrackerClient(tracker, "w1").begin_batch(["hangs"])[1] == {
        "hangs": "TimeoutError: the worker took longer than --batch-timeout 9 s"
    }


def test_job_stops_after_deaths_without_answers() -> None:
    tracker = FailureTracker()
    for number in range(MAX_BARREN_DEATHS):
        client = FailureTrackerClient(tracker, "w1")
        client.register()
        client.begin_batch([f"row {number}"])
    with pytest.raises(RuntimeError, match=f"died {MAX_BARREN_DEATHS} times"):
        FailureTrackerClient(tracker, "w1").register()


def test_job_stops_early_when_no_row_is_to_blame_for_timeouts() -> None:
    """If the manifest's store hangs, every attempt takes a whole timeout."""
    tracker = FailureTracker()
    client = FailureTrackerClient(tracker, "prepare 1")
    for attempt in range(1 + MAX_STALLS):
        client.register()
        suspects, _ = client.begin_batch(["reading 0/a", "reading 0/b"])
        assert bool(suspects) == (attempt > 0)
        tracker.timed_out("prepare 1", 600.0)
    with pytest.raises(
        RuntimeError,
        match="reading rows of the manifest took longer than --batch-timeout each time",
    ):
        client.register()
    assert (attempt + 1) * 600 < stall_timeout_s(600)


def test_job_with_answers_between_deaths_continues() -> None:
    tracker = FailureTracker()
    for number in range(3 * MAX_BARREN_DEATHS):
        client = FailureTrackerClient(tracker, "w1")
        client.register()
        client.begin_batch([f"row {number}"])
        if number % 3 == 0:
            client.report_progress([RunProgress("p", rows=1)], BusyTime())


def test_clock_starts_with_the_first_batch() -> None:
    """Its time counts for all of its runs, so that a sweep's first rate is right."""
    tracker = FailureTracker()
    client = FailureTrackerClient(tracker, "w1")
    client.report_progress([], BusyTime())
    assert not tracker.progress.started
    client.report_progress(
        [RunProgress(f"run {number}", spent_s=2.0) for number in range(5)], BusyTime()
    )  # nothing is on disk yet
    client.report_progress(
        [RunProgress(f"run {number}", rows=8) for number in range(5)], BusyTime()
    )
    assert tracker.progress.latest - tracker.progress.started == pytest.approx(10.0, abs=1.0)
    assert tracker.progress.spent_s == 10.0
    first = tracker.progress.started
    client.report_progress([RunProgress("run 0", rows=8, spent_s=2.0)], BusyTime())
    assert tracker.progress.started == first

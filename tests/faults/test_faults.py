"""Each fault of docs/faults.md once: every row is answered exactly once, and failed rows say why.

`row_kills_worker` is left out here: tests/pipelines/inference/test_worker.py has rows that kill
their worker every time, and `worker_killed` has a real death. `python tests/faults` runs it too.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator

import pytest

from tests.faults import FAULTS, SCENARIOS
from tests.faults.capacity import can_mount
from tests.faults.scenario import Count, Scenario, Testbed

TESTED_ELSEWHERE = {"row_kills_worker"}


@pytest.fixture(scope="module")
def testbed(subprocesses: None, servers: None) -> Iterator[Testbed]:
    with pytest.MonkeyPatch.context() as patch:
        # Ray's default of 60 s only makes `head_lost` longer.
        patch.setenv("RAY_gcs_rpc_server_reconnect_timeout_s", "15")
        with Testbed() as testbed:
            yield testbed


@pytest.mark.parametrize("number", range(len(SCENARIOS)))
def test_no_row_is_lost_or_duplicated(testbed: Testbed, number: int) -> None:
    # To fill a small disk, one must be mounted, which takes root.
    left_out = TESTED_ELSEWHERE if can_mount() else {*TESTED_ELSEWHERE, "disk_full"}
    faults = [FAULTS[name] for name in SCENARIOS[number] if name not in left_out]
    assert testbed.scenario(seed=1).run(faults) == Count(lost=0, duplicated=0)


def test_two_actors_on_two_machines_have_one_gpu_each(testbed: Testbed) -> None:
    def wait_for_both(scenario: Scenario) -> Generator[None, None, None]:
        (scenario.folder / "hold").touch()
        yield
        devices = scenario.folder / "devices"
        scenario.job.wait_until(lambda: len(list(devices.iterdir())) == 2, "two workers")
        (scenario.folder / "hold").unlink()
        yield

    scenario = testbed.scenario(seed=2)
    assert scenario.run([wait_for_both], actors=(2, 2)) == Count(lost=0, duplicated=0)
    devices = {
        path.name: path.read_text().split() for path in (scenario.folder / "devices").iterdir()
    }
    assert {answer["actor"] for answer in scenario.answers()} == set(devices)
    assert len({node for node, *_ in devices.values()}) == 2
    # Each actor sees the first GPU of its machine, and no other.
    assert [gpu for _, *gpu in devices.values()] == [["[0]", "0"]] * 2

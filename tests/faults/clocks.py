"""A clock that jumps, as when the time of a machine is set while a job runs."""

from __future__ import annotations

import json
import os
from collections.abc import Generator
from functools import partial

from tests.faults.faulty_worker import follow_clock
from tests.faults.scenario import Scenario

DAY_S = 86_400.0


def clock_jumps(scenario: Scenario) -> Generator[None, None, None]:
    """Shift the clock by hours or days, forwards or back, in the job's process and its workers."""
    clock = scenario.folder / "clock"
    scenario.driver_setup.append(partial(follow_clock, clock))
    yield
    scenario.wait_for_batch()
    shift_s = scenario.rng.choice([-1, 1]) * scenario.rng.uniform(3600, 30 * DAY_S)
    clock.with_suffix(".new").write_text(str(shift_s))
    os.replace(clock.with_suffix(".new"), clock)
    scenario.wait_for_batch()
    yield
    for path in scenario.output.glob("*/record.json"):
        record = json.loads(path.read_text())
        metrics = record["metrics"]
        assert all(0 <= metrics.get(name, 0) < 3600 for name in ("wall_s", "load_s")), metrics
        assert metrics.get("samples_per_s", 1) > 0, metrics
        ages = [
            point["step"]
            for point in record["history"]
            if "system/cpu_utilization_percentage" in point
        ]
        assert ages == sorted(ages), ages
        assert all(0 <= age < 3600 for age in ages), ages

"""A clock that jumps, as when a machine's time is set in the middle of the night."""

from __future__ import annotations

import json
import os
from collections.abc import Generator
from functools import partial

from tests.faults.scene import Night
from tests.faults.worker import clock_of

DAY = 86_400.0


def clock_jumps(night: Night) -> Generator[None, None, None]:
    """Hours or days, forwards or back, in the job's process and in its workers."""
    night.before.append(partial(clock_of, night.folder / "clock"))
    yield
    night.in_a_batch()
    (night.folder / "clock.new").write_text(
        str(night.dice.choice([-1, 1]) * night.dice.uniform(3600, 30 * DAY))
    )
    os.replace(night.folder / "clock.new", night.folder / "clock")
    night.in_a_batch()
    yield
    for path in night.output.glob("*/record.json"):
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

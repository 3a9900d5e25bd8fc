"""What goes wrong at night, done for real: `FAULTS`, by the names that docs/faults.md has."""

from __future__ import annotations

from tests.faults import clocks, model, places, processes, stores, tracking
from tests.faults.scene import Fault

FAULTS: dict[str, Fault] = {
    fault.__name__: fault
    for fault in (
        processes.worker_killed,
        processes.machine_lost,
        processes.driver_killed,
        processes.head_lost,
        places.disk_full,
        places.store_small,
        tracking.mlflow_down,
        tracking.mlflow_killed,
        model.raises,
        model.hangs,
        model.memory,
        model.crowded,
        model.killed,
        stores.store_slow,
        stores.store_mute,
        stores.store_busy,
        stores.store_cut,
        clocks.clock_jumps,
    )
}
ONCE = {"disk_full", "store_small", "mlflow_down", "mlflow_killed"}  # which are one a night
NIGHTS = (  # faults that can share a job do: starting one is what takes time
    [
        "raises",
        "hangs",
        "memory",
        "crowded",
        "killed",
        "store_slow",
        "store_mute",
        "store_busy",
        "store_cut",
        "mlflow_down",
    ],
    ["worker_killed", "machine_lost", "driver_killed", "clock_jumps", "mlflow_killed", "head_lost"],
    ["disk_full"],
    ["store_small"],
)

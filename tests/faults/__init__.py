"""Fault injection: real failures in real jobs, under the names that docs/faults.md has."""

from __future__ import annotations

from tests.faults import capacity, clocks, media_store, mlflow_server, processes, row_faults
from tests.faults.scenario import Fault

FAULTS: dict[str, Fault] = {
    fault.__name__: fault
    for fault in (
        processes.worker_killed,
        processes.machine_lost,
        processes.driver_killed,
        processes.head_lost,
        capacity.disk_full,
        capacity.object_store_full,
        mlflow_server.mlflow_down,
        mlflow_server.mlflow_killed,
        row_faults.row_raises,
        row_faults.row_hangs,
        row_faults.row_out_of_memory,
        row_faults.batch_out_of_memory,
        row_faults.row_kills_worker,
        media_store.media_slow,
        media_store.media_silent,
        media_store.media_throttled,
        media_store.media_truncated,
        clocks.clock_jumps,
    )
}

# Starting a job takes longer than most faults, so faults that can share a job do.
SCENARIOS = (
    [
        *("row_raises", "row_hangs", "row_out_of_memory", "batch_out_of_memory"),
        *("row_kills_worker", "media_slow", "media_silent", "media_throttled", "media_truncated"),
        "mlflow_down",
    ],
    [
        *("worker_killed", "machine_lost", "driver_killed", "clock_jumps", "mlflow_killed"),
        *("disk_full", "head_lost"),
    ],
    ["object_store_full"],
)

# At most one of these fits into a scenario: they use the same disk, model or tracking server.
EXCLUSIVE = {"disk_full", "object_store_full", "mlflow_down", "mlflow_killed"}

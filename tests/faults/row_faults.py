"""The model fails at one row: that row becomes an error, and no other row is affected."""

from __future__ import annotations

from collections.abc import Generator

from tests.faults.scenario import Scenario

# --batch-timeout. Longer than the retries of a store that refuses.
BATCH_TIMEOUT_S = 15.0


def _fail_at_a_row(scenario: Scenario, fault: str, error: str) -> Generator[None, None, None]:
    row = scenario.reserve_row(fault, error)
    yield
    yield
    scenario.note_row_recovery(row)


def row_raises(scenario: Scenario) -> Generator[None, None, None]:
    """The model raises at the row, alone and in a batch."""
    return _fail_at_a_row(scenario, "row_raises", "ArithmeticError: this row is wrong")


def row_hangs(scenario: Scenario) -> Generator[None, None, None]:
    """The model never returns from the row; --batch-timeout ends its worker."""
    scenario.overrides |= {"batch_timeout": BATCH_TIMEOUT_S, "methods": ("uniform",)}
    limit = f"--batch-timeout {BATCH_TIMEOUT_S:g} s"
    return _fail_at_a_row(
        scenario, "row_hangs", f"TimeoutError: the worker took longer than {limit} each time"
    )


def row_out_of_memory(scenario: Scenario) -> Generator[None, None, None]:
    """The row alone needs more memory than the machine has."""
    return _fail_at_a_row(scenario, "row_out_of_memory", "RuntimeError: ")


def batch_out_of_memory(scenario: Scenario) -> Generator[None, None, None]:
    """The device has memory for the row alone, but not for a batch with it."""
    return _fail_at_a_row(scenario, "batch_out_of_memory", "")


def row_kills_worker(scenario: Scenario) -> Generator[None, None, None]:
    """The kernel kills the worker each time it answers the row."""
    error = "WorkerDied: the worker died each time it answered this row alone"
    return _fail_at_a_row(scenario, "row_kills_worker", error)

"""A model that fails at one row: it is an error row, and no other row notices."""

from __future__ import annotations

from collections.abc import Generator

from tests.faults.scene import Night

LIMIT = 15.0  # --batch-timeout: above what a store that says no is asked again for


def _at_a_row(night: Night, act: str, error: str) -> Generator[None, None, None]:
    name = night.take(act, error)
    yield
    yield
    night.mended(name)


def raises(night: Night) -> Generator[None, None, None]:
    """It raises an exception, alone and in company."""
    return _at_a_row(night, "raises", "ArithmeticError: this row is wrong")


def hangs(night: Night) -> Generator[None, None, None]:
    """It never comes back; --batch-timeout ends its worker."""
    night.given |= {"batch_timeout": LIMIT, "methods": ("uniform",)}
    return _at_a_row(
        night,
        "hangs",
        f"TimeoutError: the worker took longer than --batch-timeout {LIMIT:g} s each time",
    )


def memory(night: Night) -> Generator[None, None, None]:
    """It needs more memory than there is, however few rows it has."""
    return _at_a_row(night, "memory", "RuntimeError: ")


def crowded(night: Night) -> Generator[None, None, None]:
    """The memory of the device does not do for this row in company, but for it alone."""
    return _at_a_row(night, "crowded", "")


def killed(night: Night) -> Generator[None, None, None]:
    """The kernel kills the worker that answers it, each time."""
    return _at_a_row(
        night, "killed", "WorkerDied: the worker died each time it answered this row alone"
    )

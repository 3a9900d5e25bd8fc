"""Processes and machines that are lost in the middle of a batch."""

from __future__ import annotations

import os
import signal
from collections.abc import Generator

from tests.faults.scene import Night


def worker_killed(night: Night) -> Generator[None, None, None]:
    """The process of an actor; its batch is answered again, row by row."""
    yield
    os.kill(night.in_a_batch(), signal.SIGKILL)
    night.others()
    night.told_of_a_death()
    yield


def machine_lost(night: Night) -> Generator[None, None, None]:
    """The machine that an actor is on; another one has room for it, and a new one comes."""
    yield
    night.theatre.machines.lose(night.in_a_batch())
    night.others()
    night.told_of_a_death()
    with night.held():
        night.theatre.machines.add()
    yield


def driver_killed(night: Night) -> Generator[None, None, None]:
    """The job's own process; the same command goes on where it stopped."""
    yield
    night.in_a_batch()
    night.job.kill()
    night.start()
    night.others()
    yield


def head_lost(night: Night) -> Generator[None, None, None]:
    """The head with its driver's Ray; the job ends, and the same command goes on upon a new cluster."""
    yield
    night.in_a_batch()
    night.theatre.machines.lose_head()
    assert night.job.wait() == 1, night.job.said
    assert (
        "Ray does not answer; if its head is lost this job ends, and the same command goes on"
        in night.job.said
    )
    night.theatre.again()
    night.start()
    night.others()
    yield

"""Processes and machines that are lost in the middle of a batch."""

from __future__ import annotations

import os
import signal
from collections.abc import Generator

from tests.faults.scenario import Scenario


def worker_killed(scenario: Scenario) -> Generator[None, None, None]:
    """Kill the process of an actor; another one answers its batch, row by row."""
    yield
    os.kill(scenario.wait_for_batch(), signal.SIGKILL)
    scenario.wait_for_recovery()
    scenario.wait_for_death_report()
    yield


def machine_lost(scenario: Scenario) -> Generator[None, None, None]:
    """Remove the machine of an actor, and add a new one; a machine with room takes the actor."""
    yield
    scenario.testbed.machines.remove_machine_of(scenario.wait_for_batch())
    scenario.wait_for_recovery()
    scenario.wait_for_death_report()
    with scenario.workers_paused():
        scenario.testbed.machines.add()
    yield


def driver_killed(scenario: Scenario) -> Generator[None, None, None]:
    """Kill the process of the job; the same command continues where it stopped."""
    yield
    scenario.wait_for_batch()
    scenario.job.kill()
    scenario.start()
    scenario.wait_for_recovery()
    yield


def head_lost(scenario: Scenario) -> Generator[None, None, None]:
    """Remove the head; the job ends, and the same command continues on a new cluster."""
    yield
    scenario.wait_for_batch()
    scenario.testbed.machines.remove_head()
    assert scenario.job.wait() == 1, scenario.job.log_text
    assert "Ray does not answer. If its head node is lost" in scenario.job.log_text
    scenario.testbed.replace_machines()
    scenario.start()
    scenario.wait_for_recovery()
    yield

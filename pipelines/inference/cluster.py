"""The Ray cluster that a job runs on: joined or started, measured, and found large enough before anything loads."""

from __future__ import annotations

import logging
import math
import os
import signal
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import ray
from ray._private import ray_constants
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from pipelines.inference.failure_tracker import RemoteFailureTracker

STARTS = 3
MOST_ACTORS = 8  # that we start by ourselves where there are no GPUs to count


@dataclass(frozen=True)
class ClusterShare:
    """What the job takes of the cluster."""

    least: int  # actors
    most: int
    gpus: float  # an actor
    cpus: float
    prepare_cpus: float  # a task that reads and decodes
    threads: int | None  # of torch in an actor; None: as torch likes

    def __str__(self) -> str:
        actors = f"{self.most}" if self.least == self.most else f"{self.least} to {self.most}"
        return f"{actors} actors of {self.cpus:g} CPUs" + (
            f" and {self.gpus:g} GPUs" if self.gpus else ""
        )


def join(address: str | None) -> None:
    """Join the cluster at `address` or of this Ray job, or start one on this machine; once a process."""
    if ray.is_initialized():
        return
    stop = signal.getsignal(signal.SIGTERM)
    _join(address)
    if threading.current_thread() is threading.main_thread():
        signal.signal(
            signal.SIGTERM, stop
        )  # Ray has put its own there, which ends the process on the spot


def _join(address: str | None) -> None:
    os.environ.setdefault(
        "RAY_USAGE_STATS_ENABLED", "0"
    )  # one process less, and nothing is told to Ray's makers
    where = address or os.environ.get("RAY_ADDRESS") or "local"
    if where != "local":
        ray.init(address=where, logging_level=logging.ERROR)
        return
    os.environ.setdefault("RAY_agent_register_timeout_ms", "120000")
    ray_constants.ENABLE_RAY_CLUSTER = (
        False  # of many machines: then all of its ports are on 127.0.0.1, as on a Mac
    )
    for attempt in range(
        STARTS
    ):  # Ray gives its own processes 30 seconds, which a busy laptop may exceed
        try:
            ray.init(address="local", logging_level=logging.ERROR, include_dashboard=False)
            return
        except Exception as error:
            ray.shutdown()
            if "timed out during startup" not in str(error) or attempt == STARTS - 1:
                raise
            print("Ray did not start within its 30 seconds; trying again ...", file=sys.stderr)


def start_failure_tracker() -> Any:
    """A new ledger, on this node: it is lost with the driver, and with nothing else."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return RemoteFailureTracker.options(scheduling_strategy=here).remote()


def gpu_share() -> float:
    """Of each of its GPUs, what the worker that asks may fill."""
    given = ray.get_runtime_context().get_assigned_resources() if ray.is_initialized() else {}
    return min(1.0, given.get("GPU", 1.0))


class Node(NamedTuple):
    """What a machine of the cluster has."""

    cpus: float
    gpus: float

    def holds(self, cpus: float, gpus: float) -> int:
        """How many actors of that size."""
        each = [have / need for have, need in ((self.cpus, cpus), (self.gpus, gpus)) if need]
        return math.floor(min(each) + 1e-9)


def nodes() -> list[Node]:
    alive = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return [Node(has.get("CPU", 0.0), has.get("GPU", 0.0)) for has in alive]


def plan_resources(
    actors: tuple[int, int] | None, gpus_per_actor: float | None, cpus_per_actor: float | None
) -> ClusterShare:
    """The actors for this cluster; a ValueError if it has not what was asked for. None means what fits.

    An actor and a task are each on one machine: four with half a free GPU each hold no actor that needs a whole one.
    """
    machines = nodes()
    cpus, gpus = (sum(each) for each in zip(*machines, strict=True))
    each_gpu = (1.0 if gpus else 0.0) if gpus_per_actor is None else gpus_per_actor
    if actors is None:
        fit = (
            sum(node.holds(0, each_gpu) for node in machines)
            if each_gpu
            else min(MOST_ACTORS, int(cpus))
        )
        actors = (max(1, fit), max(1, fit))
    least, most = actors
    prepare = 1.0 if max(node.cpus for node in machines) >= 2 else 0.5
    if cpus_per_actor is None:
        cpus_per_actor = _cpus(machines, each_gpu, most, prepare)
    if sum(node.holds(0, each_gpu) for node in machines if each_gpu) < least and each_gpu:
        raise ValueError(
            f"{least} actors with {each_gpu:g} GPUs each need {each_gpu * least:g} GPUs, and the cluster has {gpus:g}"
            f"{_spread(machines, 'gpus')}; give fewer --actors, a smaller --gpus-per-actor (0 for none), or start more"
            " nodes first"
        )
    room = _room(machines, cpus_per_actor, each_gpu, prepare)
    if room < least:
        raise ValueError(
            f"{least} actors with {cpus_per_actor:g} CPUs each and {prepare:g} for reading need"
            f" {cpus_per_actor * least + prepare:g} CPUs, and the cluster has {cpus:g}{_spread(machines, 'cpus')};"
            " without a free one the job would wait for ever: give fewer --actors or a smaller --cpus-per-actor"
        )
    if sum(node.holds(cpus_per_actor, each_gpu) for node in machines) > room:
        most = min(most, room)  # or the last of them would take the CPU that reads
    if cpus_per_actor == prepare and not each_gpu:
        prepare -= 0.01  # Ray Data would fuse reading into actors of equal needs, and nothing would overlap
    threads = None if each_gpu else max(1, int(cpus / most))
    return ClusterShare(least, most, each_gpu, cpus_per_actor, prepare, threads)


def _cpus(machines: Sequence[Node], gpus: float, actors: int, prepare: float) -> float:
    """For an actor, where nobody says: an equal part, and no more than one beside a GPU, so that reading has room."""
    if not gpus:
        parts = [(sum(node.cpus for node in machines) - prepare) / actors]
    else:
        parts = [
            1.0,
            *((node.cpus - prepare) / held for node in machines if (held := node.holds(0, gpus))),
        ]
    return max(0.1, math.floor(10 * min(parts) + 1e-9) / 10)


def _room(machines: Sequence[Node], cpus: float, gpus: float, prepare: float) -> int:
    """How many actors fit while one machine keeps `prepare` CPUs free; -1: none has them."""
    held = [node.holds(cpus, gpus) for node in machines]
    rest = [
        sum(held) - held[place] + Node(node.cpus - prepare, node.gpus).holds(cpus, gpus)
        for place, node in enumerate(machines)
        if node.cpus + 1e-9 >= prepare
    ]
    return max(rest, default=-1)


def _spread(machines: Sequence[Node], what: str) -> str:
    return (
        f" on {len(machines)} machines, at most {max(getattr(node, what) for node in machines):g} on one"
        * (len(machines) > 1)
    )

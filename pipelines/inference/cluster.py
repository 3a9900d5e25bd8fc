"""The Ray cluster of a job: joined or started, measured, and checked before anything loads."""

import contextlib
import logging
import math
import os
import signal
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import ray
from ray._private import ray_constants
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from pipelines.inference.failure_tracker import RemoteFailureTracker

START_ATTEMPTS = 3
DEFAULT_MAX_ACTORS = 8  # without GPUs to count
# Ray Data fuses tasks into actors that need exactly as many CPUs; this much less prevents it.
NO_FUSION_CPUS = 0.01
ROUNDING = 1e-9


@dataclass(frozen=True)
class ClusterShare:
    """The part of the cluster that the job uses."""

    min_actors: int
    max_actors: int
    gpus: float  # of one actor
    cpus: float  # of one actor
    prepare_cpus: float  # of a task that reads and preprocesses
    threads: int | None  # of torch in one actor; None: torch's default

    def __str__(self) -> str:
        low, high = self.min_actors, self.max_actors
        actors = f"{high}" if low == high else f"{low} to {high}"
        gpus = f" and {self.gpus:g} GPUs" if self.gpus else ""
        return f"{actors} actors of {self.cpus:g} CPUs{gpus}"


def join(address: str | None) -> None:
    """Join the cluster at `address` or of this Ray job, or start one here; once a process."""
    if ray.is_initialized():
        return
    handler = signal.getsignal(signal.SIGTERM)
    _join(address)
    if threading.current_thread() is threading.main_thread():
        # Ray's own handler would end the process at once
        signal.signal(signal.SIGTERM, handler)


@contextlib.contextmanager
def _quiet_backend() -> Iterator[None]:
    """Connect with the driver's C++ log level at fatal, unless the user has chosen a level.

    Otherwise it prints errors that a user can do nothing about, e.g. core_worker.cc for each actor
    pool. `putenv` reaches this process only: Ray starts its own with a copy of os.environ. The line
    that says that the level was set is dropped; what else came on stderr is printed at the end.
    """
    if "RAY_BACKEND_LOG_LEVEL" in os.environ:
        yield
        return
    os.putenv("RAY_BACKEND_LOG_LEVEL", "fatal")
    stderr = os.dup(2)
    with tempfile.TemporaryFile() as buffer:
        os.dup2(buffer.fileno(), 2)
        try:
            yield
        finally:
            os.unsetenv("RAY_BACKEND_LOG_LEVEL")
            os.dup2(stderr, 2)
            os.close(stderr)
            buffer.seek(0)
            os.write(2, b"".join(line for line in buffer if b" logging.cc:" not in line))


def _join(address: str | None) -> None:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    where = address or os.environ.get("RAY_ADDRESS") or "local"
    if where != "local":
        with _quiet_backend():
            ray.init(address=where, logging_level=logging.ERROR)
        return
    os.environ.setdefault("RAY_agent_register_timeout_ms", "120000")
    # Private, because there is no public way: without it Ray on Linux opens its ports on all
    # network interfaces, even for a cluster of this machine alone. On a Mac it does not.
    ray_constants.ENABLE_RAY_CLUSTER = False
    for attempt in range(START_ATTEMPTS):
        try:
            with _quiet_backend():
                ray.init(address="local", logging_level=logging.ERROR, include_dashboard=False)
            return
        except Exception as error:
            ray.shutdown()
            if "timed out during startup" not in str(error) or attempt == START_ATTEMPTS - 1:
                raise
            print("Ray did not start within its 30 seconds; trying again ...", file=sys.stderr)


def start_failure_tracker() -> Any:
    """A new tracker on this node: it is lost together with the driver, and with nothing else."""
    node_id = ray.get_runtime_context().get_node_id()
    here = NodeAffinitySchedulingStrategy(node_id, soft=False)
    return RemoteFailureTracker.options(scheduling_strategy=here).remote()


def gpu_share() -> float:
    """The fraction of each of its GPUs that the calling worker may fill."""
    assigned = ray.get_runtime_context().get_assigned_resources() if ray.is_initialized() else {}
    return float(min(1.0, assigned.get("GPU", 1.0)))


class Node(NamedTuple):
    """The resources of one machine."""

    cpus: float
    gpus: float

    def capacity(self, cpus: float, gpus: float) -> int:
        """The number of actors of that size that fit."""
        ratios = [has / need for has, need in ((self.cpus, cpus), (self.gpus, gpus)) if need]
        return math.floor(min(ratios) + ROUNDING)


def nodes() -> list[Node]:
    resources = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return [Node(node.get("CPU", 0.0), node.get("GPU", 0.0)) for node in resources]


def plan_resources(
    actors: tuple[int, int] | None, gpus_per_actor: float | None, cpus_per_actor: float | None
) -> ClusterShare:
    """The actors for this cluster; None means what fits. ValueError if the request does not fit.

    An actor and a task each lie on one machine: four machines with half a free GPU each hold no
    actor that needs a whole one.
    """
    machines = nodes()
    cpus, gpus = (sum(amounts) for amounts in zip(*machines, strict=True))
    actor_gpus = (1.0 if gpus else 0.0) if gpus_per_actor is None else gpus_per_actor
    gpu_capacity = sum(node.capacity(0, actor_gpus) for node in machines) if actor_gpus else 0
    if actors is None:
        fitting = max(1, gpu_capacity if actor_gpus else min(DEFAULT_MAX_ACTORS, int(cpus)))
        actors = (fitting, fitting)
    min_actors, max_actors = actors
    prepare = 1.0 if max(node.cpus for node in machines) >= 2 else 0.5
    if cpus_per_actor is None:
        cpus_per_actor = _default_cpus(machines, actor_gpus, max_actors, prepare)
    if actor_gpus and gpu_capacity < min_actors:
        raise ValueError(
            f"{min_actors} actors with {actor_gpus:g} GPUs each need {actor_gpus * min_actors:g}"
            f" GPUs, and the cluster has {gpus:g}{_distribution(machines, 'gpus')}: give fewer"
            " --actors, a smaller --gpus-per-actor (0 for none), or start more nodes first"
        )
    capacity = _capacity_beside_a_task(machines, cpus_per_actor, actor_gpus, prepare)
    if capacity < min_actors:
        raise ValueError(
            f"{min_actors} actors with {cpus_per_actor:g} CPUs each and {prepare:g} for reading"
            f" need {cpus_per_actor * min_actors + prepare:g} CPUs, and the cluster has {cpus:g}"
            f"{_distribution(machines, 'cpus')}; the job would wait for ever: give fewer --actors"
            " or a smaller --cpus-per-actor"
        )
    if sum(node.capacity(cpus_per_actor, actor_gpus) for node in machines) > capacity:
        max_actors = min(max_actors, capacity)  # the last actor would take the CPU that reads
    if cpus_per_actor == prepare and not actor_gpus:
        prepare -= NO_FUSION_CPUS
    threads = None if actor_gpus else max(1, int(cpus / max_actors))
    return ClusterShare(min_actors, max_actors, actor_gpus, cpus_per_actor, prepare, threads)


def _default_cpus(machines: Sequence[Node], gpus: float, actors: int, prepare: float) -> float:
    """An equal part of the CPUs; beside a GPU at most one, so that reading has room."""
    if not gpus:
        parts = [(sum(node.cpus for node in machines) - prepare) / actors]
    else:
        capacities = [(node, node.capacity(0, gpus)) for node in machines]
        parts = [1.0, *((node.cpus - prepare) / fit for node, fit in capacities if fit)]
    return max(0.1, math.floor(10 * min(parts) + ROUNDING) / 10)


def _capacity_beside_a_task(
    machines: Sequence[Node], cpus: float, gpus: float, prepare: float
) -> int:
    """Actors that fit while one machine keeps `prepare` CPUs free; -1: none has them."""
    capacities = [node.capacity(cpus, gpus) for node in machines]
    options = [
        sum(capacities) - capacity + Node(node.cpus - prepare, node.gpus).capacity(cpus, gpus)
        for node, capacity in zip(machines, capacities, strict=True)
        if node.cpus + ROUNDING >= prepare
    ]
    return max(options, default=-1)


def _distribution(machines: Sequence[Node], resource: str) -> str:
    if len(machines) == 1:
        return ""
    most = max(getattr(node, resource) for node in machines)
    return f" on {len(machines)} machines, at most {most:g} on one"

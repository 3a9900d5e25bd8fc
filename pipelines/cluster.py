"""The Ray cluster that a job runs on: joined or started, measured, and found large enough before anything loads."""

from __future__ import annotations

import logging
import math
import os
import sys
from dataclasses import dataclass

import ray

STARTS = 3
MOST_ACTORS = 8  # that we start by ourselves where there are no GPUs to count


@dataclass(frozen=True)
class Share:
    """What the job takes of the cluster."""

    least: int  # actors
    most: int
    gpus: float  # an actor
    cpus: float
    prepare_cpus: float  # a task that reads and decodes
    threads: int | None  # of torch in an actor; None: as torch likes

    def __str__(self) -> str:
        actors = f"{self.most}" if self.least == self.most else f"{self.least} to {self.most}"
        return f"{actors} actors of {self.cpus:g} CPUs" + (f" and {self.gpus:g} GPUs" if self.gpus else "")


def join(address: str | None) -> None:
    """Join the cluster at `address` or of this Ray job, or start one on this machine; once a process."""
    if ray.is_initialized():
        return
    where = address or os.environ.get("RAY_ADDRESS") or "local"
    if where != "local":
        ray.init(address=where, logging_level=logging.ERROR)
        return
    os.environ.setdefault("RAY_agent_register_timeout_ms", "120000")
    for attempt in range(STARTS):  # Ray gives its own processes 30 seconds, which a busy laptop may exceed
        try:
            ray.init(address="local", logging_level=logging.ERROR, include_dashboard=False)
            return
        except Exception as error:
            ray.shutdown()
            if "timed out during startup" not in str(error) or attempt == STARTS - 1:
                raise
            print("Ray did not start within its 30 seconds; trying again ...", file=sys.stderr)


def share(actors: tuple[int, int] | None, gpus_per_actor: float | None, cpus_per_actor: float | None) -> Share:
    """The actors for this cluster; a ValueError if it has not what was asked for. None means what fits."""
    total = ray.cluster_resources()
    cpus, gpus = total.get("CPU", 0.0), total.get("GPU", 0.0)
    each_gpu = (1.0 if gpus else 0.0) if gpus_per_actor is None else gpus_per_actor
    if actors is None:
        fit = math.floor(gpus / each_gpu) if each_gpu else min(MOST_ACTORS, int(cpus))
        actors = (max(1, fit), max(1, fit))
    least, most = actors
    prepare = 1.0 if cpus >= 2 else 0.5
    if cpus_per_actor is None:
        cpus_per_actor = 1.0 if each_gpu else max(0.1, math.floor(10 * (cpus - prepare) / most) / 10)
    if each_gpu * least > gpus:
        raise ValueError(
            f"{least} actors with {each_gpu:g} GPUs each need {each_gpu * least:g} GPUs, and the cluster has {gpus:g};"
            " give fewer --actors, a smaller --gpus-per-actor (0 for none), or start more nodes first"
        )
    if cpus_per_actor * least + prepare > cpus + 1e-9:
        raise ValueError(
            f"{least} actors with {cpus_per_actor:g} CPUs each and {prepare:g} for reading need"
            f" {cpus_per_actor * least + prepare:g} CPUs, and the cluster has {cpus:g}; without a free one the job"
            " would wait for ever: give fewer --actors or a smaller --cpus-per-actor"
        )
    if cpus_per_actor == prepare and not each_gpu:
        prepare -= 0.01  # Ray Data would fuse reading into actors of equal needs, and nothing would overlap
    threads = None if each_gpu else max(1, int(cpus / most))
    return Share(least, most, each_gpu, cpus_per_actor, prepare, threads)

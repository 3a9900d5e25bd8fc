"""Ray on several machines that are really one, and a job as its own process."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ray.cluster_utils import Cluster

from pipelines.config.eval_config import EvalConfig

PATIENCE = 600.0  # seconds for what takes a few on a calm machine
HERE = str(Path(__file__).parents[2])
FORKS = multiprocessing.get_context("forkserver")  # what a job imports is imported once
FORKS.set_forkserver_preload(
    [
        "pipelines.inference.plan",
        "pipelines.results.mlflow_tracker",
        "pipelines.config.model_info",
        "mlflow",
        "torchvision",
    ]
)


class Machines:
    """A head with CPUs to read with, and two machines with a logical GPU each; object stores as small as Ray allows."""

    STORE = 80_000_000

    def __init__(self) -> None:
        os.environ["PYTHONPATH"] = os.pathsep.join(
            [HERE, *filter(None, [os.environ.get("PYTHONPATH")])]
        )  # workers'
        self._place = tempfile.TemporaryDirectory(
            prefix="apet-", dir="/tmp", ignore_cleanup_errors=True
        )  # short, for sockets
        head = {"num_cpus": 2, "include_dashboard": False, "temp_dir": self._place.name}
        stop = signal.getsignal(signal.SIGTERM)
        self.cluster = Cluster(
            initialize_head=True, head_node_args={**head, "object_store_memory": self.STORE}
        )
        self.gpus: list[Any] = []
        self.add()
        self.add()
        signal.signal(
            signal.SIGTERM, stop
        )  # Ray's own waits half a minute for a head that may be gone

    @property
    def address(self) -> str:
        return str(self.cluster.gcs_address)

    def add(self) -> None:
        self.gpus.append(
            self.cluster.add_node(num_cpus=1, num_gpus=1, object_store_memory=self.STORE)
        )

    def lose(self, process: int) -> None:
        """The machine that a process is on loses its power."""
        parent = int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[1])
        [lost] = [
            node
            for node in self.gpus
            if parent in {each.process.pid for each in node.all_processes.get("raylet", [])}
        ]
        self.gpus.remove(lost)
        self.cluster.remove_node(lost, allow_graceful=False)

    def lose_head(self) -> None:
        self.cluster.remove_node(self.cluster.head_node, allow_graceful=False)

    def stop(self) -> None:
        self.cluster.shutdown()
        self._place.cleanup()


class Job:
    """What a user starts, in a process of its own."""

    def __init__(self, config: EvalConfig, log: Path, *how: Any) -> None:
        self.log = log
        self.process = FORKS.Process(target=_drive, args=(config, log, *how))
        self.process.start()

    @property
    def said(self) -> str:
        return self.log.read_text() if self.log.exists() else ""

    def wait(self) -> int:
        """Its exit status. A job that hangs is a fault of ours."""
        self.process.join(PATIENCE)
        if self.process.is_alive():
            self.kill()
            raise AssertionError(
                f"the job did not end within {PATIENCE:.0f} s:\n{self.said[-5000:]}"
            )
        return int(self.process.exitcode or 0)

    def until(self, there: Callable[[], Any], what: str) -> Any:
        """Wait for something that happens while the job runs."""
        end = time.monotonic() + PATIENCE
        while not (found := there()):
            if not self.process.is_alive() or time.monotonic() > end:
                self.kill()
                raise AssertionError(
                    f"it ended, or took too long, before {what}:\n{self.said[-5000:]}"
                )
            time.sleep(0.02)
        return found

    def kill(self) -> None:
        self.process.kill()
        self.process.join()


def _drive(
    config: EvalConfig, log: Path, make: Callable[[], Any], before: Sequence[Callable[[], None]]
) -> None:
    """What the process of a job does."""
    with log.open("a") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    sys.stdout, sys.stderr = os.fdopen(1, "w", buffering=1), os.fdopen(2, "w", buffering=1)
    for each in before:
        each()
    from pipelines.job import run

    sys.exit(run(config, make()))

"""A Ray cluster of several machines, all on this one, and a job in its own process."""

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
from tests.support import ROOT

# For steps that take a few seconds on an idle machine.
MAX_WAIT_S = 600.0

# Imports of a job are done once, and every job is forked from there.
FORKSERVER = multiprocessing.get_context("forkserver")
FORKSERVER.set_forkserver_preload(
    [
        "pipelines.inference.plan",
        "pipelines.results.mlflow_tracker",
        "pipelines.inference.model_info",
        "mlflow",
        "torchvision",
    ]
)


class Machines:
    """A head with CPUs for reading, and two machines with one logical GPU each."""

    # As small as Ray allows, so that a few large pictures fill it.
    OBJECT_STORE_BYTES = 80_000_000

    def __init__(self) -> None:
        paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
        os.environ["PYTHONPATH"] = os.pathsep.join(paths)  # inherited by Ray's workers
        # The paths of sockets must be short.
        self._folder = tempfile.TemporaryDirectory(
            prefix="apet-", dir="/tmp", ignore_cleanup_errors=True
        )
        head = {"num_cpus": 2, "include_dashboard": False, "temp_dir": self._folder.name}
        sigterm_handler = signal.getsignal(signal.SIGTERM)
        self.cluster = Cluster(
            initialize_head=True,
            head_node_args={**head, "object_store_memory": self.OBJECT_STORE_BYTES},
        )
        self.gpu_nodes: list[Any] = []
        self.add()
        self.add()
        # Ray's own handler waits half a minute for a head that may be gone.
        signal.signal(signal.SIGTERM, sigterm_handler)

    @property
    def address(self) -> str:
        return str(self.cluster.gcs_address)

    def add(self) -> None:
        node = self.cluster.add_node(
            num_cpus=1, num_gpus=1, object_store_memory=self.OBJECT_STORE_BYTES
        )
        self.gpu_nodes.append(node)

    def remove_machine_of(self, pid: int) -> None:
        """Kill the Ray processes of the machine on which a process runs."""
        parent = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        [lost] = [
            node
            for node in self.gpu_nodes
            if parent in {raylet.process.pid for raylet in node.all_processes.get("raylet", [])}
        ]
        self.gpu_nodes.remove(lost)
        self.cluster.remove_node(lost, allow_graceful=False)

    def remove_head(self) -> None:
        self.cluster.remove_node(self.cluster.head_node, allow_graceful=False)

    def stop(self) -> None:
        self.cluster.shutdown()
        self._folder.cleanup()


class JobProcess:
    """A job as a user starts it, in its own process."""

    def __init__(self, config: EvalConfig, log: Path, *arguments: Any) -> None:
        self.log = log
        self.process = FORKSERVER.Process(target=_run_job, args=(config, log, *arguments))
        self.process.start()

    @property
    def log_text(self) -> str:
        return self.log.read_text() if self.log.exists() else ""

    def wait(self) -> int:
        """Wait for the exit status. A job that hangs is an error."""
        self.process.join(MAX_WAIT_S)
        if self.process.is_alive():
            self.kill()
            raise AssertionError(
                f"the job did not end within {MAX_WAIT_S:.0f} s:\n{self.log_text[-5000:]}"
            )
        return int(self.process.exitcode or 0)

    def wait_until(self, condition: Callable[[], Any], description: str) -> Any:
        """Wait for something that happens while the job runs; return the condition's value."""
        end = time.monotonic() + MAX_WAIT_S
        while not (value := condition()):
            if not self.process.is_alive() or time.monotonic() > end:
                self.kill()
                raise AssertionError(
                    f"the job ended, or took too long, before {description}:\n"
                    f"{self.log_text[-5000:]}"
                )
            time.sleep(0.02)
        return value

    def kill(self) -> None:
        self.process.kill()
        self.process.join()


def _run_job(
    config: EvalConfig,
    log: Path,
    make_worker_class: Callable[[], Any],
    setup: Sequence[Callable[[], None]],
) -> None:
    """Body of the job's process: run the job with its output in the log."""
    with log.open("a") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    sys.stdout, sys.stderr = os.fdopen(1, "w", buffering=1), os.fdopen(2, "w", buffering=1)
    for step in setup:
        step()
    from pipelines.job import run

    sys.exit(run(config, make_worker_class()))

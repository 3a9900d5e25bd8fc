"""What every test needs: no network, no leftovers, and GPU tests only where there is a GPU."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = (
    "1"  # before transformers is imported: nothing here may reach for a hub
)
os.environ |= {
    "AWS_ACCESS_KEY_ID": "k",
    "AWS_SECRET_ACCESS_KEY": "s",
    "AWS_REGION": "us-east-1",
}  # workers sign, too
os.environ |= {
    "RAY_AUTH_MODE": "token",
    "RAY_AUTH_TOKEN": secrets.token_hex(32),
}  # before Ray is: its ports are open
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"  # nor a process that tells Ray's makers
os.environ["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] = (
    "false"  # seven processes of a server that nothing here needs
)
os.environ["OMP_NUM_THREADS"] = (
    "1"  # before torch and numpy are: matrices this small only wait for further threads
)

import pytest
import torch
from hypothesis import settings

settings.register_profile("repeatable", derandomize=True)
settings.load_profile("repeatable")  # a test that fails on one machine fails on all


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture(scope="session")
def cluster() -> Iterator[str]:
    """An embedded Ray for all tests that run a job: its address.

    Of one CPU: a job's one actor then has one thread, and one process reads. Each that starts imports torch first.
    """
    import ray

    for attempt in range(3):  # on a busy machine it takes longer to start than it gives itself
        try:
            ray.init(
                address="local",
                num_cpus=1,
                include_dashboard=False,
                object_store_memory=500_000_000,
            )
            break
        except Exception:
            ray.shutdown()
            if attempt == 2:
                raise
    yield ray.get_runtime_context().gcs_address
    ray.shutdown()


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A tiny model of a family, saved as the real ones are."""
    from tests.support import tiny

    @cache
    def saved(family: str) -> Path:
        return Path(tiny.save(family, tmp_path_factory.mktemp(family)))

    return saved


@pytest.fixture
def bucket() -> Iterator[str]:
    """An S3 server with an empty bucket, `apet`: the query string with which URIs find it."""
    from moto.s3.models import s3_backends
    from moto.server import ThreadedMotoServer

    from pipelines.results.storage import split

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    s3_backends.reset()  # all servers of a process share what they hold
    host, port = server.get_host_and_port()
    query = f"endpoint_override={host}:{port}&scheme=http&allow_bucket_creation=true"
    system, _ = split(f"s3://apet/x?{query}")
    system.create_dir("apet")
    yield query
    server.stop()

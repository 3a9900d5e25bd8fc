"""The job as tasks and workers receive it: the configs, and where rows come from and answers go."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from pipelines.config.eval_config import EvalConfig
from pipelines.config.method_spec import MethodSpec
from pipelines.config.model_version import is_offline
from pipelines.data.manifest import Manifest
from pipelines.inference.benchmark_job import BenchmarkJob
from pipelines.results.storage import Folder

DEFAULT_BATCH_ROWS = 16
DEFAULT_BATCH_ROWS_ON_GPU = 64  # more than fit: there the batch's tokens are what limits it


@dataclass(frozen=True)
class RunSpec:
    """One method with its options, and the folder of its answers."""

    method: MethodSpec
    run_id: str
    folder: Folder


@dataclass(frozen=True)
class BenchmarkSpec:
    """One benchmark of the job: its config, its rows and the runs that lack answers."""

    config: EvalConfig
    manifest: Manifest
    runs: tuple[RunSpec, ...]


@dataclass(frozen=True)
class JobSpec:
    """One model and everything it is asked."""

    benchmarks: tuple[BenchmarkSpec, ...]
    batch_size: int  # at most this many rows
    batch_tokens: int | None  # and this many tokens; None: the first worker measures it
    threads: int | None  # for torch in a worker; None: torch's default
    offline: bool = False  # the hub did not answer: tasks and workers need not try it

    @property
    def config(self) -> EvalConfig:
        """The config of the first benchmark. Benchmarks of a job agree on model, dtype, kernel and
        limits (`sweep_config.model_groups`); prompts and media settings may differ."""
        return self.benchmarks[0].config

    def by_kind(self) -> Iterator[tuple[EvalConfig, list[MethodSpec]]]:
        """For images and for videos: a config, and all methods that are run on such media."""
        for kind in sorted({spec.config.kind for spec in self.benchmarks}):
            specs = [spec for spec in self.benchmarks if spec.config.kind == kind]
            methods = dict.fromkeys(run.method for spec in specs for run in spec.runs)
            yield specs[0].config, list(methods)


def job_spec(jobs: Sequence[BenchmarkJob], threads: int | None, gpus: float = 0.0) -> JobSpec:
    """The spec of jobs that share one model, for workers with this many GPUs each."""
    config = jobs[0].config
    measured = [
        int(tokens)
        for job in jobs
        for run in job.open_runs
        if run.record and (tokens := run.record.metrics.get("batch_tokens"))
    ]
    return JobSpec(
        benchmarks=tuple(map(_benchmark_spec, jobs)),
        batch_size=config.batch_size or (DEFAULT_BATCH_ROWS_ON_GPU if gpus else DEFAULT_BATCH_ROWS),
        # a resumed job makes the same batches; where runs differ, the smaller number fits them all
        batch_tokens=config.batch_tokens or min(measured, default=None),
        threads=threads,
        offline=not Path(config.model).is_dir() and is_offline(),
    )


def _benchmark_spec(job: BenchmarkJob) -> BenchmarkSpec:
    # workers do not talk to MLflow: a password in its URI does not travel to them
    config = replace(job.config, tracking_uri=None)
    runs = tuple(RunSpec(run.method, run.run_id, run.folder) for run in job.open_runs)
    return BenchmarkSpec(config, job.manifest, runs)

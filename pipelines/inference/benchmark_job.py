"""One benchmark's questions for one model: the runs that want answers, and how far each run is.

A job has one or more of these; a sweep has one for each model and benchmark. Everything that is
recorded about a run, from its start to its end, is recorded here.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipelines.benchmarks import benchmark
from pipelines.benchmarks.base import Benchmark
from pipelines.config.eval_config import EvalConfig, to_yaml
from pipelines.config.method_spec import MethodSpec
from pipelines.config.model_defaults import inputs_version, with_model_defaults
from pipelines.config.model_version import check_hub, model_fingerprint, require_commit
from pipelines.config.paths import resolve_paths
from pipelines.data.manifest import Manifest
from pipelines.metrics import summary
from pipelines.results import answers
from pipelines.results.run_record import RunRecord, State, git_commit
from pipelines.results.storage import Folder, run_concurrently
from pipelines.text import redacted

CONFIG_FILE, SAMPLE_FILE = "config.yaml", "answers.table.json"
# Metrics that cannot be computed from the answers: they are carried over when a run ends.
JOB_METRICS = ("load_s", "wall_s", "gpu_busy", "worker_busy", "batch_tokens")
CHUNK_ROWS = 1 << 16  # rows of `missing_runs` that are built at once


@dataclass(eq=False)
class RunState:
    """The run of one method: its identity, its folder and its record."""

    method: MethodSpec
    identity: dict[str, Any]
    run_id: str
    folder: Folder
    record: RunRecord | None = None  # None: nobody has started it

    def load(self) -> None:
        """Read the record that an earlier job left, if there is one."""
        with contextlib.suppress(FileNotFoundError):
            self.record = RunRecord.load(self.folder)

    def is_finished(self, config: EvalConfig) -> bool:
        """Whether the existing answers cover everything that the config asks for."""
        record = self.record
        if record is None or record.state != "finished":
            return False
        if config.retry_errors and record.rows["error"]:
            return False
        limit: Any = record.config.get("limit")  # "all" or a number
        return limit == "all" or (config.limit is not None and config.limit <= limit)


@dataclass
class BenchmarkJob:
    """One benchmark's questions to one model: created by `of`, recorded from `begin` to `end`."""

    config: EvalConfig
    benchmark: Benchmark
    manifest: Manifest
    runs: list[RunState]
    open_runs: list[RunState] = field(default_factory=list)  # `missing_runs` counts these
    skipped: dict[str, str] = field(default_factory=dict)  # run_id: why the model cannot do it
    requested_revision: str | None = None  # as the user gave it; the config has its commit

    @classmethod
    def of(cls, requested: EvalConfig) -> BenchmarkJob:
        """The job of a config. ValueError or FileNotFoundError if its data is not as described."""
        config = with_model_defaults(resolve_paths(requested))
        bench = benchmark(config.benchmark)
        manifest = manifest_of(config)
        digest = (bench.digest(config.split) if config.data is None else None) or manifest.digest()
        fingerprint = _fingerprint(config.model, config.revision)
        output, runs = Folder.of(config.output), []
        for method in config.method_specs:
            identity = config.identity(
                method, digest, fingerprint, bench.version, inputs_version(config)
            )
            run_id = config.run_name(method, identity)
            runs.append(RunState(method, identity, run_id, output.child(run_id)))
        job = cls(config, bench, manifest, runs, requested_revision=requested.revision)
        job.refresh()
        return job

    @functools.cached_property
    def index(self) -> pa.Table:
        """Where each requested row lies. ValueError if two rows have the same id."""
        return self.manifest.index(self.config.limit)

    @property
    def row_count(self) -> int:
        """Number of requested rows; read from the records if no run lacks answers."""
        if self.open_runs or not self.runs:
            return len(self.index)
        wanted = max(run.record.rows["wanted"] for run in self.runs if run.record)
        return wanted if self.config.limit is None else min(wanted, self.config.limit)

    def refresh(self) -> None:
        """Read the records again and find the runs that lack answers."""
        run_concurrently(RunState.load, self.runs)
        self.open_runs = [run for run in self.runs if not run.is_finished(self.config)]

    def retry_errors(self) -> None:
        """Open the runs again whose answers include errors."""
        self.config = replace(self.config, retry_errors=True)
        self.open_runs = [run for run in self.runs if not run.is_finished(self.config)]

    def skip(self, run: RunState, reason: str) -> None:
        """Continue without a run that the model cannot do."""
        self.skipped[run.run_id] = reason
        self.runs.remove(run)
        self.open_runs.remove(run)

    def check(self, *, skip_impossible: bool = False) -> None:
        """Raise ValueError for wrong options and impossible budgets before anything starts.

        skip_impossible: skip the runs that the model cannot do, instead of raising
        """
        from pipelines.inference.model_info import model_info  # imports torch
        from pipelines.inference.preprocess import check_inputs

        config = self.config
        check_hub(config.model, config.revision)
        frames = config.frames if config.kind == "video" else 1
        info = model_info(config.model, config.revision, config.trust_remote_code, frames)
        # After `model_info`, which has the better error if there is no model.
        require_commit(config.model, config.revision)
        check_inputs(config)
        for run in list(self.open_runs):
            run.method.build()  # a wrong option is always an error
            try:
                info.check(run.method)
            except ValueError as error:
                if not skip_impossible:
                    raise
                self.skip(run, str(error))

    def begin(self, job: RunRecord) -> None:
        """Record that the runs are being worked on. The caller holds their locks."""
        self.refresh()  # another job may have finished just before the locks were taken
        for run in self.open_runs:
            run.record = self._started(run)
        config = to_yaml(self.config).encode()
        run_concurrently(lambda run: run.folder.write(CONFIG_FILE, config), self.open_runs)
        recorded = [(run.record, run.folder) for run in self.runs if run.record]
        for record, _ in recorded:
            record.parent = {"id": job.id, "name": job.name}  # the latest job that includes the run
        run_concurrently(lambda pair: pair[0].save(pair[1]), recorded)

    def missing(self, *, retry_errors: bool = False) -> pa.Table:
        """The index with a column `missing_runs`: the open runs that lack each row's answer."""
        lacks = np.zeros((len(self.index), len(self.open_runs)), bool)
        answered_ids = run_concurrently(
            lambda run: answers.compact(run.folder, retry_errors=retry_errors), self.open_runs
        )
        for column, (run, answered) in enumerate(zip(self.open_runs, answered_ids, strict=True)):
            lacks[:, column] = ~np.asarray(pc.is_in(self.index["row_id"], value_set=answered))
            if run.record:  # an earlier job may have saved the record before its last answers
                errors = 0 if retry_errors else run.record.rows["error"]
                done = int((~lacks[:, column]).sum())
                run.record.rows = {**run.record.rows, "done": done, "error": errors}
        return self.index.append_column("missing_runs", _true_columns(lacks))

    def end(self, state: State, message: str, wall_s: float) -> None:
        """Save the final state of every run, even if the job failed.

        Re-raises the first error after all runs are saved.
        """
        first_error: Exception | None = None
        vanilla = next((run for run in self.runs if run.method.method == "vanilla"), None)
        vanilla = vanilla if vanilla and vanilla.record else None
        baseline = self._answers(vanilla) if vanilla else None
        for run in self.runs:
            try:
                if run in self.open_runs:
                    self._end_run(run, baseline, state, message, wall_s)
                elif vanilla in self.open_runs and run.record:  # its baseline has changed
                    self._end_run(run, baseline, run.record.state, run.record.message, None)
            except Exception as error:
                first_error = first_error or error
        if first_error is not None:
            raise first_error

    def _started(self, run: RunState) -> RunRecord:
        config, method = self.config, run.method
        record = run.record or RunRecord(name=run.run_id)
        record.resume()
        record.identity = run.identity
        record.point = {"name": method.name, "method": method.method, **dict(method.options)}
        params = config.to_dict()
        record.config = params | {"method": method.method}
        for name, value in method.options:
            # an option must not hide a flag of the job, such as the seed; a schedule replaces it
            hides = name in params and name != "schedule"
            record.config[f"{method.method}.{name}" if hides else name] = value
        if config.generation == "model":
            from pipelines.inference.engines.generation import checkpoint_settings

            record.config |= checkpoint_settings(config.model, config.revision)
        record.tags = {**job_tags(config), "method": method.method, "point": method.name}
        if "budget" in dict(method.options):
            record.tags["budget"] = str(dict(method.options)["budget"])
        record.dataset = {
            "name": config.benchmark,
            "digest": str(run.identity["manifest"])[:32],
            "source": redacted(self.manifest.data),
        }
        record.rows = {**record.rows, "wanted": len(self.index)}
        return record

    def _end_run(
        self,
        run: RunState,
        baseline: pa.Table | None,
        state: State,
        message: str,
        wall_s: float | None,
    ) -> None:
        record, config = run.record, self.config
        assert record is not None
        is_vanilla = run.method.method == "vanilla"
        table = baseline if is_vanilla and baseline is not None else self._answers(run)
        timings = {name: record.metrics[name] for name in JOB_METRICS if name in record.metrics}
        if wall_s is not None:  # summed over interruptions
            timings["wall_s"] = timings.get("wall_s", 0.0) + wall_s
        sample = answers.sample(run.folder)
        with contextlib.suppress(Exception):  # one figure of the tables: nothing depends on it
            from pipelines.inference.model_info import prefill_tflops

            good = sample.filter(pc.equal(sample["status"], "ok"))
            cost = prefill_tflops(config.model, config.revision, config.trust_remote_code, good)
            timings |= {} if cost is None else {"prefill_tflops": cost}
        metrics = summary.summarise(
            table, None if is_vanilla else baseline, self.benchmark, timings, config.seed
        )
        wanted = len(self.index) if run in self.open_runs else record.rows["wanted"]
        record.rows = {"wanted": wanted, "done": len(table), "error": int(metrics["rows_error"])}
        record.artifacts = [CONFIG_FILE, SAMPLE_FILE]
        run.folder.write(SAMPLE_FILE, summary.sample(sample))
        if run in self.open_runs and len(table) == wanted:
            # this run has all its answers, whatever happened to the others
            state, message = "finished", too_many_errors(record, config)
        record.end(state, metrics, message)
        record.save(run.folder)

    def _answers(self, run: RunState) -> pa.Table:
        """The answers to the requested rows. A run may have more, of a larger --limit."""
        table = answers.read(run.folder, summary.COLUMNS)
        if run not in self.open_runs:
            return table
        requested = self.index["row_id"].combine_chunks()
        return table.filter(pc.is_in(table["row_id"], value_set=requested))


@functools.cache
def _fingerprint(model: str, revision: str | None) -> str:
    return model_fingerprint(model, revision)


def manifest_of(config: EvalConfig) -> Manifest:
    """The rows that a config asks about."""
    bench = benchmark(config.benchmark)
    if bench.kind is not None and bench.kind != config.kind:
        raise ValueError(f"{bench.name} is about {bench.kind}s: use jobs/eval_{bench.kind}.py")
    data = config.data or bench.generate(config.split, config.limit)
    if data is None:
        raise ValueError(
            f"--benchmark {bench.name} needs --data: the folder with its files"
            " (docs/benchmarks.md lists them)"
        )
    return bench.load(
        str(data),
        config.split,
        media_root=config.media_root,
        allow_outside=config.allow_outside,
        kind=config.kind,
        question=config.question,
    ).require_media()


def _true_columns(mask: NDArray[np.bool_]) -> pa.ChunkedArray:
    """For each row of a mask (rows, runs), the list of columns that are true.

    Built in chunks: the indexes of ten million rows would take gigabytes at once.
    """
    chunks = []
    for start in range(0, max(1, len(mask)), CHUNK_ROWS):
        part = mask[start : start + CHUNK_ROWS]
        offsets = np.concatenate([[0], part.sum(axis=1).cumsum()]).astype(np.int32)
        columns = pa.array(np.nonzero(part)[1].astype(np.int16))
        chunks.append(pa.ListArray.from_arrays(pa.array(offsets), columns))
    return pa.chunked_array(chunks)


def count_missing(pointers: pa.Table) -> int:
    """Number of answers that the rows of `BenchmarkJob.missing` lack."""
    return int(pc.sum(pc.list_value_length(pointers["missing_runs"])).as_py() or 0)


def job_tags(config: EvalConfig) -> dict[str, str]:
    tags = {
        "model": config.model_name,
        "benchmark": config.benchmark,
        "split": config.split,
    }
    commit = git_commit()
    return {**tags, "git_commit": commit} if commit else tags


def too_many_errors(record: RunRecord, config: EvalConfig) -> str:
    """A message if more rows of a run ended in an error than allowed, else an empty text."""
    done, errors = record.rows["done"], record.rows["error"]
    if errors <= config.max_error_rate * done:
        return ""
    limit = f"--max-error-rate {config.max_error_rate:g}"
    return f"{errors} of {done} rows ended in an error, more than {limit}"


def recorded_runs(jobs: Sequence[BenchmarkJob]) -> list[tuple[BenchmarkJob, RunState, RunRecord]]:
    """All runs that have a record."""
    return [(job, run, run.record) for job in jobs for run in job.runs if run.record]

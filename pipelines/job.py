"""One job from its config to its exit status: what is missing, who answers it, how it ended."""

from __future__ import annotations

import contextlib
import hashlib
import re
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from pipelines.config.command_line import CONTINUE, one_line_errors
from pipelines.config.eval_config import EvalConfig, to_yaml
from pipelines.config.model_version import note_commit
from pipelines.inference.benchmark_job import (
    BenchmarkJob,
    count_missing,
    job_tags,
    recorded_runs,
    too_many_errors,
)
from pipelines.metrics import summary
from pipelines.results import answers
from pipelines.results.lock import Lock, Locked
from pipelines.results.run_record import RunRecord, State
from pipelines.results.storage import Folder, run_concurrently
from pipelines.text import describe_error, redacted

if TYPE_CHECKING:
    from pipelines.inference.job_progress import JobProgress
    from pipelines.inference.worker import InferenceWorker
    from pipelines.results.mlflow_tracker import Tracker

# Passes over rows that were lost on the way, e.g. with their workers, before the job gives up.
MAX_PASSES = 3
SEVERITY: Sequence[State] = ("finished", "failed", "killed")
DISK_FULL = ("No space left on device", "Disk quota exceeded")


@one_line_errors("error")
def run(requested: EvalConfig, worker: type[InferenceWorker] | None = None) -> int:
    """Run the job, or what is left of it. Exit status: 0, 1 failed, 2 wrong use, 130 interrupted.

    worker: another worker class, for tests and benchmarks
    """
    job = BenchmarkJob.of(requested)
    config = job.config
    print(to_yaml(config))
    state: State = "finished"
    if job.open_runs:
        job.check()
        job.index  # noqa: B018  duplicate ids are an error before anything starts
        name, run_ids = f"job-{config.benchmark}", [run.run_id for run in job.runs]
        record = job_record(config, name, run_ids, config.to_dict(), job_tags(config))
        state = execute([[job]], record, worker)
    else:
        print("All answers exist already; nothing to do.\n")
    print_summary([job])
    return status_of(state, [job])


def job_record(
    config: EvalConfig,
    name: str,
    run_ids: Sequence[str],
    params: Mapping[str, Any],
    tags: Mapping[str, str],
) -> RunRecord:
    """The record of a job or sweep. The same runs have the same one, so that a resumed job is one
    parent run in MLflow."""
    digest = hashlib.sha256("\n".join(run_ids).encode()).hexdigest()[:8]
    record = RunRecord(name=f"{name}-{digest}")
    with contextlib.suppress(FileNotFoundError):
        record = RunRecord.load(Folder.of(config.output).child(record.name))
    record.config, record.tags = dict(params), {**record.tags, **tags}
    return record


def execute(
    groups: Sequence[Sequence[BenchmarkJob]],
    record: RunRecord,
    worker: type[InferenceWorker] | None = None,
    write_report: Callable[[Folder], list[str]] | None = None,
) -> State:
    """Answer what the runs lack, group by group, and record how it went.

    The jobs of a group share their workers. If a group fails, the next one is started; only an
    interruption ends all of them.
    write_report: writes files about all runs into the job's folder and returns their names
    """
    from pipelines.inference.job_progress import JobProgress
    from pipelines.results.mlflow_tracker import Tracker

    config = groups[0][0].config  # groups agree on output and tracking
    assert config.tracking_uri is not None  # `resolve_paths` has filled it in
    jobs = [job for group in groups for job in group]
    folder = Folder.of(config.output).child(record.name)
    progress = JobProgress(record, folder, jobs)
    worst: State = "finished"
    messages = []
    with Lock(folder):
        for job in jobs:
            if job.open_runs:  # a resumed job uses the same commit
                own = job.config
                note_commit(own.model, own.revision, job.requested_revision, own.output)
        record.resume()
        record.save(folder)
        tracker = Tracker(config.tracking_uri, config.experiment)
        try:
            tracker.watch(record, folder)
            for group in groups:
                state, message = _run_group(group, progress, tracker, worker)
                messages += [message] if message else []
                worst = max(worst, state, key=SEVERITY.index)
                if worst == "killed":
                    break
            if write_report is not None and worst != "killed":
                record.artifacts = write_report(folder)
        except KeyboardInterrupt:
            worst, messages = "killed", [*messages, f"interrupted; {CONTINUE}"]
        finally:
            _end_job(progress, worst, "; ".join(messages), tracker)
    for message in messages:
        print(message, file=sys.stderr)
    return worst


def _run_group(
    group: Sequence[BenchmarkJob],
    progress: JobProgress,
    tracker: Tracker,
    worker: type[InferenceWorker] | None,
) -> tuple[State, str]:
    """Answer what the runs of a group lack. Returns how it ended, and a message unless well."""
    with contextlib.ExitStack() as stack:
        try:
            locks = [Lock(run.folder) for job in group for run in job.runs]
            # All at once: a dead owner on another machine is watched for a minute.
            with ThreadPoolExecutor(max(1, len(locks))) as pool:
                list(pool.map(stack.enter_context, locks))
            for job in group:
                job.begin(progress.record)
        except (ValueError, OSError) as error:
            return "failed", redacted(str(error))
        recorded = recorded_runs(group)
        for _, run, record in recorded:
            tracker.watch(record, run.folder)
        began = time.monotonic()
        state: State = "failed"
        try:
            missing = _answer_missing(group, progress, locks, worker)
            state = "failed" if missing else "finished"
            message = f"{missing} answers are still missing; {CONTINUE}" if missing else ""
        except KeyboardInterrupt:
            state, message = "killed", f"interrupted; {CONTINUE}"
        except Locked as error:  # the new owner of the runs records how they end
            for _, _, record in recorded:
                tracker.drop(record)
            return "failed", str(error)
        except Exception as error:
            message = f"{root_cause(error)}; existing answers are kept, {CONTINUE}"
            if not isinstance(error, ValueError):
                print(redacted(traceback.format_exc()), file=sys.stderr)
        for job in group:
            try:
                job.end(state, message, time.monotonic() - began)
            except Exception as error:
                print(redacted(traceback.format_exc()), file=sys.stderr)
                state = max(state, "failed", key=SEVERITY.index)
                message = message or f"{describe_error(error)}; {CONTINUE}"
        tracker.wait(*(record for _, _, record in recorded))
        for _, run, record in recorded:
            _save(record, run.folder)
        return state, message


def root_cause(error: Exception) -> str:
    """The first error behind an exception, on one line.

    Ray's exceptions carry a worker's traceback, in which the original error comes first.
    """
    text = str(error)
    first = re.split(r"\n+(?:The above exception was|During handling of)", text)[0].strip()
    has_traceback = '  File "' in text
    line = redacted(first.splitlines()[-1].strip()) if has_traceback else describe_error(error)
    return f"{line}; make room on that disk" if any(full in line for full in DISK_FULL) else line


def _answer_missing(
    group: Sequence[BenchmarkJob],
    progress: JobProgress,
    locks: Sequence[Lock],
    worker: type[InferenceWorker] | None,
) -> int:
    """Run the pipeline until nothing is missing or a pass brings nothing. Returns what is missing.

    Locked is raised if another process has taken over a run meanwhile.
    """
    pipeline = None
    missing = [job.missing(retry_errors=job.config.retry_errors) for job in group]
    for _ in range(MAX_PASSES):
        before = sum(map(count_missing, missing))
        if not before:
            break
        if pipeline is None:
            from pipelines.inference.plan import Pipeline  # imports Ray, torch and the model code

            pipeline = Pipeline(group, progress, **({"worker": worker} if worker else {}))
        for _ in pipeline.answer(missing):
            if any(lock.is_lost for lock in locks):
                break
        run_concurrently(Lock.check, locks)
        missing = [job.missing() for job in group]
        if sum(map(count_missing, missing)) == before:
            break
    return sum(map(count_missing, missing))


def _end_job(progress: JobProgress, state: State, message: str, tracker: Tracker) -> None:
    record = progress.record
    record.rows = progress.rows()
    failed = [
        run.method.name
        for job, run, run_record in recorded_runs(progress.jobs)
        if too_many_errors(run_record, job.config)
    ]
    errors = f"too many errors: {', '.join(failed)}" if failed else ""
    record.end(state, {}, message or errors)
    _save(record, progress.folder)
    if not tracker.stop():
        print(tracker.problem, file=sys.stderr)
    _save(record, progress.folder)


def _save(record: RunRecord, folder: Folder) -> None:
    """Save a record, now with what MLflow has of it. The disk may be full."""
    try:
        record.save(folder)
    except OSError as error:  # the next command finds out what is missing
        print(f"cannot write the record {record.name}: {describe_error(error)}", file=sys.stderr)


def print_summary(jobs: Sequence[BenchmarkJob]) -> None:
    """Print a table of all runs, what went wrong, where the answers are and what to do next."""
    for job in jobs:
        if len(jobs) > 1:
            print(f"\n{job.config.benchmark}, {job.config.model_name}")
        rows = [(run.method.name, record.metrics) for _, run, record in recorded_runs([job])]
        print(summary.table(rows))
    for _, run, record in recorded_runs(jobs):
        if record.rows["error"]:
            failures = summary.failures(answers.batches(run.folder, summary.ERROR_COLUMNS))
            print(f"\n{run.method.name}: rows without an answer\n{summary.failure_lines(failures)}")
    print("\nanswers, one Parquet folder a method:")
    for _, run, _ in recorded_runs(jobs):
        print(f"  {redacted(run.folder.uri)}")
    from pipelines.results.mlflow_tracker import dashboard

    print(f"compare the runs:\n  {dashboard(jobs[0].config.tracking_uri or '')}")


def status_of(state: State, jobs: Sequence[BenchmarkJob]) -> int:
    """The exit status of jobs that ended like this. Prints the runs with too many error rows."""
    if state != "finished":
        return 130 if state == "killed" else 1
    status = 0
    for job, run, record in recorded_runs(jobs):
        if message := too_many_errors(record, job.config):
            print(
                f"\n{run.method.name}: {message}; --retry-errors tries them again", file=sys.stderr
            )
            status = 1
    return status

"""A sweep from its config to its exit status: a plan, the missing answers, one report of all."""

from __future__ import annotations

import contextlib
import json
import sys
import traceback
from collections import Counter
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from pipelines.config.command_line import one_line_errors
from pipelines.config.sweep_config import SweepConfig, model_groups
from pipelines.inference.benchmark_job import BenchmarkJob, RunState, recorded_runs, too_many_errors
from pipelines.job import execute, job_record, print_summary, status_of
from pipelines.report.runs import LEFT_OUT_FILE
from pipelines.report.writer import PAGE_FILE, write_report
from pipelines.results.run_record import State, git_commit
from pipelines.results.storage import Folder
from pipelines.text import describe_error, redacted

if TYPE_CHECKING:
    from pipelines.inference.worker import InferenceWorker


@one_line_errors("error")
def sweep(config: SweepConfig, worker: type[InferenceWorker] | None = None) -> int:
    """Run the sweep, or what is left of it. Returns the exit status, as `job.run`."""
    jobs, failed_jobs = prepare(config)
    print(plan(jobs, failed_jobs))
    if not jobs:
        raise ValueError("no job of this sweep can start")
    if config.only_plan:
        return 0
    _save_skipped(jobs)
    run_ids = sorted(run.run_id for job in jobs for run in job.runs)
    record = job_record(
        jobs[0].config,
        config.name,
        run_ids,
        _merged([job.config.to_dict() for job in jobs]),
        {"git_commit": git_commit() or "unknown", "kind": "sweep"},
    )
    state: State = "finished"
    if any(job.open_runs for job in jobs) or record.state != "finished":
        groups = [
            [job for job in jobs if job.config in configs]
            for configs in model_groups(job.config for job in jobs)
        ]
        state = execute(groups, record, worker, partial(_write_report, jobs))
    else:
        print("\nAll answers exist already; nothing to do.")
    print_summary(jobs)
    folder = Folder.of(jobs[0].config.output).child(record.name)
    if folder.exists(PAGE_FILE):
        print(f"report of all runs:\n  {redacted(folder.child(PAGE_FILE).uri)}")
    for failed in failed_jobs:
        print(f"not done: {failed}", file=sys.stderr)
    return status_of(state, jobs) or int(bool(failed_jobs))


def _merged(configs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The jobs' configs as one: a list of all values where they differ."""
    merged: dict[str, Any] = {}
    for key in dict.fromkeys(key for config in configs for key in config):
        values = [config[key] for config in configs if key in config]
        distinct = [value for at, value in enumerate(values) if value not in values[:at]]
        merged[key] = values[0] if len(distinct) == 1 else [str(value) for value in distinct]
    return merged


def _write_report(jobs: Sequence[BenchmarkJob], folder: Folder) -> list[str]:
    """Write the report of all runs with answers. If that fails, the sweep still succeeds."""
    folders = [run.folder.uri for _, run, record in recorded_runs(jobs) if record.rows["done"]]
    if not folders:
        return []
    try:
        return write_report(folders, folder.uri)[1]
    except Exception:
        traceback.print_exc()
        print("cannot write the report; try python jobs/report.py <output> later", file=sys.stderr)
        return []


def prepare(config: SweepConfig) -> tuple[list[BenchmarkJob], list[str]]:
    """The jobs of a sweep, and why others cannot start, which does not stop these."""
    jobs, failed_jobs = [], []
    for requested in config.jobs:
        try:
            job = BenchmarkJob.of(requested)
            if any(_failed(run, job) for run in job.runs):
                job.retry_errors()
            skipped = _load_skipped(Folder.of(job.config.output))
            for run in [run for run in job.open_runs if run.run_id in skipped]:
                job.skip(run, skipped[run.run_id])
            if job.open_runs:
                job.check(skip_impossible=True)
                job.index  # noqa: B018  duplicate ids are an error before anything starts
        except Exception as error:  # a broken model or benchmark must not affect the others
            name = f"{requested.benchmark} with {requested.model_name}"
            failed_jobs.append(f"{name}: {describe_error(error)}")
        else:
            jobs.append(job)
    counts = Counter(run.run_id for job in jobs for run in job.runs)
    if repeated := [run_id for run_id, count in counts.items() if count > 1]:
        raise ValueError(
            f"requested twice: {', '.join(repeated[:3])}; name each model and benchmark once"
        )
    return jobs, failed_jobs


def _failed(run: RunState, job: BenchmarkJob) -> bool:
    """Whether the run was finished with too many errors. An interrupted one may still succeed."""
    record = run.record
    return (
        record is not None
        and record.state == "finished"
        and bool(too_many_errors(record, job.config))
    )


def _save_skipped(jobs: Sequence[BenchmarkJob]) -> None:
    """Remember the skipped runs, so that a finished sweep need not load the models again."""
    output = Folder.of(jobs[0].config.output)
    known = _load_skipped(output)
    skipped = known | {run_id: why for job in jobs for run_id, why in job.skipped.items()}
    if skipped != known:
        content = {"git_commit": git_commit(), "runs": skipped}
        output.write(LEFT_OUT_FILE, json.dumps(content, indent=1).encode())


def _load_skipped(output: Folder) -> dict[str, str]:
    """Run ids that this version of the code skipped, with the reasons. Another may manage them."""
    with contextlib.suppress(FileNotFoundError):
        content = json.loads(output.read(LEFT_OUT_FILE))
        if content["git_commit"] == git_commit():
            return dict(content["runs"])
    return {}


def plan(jobs: Sequence[BenchmarkJob], failed_jobs: Sequence[str]) -> str:
    """A table of what the sweep will do: rows to read, answers to make, answers that exist."""
    lines = [_plan_line("model", "benchmark", "runs", "rows", "answers", "exist already")]
    total = existing = 0
    for job in jobs:
        rows, done = job.row_count, sum(_done(job, run) for run in job.runs)
        wanted = rows * len(job.runs)
        total, existing = total + wanted, existing + done
        name = job.config.model_name[:23]
        lines.append(_plan_line(name, job.config.benchmark, len(job.runs), rows, wanted, done))
        lines += [f"    skipped: {reason}" for reason in job.skipped.values()]
    lines += [f"    cannot start: {failed}" for failed in failed_jobs]
    lines.append(_plan_line("", "", "", sum(job.row_count for job in jobs), total, existing))
    lines.append("each row is read, decoded and encoded once for all runs that share its model")
    return "\n".join(lines)


def _plan_line(model: str, name: str, *numbers: int | str) -> str:
    widths = (8, 12, 14, 16)
    cells = [
        f"{number:>{width},}" if isinstance(number, int) else f"{number:>{width}}"
        for number, width in zip(numbers, widths, strict=True)
    ]
    return f"{model:24}{name:16}{''.join(cells)}"


def _done(job: BenchmarkJob, run: RunState) -> int:
    """The existing answers of a run, among those requested."""
    if run not in job.open_runs:
        return job.row_count
    return min(job.row_count, run.record.rows["done"]) if run.record else 0

"""A sweep from its grid to its exit status: a plan, what is left of it, and one report of all points."""

from __future__ import annotations

import contextlib
import hashlib
import json
import sys
import traceback
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from pipelines.config.eval_config import EvalConfig
from pipelines.config.sweep_config import SweepConfig, model_groups
from pipelines.inference.benchmark_job import BenchmarkJob, RunState, records, too_many_errors
from pipelines.job import carry_out, conclude, guarded, job_record, status_of
from pipelines.report.gather import LEFT_OUT
from pipelines.report.write import PAGE, report
from pipelines.results.run_record import State, git_commit
from pipelines.results.storage import Folder
from pipelines.text import describe_error, redacted

if TYPE_CHECKING:
    from pipelines.inference.worker import InferenceWorker


@dataclass(frozen=True)
class Hopeless:
    """A job of the grid that cannot begin, and why."""

    config: EvalConfig
    error: str


def sweep(grid: SweepConfig, worker: type[InferenceWorker] | None = None) -> int:
    """Do the sweep, or what is left of it. Returns the exit status: 0, 1 failed, 2 wrong use, 130 interrupted."""
    with guarded() as status:
        status.code = _sweep(grid, worker)
    return status.code


def _sweep(grid: SweepConfig, worker: type[InferenceWorker] | None) -> int:
    works, hopeless = prepare(grid)
    print(plan(works, hopeless))
    if not works:
        raise ValueError("no job of this sweep can begin")
    if grid.only_plan:
        return 0
    _remember(works)
    digest = hashlib.sha256(
        "\n".join(sorted(unit.run_id for work in works for unit in work.units)).encode()
    )
    job = job_record(
        works[0].config,
        f"{grid.name}-{digest.hexdigest()[:8]}",
        _common([work.config.to_dict() for work in works]),
        {"git_commit": git_commit() or "unknown", "kind": "sweep"},
    )
    state: State = "finished"
    if any(work.open for work in works) or job.state != "finished":
        groups = [
            [work for work in works if work.config in group]
            for group in model_groups(work.config for work in works)
        ]
        state = carry_out(groups, job, worker, partial(_report, works))
    else:
        print("\nEvery point is answered already; nothing to do.")
    conclude(works)
    folder = Folder.of(works[0].config.output).child(job.name)
    if folder.exists(PAGE):
        print(f"the report of all points:\n  {redacted(folder.child(PAGE).uri)}")
    for one in hopeless:
        print(f"not done: {one.error}", file=sys.stderr)
    if state == "killed":
        return 130
    return 1 if hopeless or state != "finished" else status_of(works)


def _common(jobs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The jobs' configs as one: of what they differ in, all values."""
    found: dict[str, Any] = {}
    for key in dict.fromkeys(key for job in jobs for key in job):
        values = [job[key] for job in jobs if key in job]
        different = [value for at, value in enumerate(values) if value not in values[:at]]
        found[key] = values[0] if len(different) == 1 else [str(value) for value in different]
    return found


def _report(works: Sequence[BenchmarkJob], folder: Folder) -> list[str]:
    """Write the report of all runs that have answers; a report that fails is said, and stops nothing."""
    folders = [unit.folder.uri for _, unit, record in records(works) if record.rows["done"]]
    if not folders:
        return []
    try:
        return report(folders, folder.uri)[1]
    except Exception:
        traceback.print_exc()
        print(
            "the report could not be written; python jobs/report.py <output> writes it later",
            file=sys.stderr,
        )
        return []


def prepare(grid: SweepConfig) -> tuple[list[BenchmarkJob], list[Hopeless]]:
    """The jobs of a grid, and those that cannot begin, which stop no other."""
    works, hopeless = [], []
    for job in grid.jobs:
        try:
            work = BenchmarkJob.of(job)
            if any(_failed(unit, work) for unit in work.units):
                work.retry_errors()  # a point that failed is tried again
            known = _remembered(Folder.of(work.config.output))
            for unit in [unit for unit in work.open if unit.run_id in known]:
                work.leave_out(unit, known[unit.run_id])
            if work.open:
                work.refuse(leave_out=True)
                work.index  # noqa: B018  read now: what is wrong with the ids is said before anything starts
        except (
            Exception
        ) as error:  # whatever is wrong with one model or benchmark is no other's business
            hopeless.append(
                Hopeless(job, f"{job.benchmark} with {job.model_name}: {describe_error(error)}")
            )
        else:
            works.append(work)
    ids = [unit.run_id for work in works for unit in work.units]
    if twice := [run_id for run_id, times in Counter(ids).items() if times > 1]:
        raise ValueError(
            f"{', '.join(twice[:3])}: asked for twice; name each model and benchmark once"
        )
    return works, hopeless


def _failed(unit: RunState, work: BenchmarkJob) -> bool:
    """Was it answered to the end, with too many errors? Of one that was interrupted nobody knows yet."""
    record = unit.record
    return (
        record is not None
        and record.state == "finished"
        and bool(too_many_errors(record, work.config))
    )


def _remember(works: Sequence[BenchmarkJob]) -> None:
    """Write down which points were left out, so that a sweep with nothing left to do need not ask the models again."""
    output = Folder.of(works[0].config.output)
    known = _remembered(output)
    found = known | {run_id: reason for work in works for run_id, reason in work.left_out.items()}
    if found != known:
        output.write(
            LEFT_OUT, json.dumps({"git_commit": git_commit(), "runs": found}, indent=1).encode()
        )


def _remembered(output: Folder) -> dict[str, str]:
    """Runs that cannot be done, and why; of this code, since another may know how."""
    with contextlib.suppress(FileNotFoundError):
        found = json.loads(output.read(LEFT_OUT))
        if found["git_commit"] == git_commit():
            return dict(found["runs"])
    return {}


def plan(works: Sequence[BenchmarkJob], hopeless: Sequence[Hopeless]) -> str:
    """What the sweep will do, and what it costs: in rows read and decoded, and in answers made of them."""
    lines = [
        f"{'model':24}{'benchmark':16}{'points':>8}{'rows':>12}{'answers':>14}{'there already':>16}"
    ]
    total = there = 0
    for work in works:
        rows, points = work.rows, work.units
        done = sum(
            rows
            if unit not in work.open
            else min(rows, unit.record.rows["done"])
            if unit.record
            else 0
            for unit in points
        )
        total, there = total + rows * len(points), there + done
        name = work.config.model_name[:23]
        lines.append(
            f"{name:24}{work.config.benchmark:16}{len(points):>8}{rows:>12,}{rows * len(points):>14,}{done:>16,}"
        )
        lines += [f"    left out: {reason}" for reason in work.left_out.values()]
    lines += [f"    cannot begin: {one.error}" for one in hopeless]
    lines.append(
        f"{'':24}{'':16}{'':8}{sum(work.rows for work in works):>12,}{total:>14,}{there:>16,}"
    )
    lines.append("each row is read, decoded and encoded once for all points that share its model")
    return "\n".join(lines)

"""The progress of a whole job: in its own record, in its runs' records and on the terminal."""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ray

from pipelines.inference.benchmark_job import BenchmarkJob, RunState, recorded_runs
from pipelines.inference.progress import Progress
from pipelines.results.run_record import RunRecord
from pipelines.results.storage import Folder

POLL_S = 2.0
LINE_INTERVAL_S = 10.0  # between two lines where stderr is not a terminal
# Polls without an answer before a warning: when the head is lost, Ray ends this process after a
# minute without asking us.
WARN_AFTER_FAILED_POLLS = 2


@dataclass(frozen=True)
class JobProgress:
    """The job's own record, its folder and all of its benchmark jobs."""

    record: RunRecord
    folder: Folder
    jobs: Sequence[BenchmarkJob]

    def rows(self) -> dict[str, int]:
        """Answers wanted, answers done and errors among them, summed over all runs."""
        by_run = [record.rows for _, _, record in recorded_runs(self.jobs)]
        return {key: sum(rows[key] for rows in by_run) for key in self.record.rows}

    def log(self, values: Mapping[str, float], *, last: bool = False) -> bool:
        """Add a point to the job's history unless there is a recent one; True if added.

        The progress of all runs belongs to the job. In MLflow the runs below it have results only:
        its charts, and its page that compares runs, open on what they find first.
        """
        self.record.rows = self.rows()
        done, errors = self.record.rows["done"], self.record.rows["error"]
        counts = {"progress.rows_done": done, "progress.rows_error": errors}
        if not self.record.log(done, {**counts, **values}, force=last):
            return False
        self.record.save(self.folder)
        return True


class ProgressMonitor:
    """`with ProgressMonitor(...):` a thread shows and records how far the job is."""

    def __init__(self, tracker: Any, job: JobProgress, runs: Sequence[RunState]) -> None:
        self._tracker, self._job, self._runs = tracker, job, runs
        self.wanted = 0  # answers, of this job; set before the first poll
        self._earlier = {run.run_id: dict(run.record.rows) for run in runs if run.record}
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._last_line = 0.0
        self._failed_polls = 0

    def __enter__(self) -> ProgressMonitor:
        self._stop.clear()
        self._thread = threading.Thread(target=self._loop, name="progress", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        assert self._thread is not None
        self._stop.set()
        self._thread.join()
        if error[0] is None:
            self._poll(last=True)

    def _loop(self) -> None:
        while not self._stop.wait(POLL_S):
            self._poll()

    def _poll(self, last: bool = False) -> None:
        try:
            progress: Progress = ray.get(self._tracker.read_progress.remote(), timeout=10)
        except Exception:  # the cluster is busy or going down
            self._failed_polls += 1
            if self._failed_polls == WARN_AFTER_FAILED_POLLS:
                print(
                    "Ray does not answer. If its head node is lost, this job ends; run the same"
                    " command again to continue.",
                    file=sys.stderr,
                )
            return
        self._failed_polls = 0
        self._print(progress, last)
        self._record(progress, last)

    def _print(self, progress: Progress, last: bool) -> None:
        terminal = sys.stderr.isatty()
        now = time.monotonic()
        if not (last or terminal or now - self._last_line >= LINE_INTERVAL_S):
            return
        self._last_line = now
        text = progress_line(progress, self.wanted)
        line = f"\r{text:<100}" if terminal else text
        print(line, end="\n" if last or not terminal else "", file=sys.stderr, flush=True)

    def _record(self, progress: Progress, last: bool) -> None:
        for run in self._runs:
            if run.record is not None:
                self._record_run(run, run.record, progress)
        values = {**progress.mean_gpu_metrics(), **progress.utilization()}
        spent = progress.spent_s
        if spent:
            values["progress.rows_per_s"] = progress.answered.total() / spent
            values["progress.visual_tokens_per_s"] = progress.visual_tokens.total() / spent
        with contextlib.suppress(OSError):  # the next poll saves it, or the end of the job
            if progress.answered and self._job.log(values, last=last):
                for run in self._runs:
                    if run.record is not None and progress.answered[run.run_id]:
                        run.record.save(run.folder)

    def _record_run(self, run: RunState, record: RunRecord, progress: Progress) -> None:
        earlier, run_id = self._earlier[run.run_id], run.run_id
        record.rows = {
            **record.rows,
            "done": earlier["done"] + progress.answered[run_id],
            "error": earlier["error"] + progress.errors[run_id],
        }
        metrics = {**record.metrics, "load_s": progress.load_s, **progress.utilization()}
        tokens = progress.batch_tokens
        is_new = tokens is not None and record.metrics.get("batch_tokens") != tokens
        record.metrics = metrics | ({"batch_tokens": tokens} if tokens is not None else {})
        if is_new:  # saved before there are answers: a resumed job must make the same batches
            with contextlib.suppress(OSError):
                record.save(run.folder)


def progress_line(progress: Progress, wanted: int) -> str:
    done, errors = progress.answered.total(), progress.errors.total()
    seconds = progress.latest - progress.started
    rate = done / seconds if seconds > 0 else 0.0
    if rate:
        remaining = f"{_clock(max(0, wanted - done) / rate)} left"
    else:
        remaining = "starting" if progress.workers else "loading"
    text = (
        f"{done}/{wanted} answers  {rate:.1f}/s  {errors} errors"
        f"  {len(progress.workers)} actors  {remaining}"
    )
    return text + (f"  {progress.deaths} workers died" if progress.deaths else "")


def _clock(seconds: float) -> str:
    minutes, second = divmod(int(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"

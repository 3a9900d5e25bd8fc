"""Which worker holds which rows: one small Ray actor that outlives the workers.

A worker that dies (a crashing decoder, a failing driver, a lost machine) takes its batch with it.
The tracker knows the rows of that batch: they are retried one by one, and a row that kills its
worker each time it is alone becomes an error row. Nothing else is lost with it, and nothing is
retried for ever. Workers also report their progress here.
"""

import contextlib
import faulthandler
import os
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import ray
from ray.util import metrics

from pipelines.inference.progress import BusyTime, Progress, RunProgress
from pipelines.results.system_metrics import gpu_metrics

# A row is given up after killing this many workers while it was answered alone.
MAX_SOLO_DEATHS = 2
# A row that was given up may be tried again this many times, by the next method: it may have died
# of one method only.
MAX_FORGIVEN = 1
# The job stops after this many deaths of a worker with no answer from any worker in between.
MAX_BARREN_DEATHS = 10
# The job stops after a worker exceeded --batch-timeout this many times with no row to blame.
MAX_STALLS = 3
# Time that a worker has to report a timeout before it is ended the hard way.
EXIT_GRACE_S = 10.0


class FailureTracker:
    """The state of the tracker; used directly where one worker runs without a cluster."""

    def __init__(self) -> None:
        self._rows_in_work: dict[str, list[str]] = {}  # by worker
        self._suspects: Counter[str] = Counter()  # rows of batches whose worker died
        self._timed_out: dict[str, float] = {}  # rows of batches that exceeded this many seconds
        self._solo_deaths: Counter[str] = Counter()
        self._forgiven: Counter[str] = Counter()
        self._barren_deaths: Counter[str] = Counter()  # by worker, since any worker's last answer
        self._stalls: Counter[str] = Counter()  # by worker: timeouts with no row in work
        self._last_suspects = ""
        self.progress = Progress()

    def register(self, worker: str) -> tuple[bool, str]:
        """A worker starts. Returns whether it died before, and why the job must stop if so."""
        lost_rows = self._rows_in_work.pop(worker, None)
        if lost_rows is not None:
            self.progress.deaths += 1
            self._barren_deaths[worker] += 1
            if len(lost_rows) == 1:
                self._solo_deaths.update(lost_rows)
            self._suspects.update(lost_rows)
            self._last_suspects = ", ".join(lost_rows[:3]) or "no row yet"
        self._rows_in_work[worker] = []  # from here on its death is noticed
        return lost_rows is not None, self._reason_to_stop(worker)

    def _reason_to_stop(self, worker: str) -> str:
        if self._stalls[worker] >= MAX_STALLS:
            return (
                "reading rows of the manifest took longer than --batch-timeout each time: check"
                " the store that --data is on, or allow more time"
            )
        if self._barren_deaths[worker] >= MAX_BARREN_DEATHS:
            return (
                f"a worker died {self._barren_deaths[worker]} times without an answer in between,"
                f" last while answering {self._last_suspects}: find out why in Ray's logs (out of"
                " memory? an error of the driver?)"
            )
        return ""

    def unregister(self, worker: str) -> None:
        """A worker has finished everything it was started for."""
        self._survived(worker)
        self._rows_in_work.pop(worker, None)
        self._stalls.pop(worker, None)

    def _survived(self, worker: str) -> None:
        """A row that was answered alone did not kill its worker: clear both of suspicion."""
        rows = self._rows_in_work.get(worker, [])
        if len(rows) == 1:
            del self._suspects[rows[0]], self._solo_deaths[rows[0]]
            del self._barren_deaths[worker]

    def ready(self, worker: str, load_s: float) -> None:
        self.progress.workers.add(worker)
        self.progress.load_s = max(self.progress.load_s, load_s)

    def timed_out(self, worker: str, seconds: float) -> None:
        """A worker is about to end itself because its current step exceeded the time limit."""
        rows = self._rows_in_work.get(worker, [])
        self._timed_out.update(dict.fromkeys(rows, seconds))
        self._stalls[worker] += not rows

    def begin_batch(self, worker: str, rows: Sequence[str]) -> tuple[list[str], dict[str, str]]:
        """A worker is about to answer `rows`.

        Returns the rows that must be answered alone, and those to give up with the reason.
        """
        self._survived(worker)
        given_up = {
            row: self._why(row) for row in rows if self._solo_deaths[row] >= MAX_SOLO_DEATHS
        }
        suspects = [row for row in rows if self._suspects[row] and row not in given_up]
        self._rows_in_work[worker] = [] if suspects or given_up else list(rows)
        return suspects, given_up

    def _why(self, row: str) -> str:
        if row in self._timed_out:
            limit = f"--batch-timeout {self._timed_out[row]:g} s"
            return f"TimeoutError: the worker took longer than {limit}"
        return "WorkerDied: the worker died"

    def begin_alone(self, worker: str, row: str) -> None:
        self._survived(worker)
        self._rows_in_work[worker] = [row]

    def forgive(self, row: str) -> bool:
        """Whether a row that was given up may be tried again by another method."""
        self._forgiven[row] += 1
        if self._forgiven[row] > MAX_FORGIVEN:
            return False
        self._solo_deaths[row] = 0
        return True

    def batch_tokens(self, measured: int | None = None) -> int | None:
        """The limit for all workers: the first measurement counts. None: nobody has measured."""
        if self.progress.batch_tokens is None:
            self.progress.batch_tokens = measured
        return self.progress.batch_tokens

    def report_progress(
        self,
        worker: str,
        runs: Sequence[RunProgress],
        busy_time: BusyTime,
        gpu: Mapping[str, float],
    ) -> None:
        """A worker has answered what it began."""
        total, now = self.progress, time.monotonic()
        total.busy_time = BusyTime(
            total.busy_time.busy_s + busy_time.busy_s,
            total.busy_time.total_s + busy_time.total_s,
            busy_time.gpu,
        )
        total.gpu_metrics[worker] = dict(gpu)
        self._survived(worker)
        self._rows_in_work[worker] = []
        for run in runs:
            if run.rows > run.errors:
                self._barren_deaths.clear()
            if run.rows:
                total.answered[run.run_id] += run.rows
                total.errors[run.run_id] += run.errors
                total.visual_tokens[run.run_id] += run.visual_tokens
                total.latest = now
        spent = sum(run.spent_s for run in runs)  # also on rows that are written later
        total.spent_s += spent
        if spent and not total.started:
            total.started = now - spent

    def read_progress(self) -> Progress:
        return self.progress


class FailureTrackerActor(FailureTracker):
    """The tracker in a process of its own; its numbers are Ray metrics: `ray_apet_rows_total`..."""

    def __init__(self) -> None:
        super().__init__()
        self._row_counter = metrics.Counter(
            "apet_rows", "Answers written.", tag_keys=("run", "status")
        )
        self._token_counter = metrics.Counter(
            "apet_visual_tokens", "Visual tokens of the answered rows.", tag_keys=("run",)
        )
        self._workers = metrics.Gauge("apet_workers", "Workers that have loaded the model.")
        self._deaths = metrics.Gauge(
            "apet_worker_deaths", "Workers that died and were started again."
        )

    def report_progress(
        self,
        worker: str,
        runs: Sequence[RunProgress],
        busy_time: BusyTime,
        gpu: Mapping[str, float],
    ) -> None:
        super().report_progress(worker, runs, busy_time, gpu)
        for run in runs:
            for status, count in (("ok", run.rows - run.errors), ("error", run.errors)):
                if count:
                    self._row_counter.inc(count, {"run": run.run_id, "status": status})
            if run.visual_tokens:
                self._token_counter.inc(run.visual_tokens, {"run": run.run_id})
        self._workers.set(len(self.progress.workers))
        self._deaths.set(self.progress.deaths)


RemoteFailureTracker = ray.remote(num_cpus=0)(FailureTrackerActor)


class FailureTrackerClient:
    """A worker's connection to the tracker. Every call is known there before the worker goes on,
    because the worker may die at any moment."""

    def __init__(self, tracker: Any, worker: str) -> None:
        self._tracker, self.worker = tracker, worker

    def register(self) -> bool:
        """Start; True if this worker died before. RuntimeError if the job must stop."""
        was_restarted, stop_reason = self._call("register", self.worker)
        if stop_reason:
            raise RuntimeError(stop_reason)
        return bool(was_restarted)

    def ready(self, load_s: float) -> None:
        self._call("ready", self.worker, load_s)

    @contextlib.contextmanager
    def time_limit(self, seconds: float) -> Iterator[None]:
        """End the process if it is still inside after `seconds`: nothing else stops a hang.

        The stack goes to its log. Code that never lets Python run again is ended EXIT_GRACE_S
        later, without a report.
        """

        def end_process() -> None:
            self._call("timed_out", self.worker, seconds)
            print(
                f"worker {self.worker} ends: this took longer than {seconds:g} s",
                file=sys.stderr,
                flush=True,
            )
            faulthandler.dump_traceback(file=2)
            os._exit(75)

        timer = threading.Timer(seconds, end_process)
        timer.daemon = True
        timer.start()
        faulthandler.dump_traceback_later(seconds + EXIT_GRACE_S, exit=True, file=2)
        try:
            yield
        finally:
            faulthandler.cancel_dump_traceback_later()
            timer.cancel()

    def begin_batch(self, rows: Sequence[str]) -> tuple[list[str], dict[str, str]]:
        suspects, given_up = self._call("begin_batch", self.worker, rows)
        return suspects, given_up

    def begin_alone(self, row: str) -> None:
        self._call("begin_alone", self.worker, row)

    def forgive(self, row: str) -> bool:
        return bool(self._call("forgive", row))

    def batch_tokens(self, measured: int | None = None) -> int | None:
        agreed: int | None = self._call("batch_tokens", measured)
        return agreed

    def report_progress(self, runs: Sequence[RunProgress], busy_time: BusyTime) -> None:
        self._call("report_progress", self.worker, runs, busy_time, gpu_metrics())

    def unregister(self) -> None:
        self._call("unregister", self.worker)

    def _call(self, method: str, *args: Any) -> Any:
        if isinstance(self._tracker, FailureTracker):
            return getattr(self._tracker, method)(*args)
        return ray.get(getattr(self._tracker, method).remote(*args))

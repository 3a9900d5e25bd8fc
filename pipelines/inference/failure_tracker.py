"""Who works on which rows, and how far the job is: one small Ray actor that outlives the workers.

A worker that dies (a decoder that crashes, a driver that fails, a machine that is lost) takes its batch with it. The
ledger knows which rows that batch held: they are tried again one by one, and a row that takes its worker down every
time it is alone becomes an error row. Nothing else is lost with it, and nothing is tried for ever.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.util import metrics

from pipelines.results.system_metrics import gpu_metrics

MAX_SOLO_DEATHS = 2  # deaths while answering a row by itself, after which it is given up
MAX_FORGIVEN = 1  # of a row that was given up: it may have died of one method alone
MAX_BARREN_DEATHS = 10  # of workers in a row without an answer between, after which the job is
MAX_STALLS = 3  # times that a worker takes a whole --batch-timeout over what no row can be blamed for, before the job is
EXIT_GRACE_S = 10.0  # seconds that a worker has to say that it took too long


@dataclass
class RunProgress:
    """What a worker has done for one run since it last said so."""

    run: str
    rows: int = 0
    errors: int = 0
    spent_s: float = 0.0
    visual_tokens: int = 0


@dataclass
class BusyTime:
    """Seconds of a worker, and those of them in which it had a batch in work."""

    busy_s: float = 0.0
    whole_s: float = 0.0
    gpu: bool = False  # measured on one


@dataclass
class Progress:
    """What the job has done so far, of all its workers."""

    answered: Counter[str] = field(default_factory=Counter)  # rows by run
    errors: Counter[str] = field(default_factory=Counter)
    workers: set[str] = field(default_factory=set)  # that have been ready to answer
    deaths: int = 0
    load_s: float = 0.0  # the slowest worker's
    spent_s: Counter[str] = field(
        default_factory=Counter
    )  # by run: seconds of workers' time in batches
    visual_tokens: Counter[str] = field(
        default_factory=Counter
    )  # by run: that the models would have seen
    started: float = 0.0  # of the first answer's batch, by the ledger's own steady clock
    latest: float = 0.0  # and of the last answer
    most_tokens: int | None = None  # of a batch
    shift: BusyTime = field(default_factory=BusyTime)  # of all workers
    devices: dict[str, dict[str, float]] = field(
        default_factory=dict
    )  # by worker: how busy its GPU is

    def busy(self) -> dict[str, float]:
        """The share of its steady state in which a worker had a batch in work, the mean over the workers' time."""
        if not self.shift.whole_s:
            return {}
        return {
            "gpu_busy" if self.shift.gpu else "worker_busy": self.shift.busy_s / self.shift.whole_s
        }

    def device(self) -> dict[str, float]:
        """The mean over the workers' GPUs; on a hundred, a line for each would be too many."""
        names = {name for each in self.devices.values() for name in each}
        known = {
            name: [each[name] for each in self.devices.values() if name in each] for name in names
        }
        return {name: sum(values) / len(values) for name, values in known.items()}


class FailureTracker:
    """What the ledger knows; by itself for one worker without a cluster."""

    def __init__(self) -> None:
        self._open: dict[str, list[str]] = {}  # by worker: the rows it is answering
        self._suspects: Counter[str] = Counter()  # rows that were in a batch whose worker died
        self._late: dict[
            str, float
        ] = {}  # rows that were in a batch that took longer than so many seconds
        self._alone: Counter[str] = Counter()
        self._pardoned: Counter[str] = Counter()
        self._barren: Counter[str] = (
            Counter()
        )  # by worker: its deaths since any worker's last answer
        self._stuck: Counter[str] = (
            Counter()
        )  # by worker: how often it took too long without such rows
        self._last = ""
        self.progress = Progress()

    def arrive(self, worker: str) -> tuple[bool, str]:
        """A worker starts. Returns whether it died before, and why the job should stop, if it should."""
        died = self._open.pop(worker, None)
        if died is not None:
            self.progress.deaths += 1
            self._barren[worker] += 1
            if len(died) == 1:
                self._alone.update(died)
            self._suspects.update(died)
            self._last = ", ".join(died[:3]) or "no row yet"
        self._open[worker] = []  # from here on its end is noticed
        if self._stuck[worker] >= MAX_STALLS:
            return True, (
                "reading rows of the manifest took longer than --batch-timeout each time; look at the store that --data"
                " is on, or give more time"
            )
        if self._barren[worker] >= MAX_BARREN_DEATHS:
            return True, (
                f"a worker died {self._barren[worker]} times without an answer between, last while answering"
                f" {self._last}; look for its end in Ray's logs (killed for memory? a driver's error?)"
            )
        return died is not None, ""

    def leave(self, worker: str) -> None:
        """A worker has done all it came for."""
        self._survived(worker)
        self._open.pop(worker, None)
        self._stuck.pop(worker, None)

    def _survived(self, worker: str) -> None:
        """What a worker did alone did not kill it: neither the row nor the worker is suspected any more."""
        rows = self._open.get(worker, [])
        if len(rows) == 1:
            del self._suspects[rows[0]], self._alone[rows[0]]
            del self._barren[worker]

    def ready(self, worker: str, load_s: float) -> None:
        self.progress.workers.add(worker)
        self.progress.load_s = max(self.progress.load_s, load_s)

    def late(self, worker: str, seconds: float) -> None:
        """A worker ends itself, because what it is at takes longer than it may."""
        rows = self._open.get(worker, [])
        self._late.update(dict.fromkeys(rows, seconds))
        self._stuck[worker] += not rows

    def begin(self, worker: str, rows: Sequence[str]) -> tuple[list[str], dict[str, str]]:
        """A worker is about to answer `rows`: which of them to answer alone, and which to give up, and why."""
        self._survived(worker)
        lost = {row: self._why(row) for row in rows if self._alone[row] >= MAX_SOLO_DEATHS}
        suspects = [row for row in rows if self._suspects[row] and row not in lost]
        self._open[worker] = [] if suspects or lost else list(rows)
        return suspects, lost

    def _why(self, row: str) -> str:
        if row in self._late:
            return (
                f"TimeoutError: the worker took longer than --batch-timeout {self._late[row]:g} s"
            )
        return "WorkerDied: the worker died"

    def alone(self, worker: str, row: str) -> None:
        self._survived(worker)
        self._open[worker] = [row]

    def pardon(self, row: str) -> bool:
        """May a row that was given up be tried again, by another method? Once: then it is the row that kills."""
        self._pardoned[row] += 1
        if self._pardoned[row] > MAX_FORGIVEN:
            return False
        self._alone[row] = 0
        return True

    def most_tokens(self, found: int | None = None) -> int | None:
        """Of a batch, for all workers: what the first of them has found. None: nobody has."""
        if self.progress.most_tokens is None:
            self.progress.most_tokens = found
        return self.progress.most_tokens

    def end(
        self, worker: str, done: Sequence[RunProgress], shift: BusyTime, device: Mapping[str, float]
    ) -> None:
        """A worker has answered what it began."""
        total = self.progress.shift
        self.progress.shift = BusyTime(
            total.busy_s + shift.busy_s, total.whole_s + shift.whole_s, shift.gpu
        )
        now = time.monotonic()
        self.progress.devices[worker] = dict(device)
        self._survived(worker)
        self._open[worker] = []
        told = self.progress
        for part in done:
            if part.rows > part.errors:
                self._barren.clear()
            told.spent_s[part.run] += part.spent_s  # of a batch whose rows are written later, too
            if part.rows:
                told.answered[part.run] += part.rows
                told.errors[part.run] += part.errors
                told.visual_tokens[part.run] += part.visual_tokens
                told.latest = now
        spent = sum(part.spent_s for part in done)
        if spent and not told.started:
            told.started = now - spent

    def tell(self) -> Progress:
        return self.progress


class FailureTrackerActor(FailureTracker):
    """The book in a process of its own, with its numbers among Ray's metrics: `ray_apet_rows_total` and so on."""

    def __init__(self) -> None:
        super().__init__()
        self._rows = metrics.Counter("apet_rows", "Answers written.", tag_keys=("run", "status"))
        self._tokens = metrics.Counter(
            "apet_visual_tokens", "Visual tokens of the answered rows.", tag_keys=("run",)
        )
        self._workers = metrics.Gauge("apet_workers", "Workers that have loaded the model.")
        self._deaths = metrics.Gauge(
            "apet_worker_deaths", "Workers that died and were started again."
        )

    def end(
        self, worker: str, done: Sequence[RunProgress], shift: BusyTime, device: Mapping[str, float]
    ) -> None:
        super().end(worker, done, shift, device)
        for part in done:
            for status, count in (("ok", part.rows - part.errors), ("error", part.errors)):
                if count:
                    self._rows.inc(count, {"run": part.run, "status": status})
            if part.visual_tokens:
                self._tokens.inc(part.visual_tokens, {"run": part.run})
        self._workers.set(len(self.progress.workers))
        self._deaths.set(self.progress.deaths)


RemoteFailureTracker = ray.remote(num_cpus=0)(FailureTrackerActor)


class FailureTrackerClient:
    """A worker's place at the ledger: what it says is known there before it goes on, for it may die at any moment."""

    def __init__(self, ledger: Any, worker: str) -> None:
        self._ledger, self.worker = ledger, worker

    def arrive(self) -> bool:
        """Start; True if it is again, after a death. RuntimeError if the job has no hope."""
        again, stop = self._ask("arrive", self.worker)
        if stop:
            raise RuntimeError(stop)
        return bool(again)

    def ready(self, load_s: float) -> None:
        self._ask("ready", self.worker, load_s)

    @contextlib.contextmanager
    def within(self, seconds: float) -> Iterator[None]:
        """A process that is still inside after so many seconds says so and ends: nothing else stops what hangs.

        Where it hangs goes to its log. Code that never lets Python run again is ended a little later, unsaid.
        """

        def end() -> None:
            self._ask("late", self.worker, seconds)
            print(
                f"worker {self.worker} ends: this took longer than {seconds:g} s",
                file=sys.stderr,
                flush=True,
            )
            faulthandler.dump_traceback(file=2)
            os._exit(75)

        timer = threading.Timer(seconds, end)
        timer.daemon = True
        timer.start()
        faulthandler.dump_traceback_later(seconds + EXIT_GRACE_S, exit=True, file=2)
        try:
            yield
        finally:
            faulthandler.cancel_dump_traceback_later()
            timer.cancel()

    def begin(self, rows: Sequence[str]) -> tuple[list[str], dict[str, str]]:
        suspects, lost = self._ask("begin", self.worker, rows)
        return suspects, lost

    def alone(self, row: str) -> None:
        self._ask("alone", self.worker, row)

    def pardon(self, row: str) -> bool:
        return bool(self._ask("pardon", row))

    def most_tokens(self, found: int | None = None) -> int | None:
        known: int | None = self._ask("most_tokens", found)
        return known

    def end(self, done: Sequence[RunProgress], shift: BusyTime) -> None:
        self._ask("end", self.worker, done, shift, gpu_metrics())

    def leave(self) -> None:
        self._ask("leave", self.worker)

    def _ask(self, name: str, *given: Any) -> Any:
        if isinstance(self._ledger, FailureTracker):
            return getattr(self._ledger, name)(*given)
        return ray.get(getattr(self._ledger, name).remote(*given))

"""The Ray Data plan: pointers to rows -> prepared on CPU tasks -> answered by actors, on disk as they come."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import math
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray
from ray.data import ActorPoolStrategy, DataContext

from pipelines.data.rows import Row
from pipelines.inference import cluster
from pipelines.inference.benchmark_job import BenchmarkJob, RunState, answers_of
from pipelines.inference.failure_tracker import FailureTrackerClient, Progress
from pipelines.inference.job_progress import JobProgress
from pipelines.inference.job_spec import BenchmarkSpec, JobSpec, job_of
from pipelines.inference.prepared_row import PreparedRow
from pipelines.inference.preprocess import error_of, preprocessor_for, serialize_inputs
from pipelines.inference.worker import InferenceWorker

TASKS = 4000  # that read rows, at most: their number is what the driver's memory and Ray's bookkeeping grow with
BATCHES = 4  # handed to an actor at once, where there are rows enough: work for it while the next rows come
BLOCK_BYTES = 64 << 20  # of prepared rows, at most
TICK = 2.0
SILENT = 2


class Pipeline:
    """The cluster, the plan and the watch over it, for works that share a model."""

    def __init__(
        self,
        works: Sequence[BenchmarkJob],
        whole: JobProgress,
        worker: type[InferenceWorker] = InferenceWorker,
    ) -> None:
        self.works, self.whole, self.worker = works, whole, worker
        config = works[0].config
        cluster.join(config.ray_address)
        self.share = cluster.plan_resources(
            config.actors, config.gpus_per_actor, config.cpus_per_actor
        )
        self.ledger = cluster.start_failure_tracker()
        self._units = [unit for work in works for unit in work.open]
        self._wanted = 0  # answers
        self._had = {unit.run_id: dict(unit.record.rows) for unit in self._units if unit.record}
        self.job = job_of(works, self.share.threads, self.share.gpus)
        print(
            f"{self.share}; batches of at most {self.job.batch_size} rows{_tokens(self.job)}",
            flush=True,
        )

    def answer(self, todo: Sequence[pa.Table]) -> Iterator[None]:
        """Answer what of these rows is wanted, a table for each of the works; yields as it gets on."""
        self._wanted = self._wanted or sum(map(answers_of, todo))
        with Watch(self.ledger, self.whole, self._units, self._wanted, self._had):
            for _ in self._plan(todo).iter_batches(batch_size=None, batch_format="pyarrow"):
                yield

    def _plan(self, todo: Sequence[pa.Table]) -> ray.data.Dataset:
        context = DataContext.get_current()
        context.enable_progress_bars = False
        context.print_on_execution_start = False
        context.target_max_block_size = BLOCK_BYTES
        context.execution_no_progress_timeout_s = patience(self.works[0].config.batch_timeout)
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        share, batch = self.share, self.job.batch_size
        size = rows_per_task(sum(map(len, todo)), share.most, batch)
        pointers = [
            part for number, rows in enumerate(todo) for part in self._parts(number, rows, size)
        ]
        gpus = {"num_gpus": share.gpus} if share.gpus else {}
        return (
            ray.data.from_blocks(pointers)  # from_arrow would ask a task about each block first
            .map_batches(
                prepared,
                fn_kwargs={
                    "job": self.job,
                    "ledger": self.ledger,
                    "size": min(size, batch * BATCHES),
                },
                batch_size=None,
                batch_format="pyarrow",
                num_cpus=share.prepare_cpus,
            )
            .map_batches_internal(  # `map_batches` wants a number with GPUs, and would join small blocks to reach it
                self.worker,
                fn_constructor_kwargs={"job": self.job, "ledger": self.ledger},
                batch_size=None,  # a block as it comes: at most BLOCK_BYTES, and never of two sections
                batch_format="pyarrow",
                compute=ActorPoolStrategy(min_size=share.least, max_size=share.most),
                num_cpus=share.cpus,
                **gpus,
            )
        )

    def _parts(self, number: int, rows: pa.Table, size: int) -> Iterator[pa.Table]:
        """The rows of a section that have to be looked at, a task's share at a time.

        A batch is made of the same rows however often the job was interrupted, answered ones among them, so that its
        numbers are the same to the last bit. Errors alone are asked again alone: they lie too far apart.
        """
        rows = rows.append_column("section", pa.array(np.full(len(rows), number, np.int16)))
        for start in range(0, len(rows), size):
            part = rows.slice(start, size)
            if answers_of(part):
                alone = self.works[number].config.retry_errors
                yield (
                    part.filter(pc.greater(pc.list_value_length(part["wanted"]), 0))
                    if alone
                    else part
                )


def _tokens(job: JobSpec) -> str:
    return f" and {job.batch_tokens:,} tokens" if job.batch_tokens else ""


def patience(batch_timeout: float) -> int:
    """Seconds after which a job fails if nothing moves: not before a row that hangs alone has been given up."""
    return max(1800, int(8 * batch_timeout))


def rows_per_task(rows: int, actors: int, batch_size: int) -> int:
    """Few enough that all actors have work and answers come soon, many enough that the plan stays small."""
    batches = min(BATCHES, rows // (batch_size * actors * BATCHES))
    return max(batch_size * max(1, batches), math.ceil(rows / TASKS))


def prepared(pointers: pa.Table, job: JobSpec, ledger: Any, size: int) -> Iterator[pa.Table]:
    """A task: read the rows that these pointers lie at, decode their media, make the model's inputs; `size` at once."""
    for start in range(0, len(pointers), size):
        yield _prepared(pointers.slice(start, size), job, ledger)


def _prepared(pointers: pa.Table, job: JobSpec, ledger: Any) -> pa.Table:
    number = pointers["section"][0].as_py()
    section = job.sections[number]
    keys = [f"reading {number}/{row_id}" for row_id in pointers["row_id"].to_pylist()]
    desk = FailureTrackerClient(
        ledger, "prepare " + hashlib.sha256("\n".join(keys).encode()).hexdigest()[:16]
    )
    desk.arrive()
    suspects, lost = desk.begin(keys)
    with desk.within(job.batch_timeout):
        rows = section.manifest.read(pointers)
    out = []
    for key, row, wanted in zip(keys, rows, pointers["wanted"].to_pylist(), strict=True):
        if key in lost:
            out.append(
                PreparedRow(
                    number, row, tuple(wanted), error=f"{lost[key]} each time it read this row"
                )
            )
            continue
        if suspects or lost:
            desk.alone(key)
        with desk.within(job.batch_timeout):
            out.append(_ready(number, section, row, tuple(wanted)))
    desk.leave()
    return pa.Table.from_pylist([row.fields() for row in out], schema=PreparedRow.SCHEMA)


def _ready(number: int, section: BenchmarkSpec, row: Row, wanted: tuple[int, ...]) -> PreparedRow:
    prepare = preprocessor_for(section.recipe)
    try:
        prompt, inputs = prepare(row, section.manifest)
    except Exception as error:  # whatever a row does wrong is its own answer
        return PreparedRow(number, row, wanted, error=error_of(error))
    return PreparedRow(
        number, row, wanted, prompt, serialize_inputs(inputs), inputs["input_ids"].shape[1]
    )


class Watch:
    """`with Watch(...):` a thread says how far the job is: a line for people, points of the history for its record."""

    def __init__(
        self,
        ledger: Any,
        whole: JobProgress,
        units: Sequence[RunState],
        wanted: int,
        had: Mapping[str, Mapping[str, int]],
    ) -> None:
        self._ledger, self._whole, self._units, self._wanted, self._had = (
            ledger,
            whole,
            units,
            wanted,
            had,
        )
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)
        self._line = 0.0
        self._silent = 0  # looks that Ray has not answered, the latest ones

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        self._thread.join()
        if error[0] is None:
            self._look(last=True)

    def _run(self) -> None:
        while not self._stop.wait(TICK):
            self._look()

    def _look(self, last: bool = False) -> None:
        try:
            progress: Progress = ray.get(self._ledger.tell.remote(), timeout=10)
        except Exception:  # the cluster is busy or going down
            self._silent += 1
            if (
                self._silent == SILENT
            ):  # without a head, Ray ends this process after a minute, without us
                print(
                    "Ray does not answer; if its head is lost this job ends, and the same command goes on",
                    file=sys.stderr,
                )
            return
        self._silent = 0
        self._say(progress, last)
        self._note(progress, last)

    def _say(self, progress: Progress, last: bool) -> None:
        terminal = sys.stderr.isatty()
        now = time.monotonic()
        if not (last or terminal or now - self._line >= 10):
            return
        self._line = now
        done, errors = progress.answered.total(), progress.errors.total()
        seconds = progress.latest - progress.started
        rate = done / seconds if seconds > 0 else 0.0
        left = (
            f"{_clock(max(0, self._wanted - done) / rate)} left"
            if rate
            else "loading"
            if not progress.workers
            else "starting"
        )
        text = f"{done}/{self._wanted} answers  {rate:.1f}/s  {errors} errors  {len(progress.workers)} actors  {left}"
        if progress.deaths:
            text += f"  {progress.deaths} workers died"
        print(
            f"\r{text:<100}" if terminal else text,
            end="\n" if last or not terminal else "",
            file=sys.stderr,
            flush=True,
        )

    def _note(self, progress: Progress, last: bool) -> None:
        for unit in self._units:
            if unit.record is not None:
                had, name = self._had[unit.run_id], unit.run_id
                done, errors = (
                    had["done"] + progress.answered[name],
                    had["error"] + progress.errors[name],
                )
                unit.record.rows = {**unit.record.rows, "done": done, "error": errors}
                unit.record.metrics = {
                    **unit.record.metrics,
                    "load_s": progress.load_s,
                    **progress.busy(),
                }
                self._note_limit(unit, progress.most_tokens)
        values, spent = {**progress.device(), **progress.busy()}, progress.spent_s.total()
        if spent:
            values["progress.rows_per_s"] = progress.answered.total() / spent
            values["progress.visual_tokens_per_s"] = progress.visual_tokens.total() / spent
        with contextlib.suppress(OSError):  # the next look saves it, or the end of the job
            if progress.answered and self._whole.note(values, last=last):
                for unit in self._units:
                    if unit.record is not None and progress.answered[unit.run_id]:
                        unit.record.save(unit.folder)

    def _note_limit(self, unit: RunState, tokens: int | None) -> None:
        """Before there are answers: who goes on from them has to make the same batches."""
        if tokens is not None and unit.record and unit.record.metrics.get("batch_tokens") != tokens:
            unit.record.metrics = {**unit.record.metrics, "batch_tokens": tokens}
            with contextlib.suppress(OSError):
                unit.record.save(unit.folder)


def _clock(seconds: float) -> str:
    whole = int(seconds)
    return (
        f"{whole // 3600}:{whole // 60 % 60:02}:{whole % 60:02}"
        if whole >= 3600
        else f"{whole // 60}:{whole % 60:02}"
    )

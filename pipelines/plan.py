"""The Ray Data plan: pointers to rows -> prepared on CPU tasks -> answered by actors, on disk as they come."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import math
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import ray
from ray.data import ActorPoolStrategy, DataContext

from pipelines import cluster
from pipelines.answerer import Answerer, Job, Prepared, Run
from pipelines.config import EvalConfig
from pipelines.ledger import Desk, Ledger, Progress
from pipelines.manifest import Manifest
from pipelines.prepare import Recipe, error_of, packed, preparer
from pipelines.rows import Row

if TYPE_CHECKING:
    from pipelines.run import Unit

BLOCKS = 4000  # of rows, at most: their number is what the driver's memory and Ray's bookkeeping grow with
BATCHES = 4  # a block has, where there are rows enough: work for an actor while the next block comes
BLOCK_BYTES = 64 << 20
TICK = 2.0


class Pipeline:
    """The cluster, the plan and the watch over it, for one job."""

    def __init__(
        self, config: EvalConfig, manifest: Manifest, units: Sequence[Unit], worker: type[Answerer] = Answerer
    ) -> None:
        self.config, self.manifest, self.units, self.worker = config, manifest, units, worker
        cluster.join(config.ray_address)
        self.share = cluster.share(config.actors, config.gpus_per_actor, config.cpus_per_actor)
        self.ledger = Ledger.remote()
        self._wanted = 0  # answers
        self._had = {unit.point.name: dict(unit.record.rows) for unit in units if unit.record}
        print(f"{self.share}; batches of {config.batch_size} rows", flush=True)
        runs = [Run(unit.point, unit.run_id, unit.folder) for unit in units]
        self.job = job_of(config, runs, self.share.threads)

    def answer(self, todo: pa.Table) -> None:
        """Answer these rows; returns when each has been tried."""
        self._wanted = self._wanted or sum(len(wanted) for wanted in todo["wanted"].to_pylist())
        with Watch(self.ledger, self.units, self._wanted, self._had):
            for _ in self._plan(todo).iter_batches(batch_size=None, batch_format="pyarrow"):
                pass

    def _plan(self, todo: pa.Table) -> ray.data.Dataset:
        context = DataContext.get_current()
        context.enable_progress_bars = False
        context.print_on_execution_start = False
        context.target_max_block_size = BLOCK_BYTES
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        size = rows_per_block(len(todo), self.share.most, self.config.batch_size)
        share = self.share
        gpus = {"num_gpus": share.gpus} if share.gpus else {}
        return (
            ray.data.from_arrow([todo.slice(start, size) for start in range(0, len(todo), size)])
            .map_batches(
                prepared,
                fn_kwargs={"recipe": self.job.recipe, "manifest": self.manifest, "ledger": self.ledger},
                batch_size=None,
                batch_format="pyarrow",
                num_cpus=share.prepare_cpus,
            )
            .map_batches(
                self.worker,
                fn_constructor_kwargs={"job": self.job, "ledger": self.ledger},
                batch_size=size,
                batch_format="pyarrow",
                compute=ActorPoolStrategy(min_size=share.least, max_size=share.most),
                num_cpus=share.cpus,
                **gpus,
            )
        )


def job_of(config: EvalConfig, runs: Sequence[Run], threads: int | None) -> Job:
    """What the workers are told of a config."""
    return Job(
        recipe=Recipe(
            model=config.model,
            revision=config.revision,
            trust_remote_code=config.trust_remote_code,
            benchmark=config.benchmark,
            conversation=config.conversation,
            frames=config.frames,
            min_pixels=config.min_pixels,
            max_pixels=config.max_pixels,
            room=config.max_new_tokens,
        ),
        runs=tuple(runs),
        kind=config.kind,
        split=config.split,
        model_name=config.model_name,
        dtype=config.dtype,
        attn=config.attn,
        batch_size=config.batch_size,
        max_new_tokens=config.max_new_tokens,
        temperature=config.temperature,
        seed=config.seed,
        threads=threads,
    )


def rows_per_block(rows: int, actors: int, batch_size: int) -> int:
    """Few enough that all actors have work and answers come soon, many enough that the plan stays small."""
    batches = min(BATCHES, rows // (batch_size * actors * BATCHES))
    return max(batch_size * max(1, batches), math.ceil(rows / BLOCKS))


def prepared(block: pa.Table, recipe: Recipe, manifest: Manifest, ledger: Any) -> pa.Table:
    """A task: read the rows that these pointers lie at, decode their media, make the model's inputs."""
    ids = block["row_id"].to_pylist()
    desk = Desk(ledger, "prepare " + hashlib.sha256("\n".join(ids).encode()).hexdigest()[:16])
    desk.arrive()
    suspects, lost = desk.begin(ids)
    out = []
    for row, places in zip(manifest.read(block), block["wanted"].to_pylist(), strict=True):
        if row.row_id in lost:
            error = "WorkerDied: the worker died each time it read this row"
            out.append(Prepared(row, "", b"", 0, error, tuple(places)))
            continue
        if suspects or lost:
            desk.alone(row.row_id)
        out.append(_prepared(row, recipe, manifest, tuple(places)))
    desk.leave()
    return pa.Table.from_pylist([row.fields() for row in out], schema=Prepared.SCHEMA)


def _prepared(row: Row, recipe: Recipe, manifest: Manifest, wanted: tuple[int, ...]) -> Prepared:
    ready = preparer(recipe)
    try:
        prompt, inputs = ready(row, manifest)
    except Exception as error:  # whatever a row does wrong is its own answer
        return Prepared(row, "", b"", 0, error_of(error), wanted)
    return Prepared(row, prompt, packed(inputs), inputs["input_ids"].shape[1], None, wanted)


class Watch:
    """`with Watch(...):` a thread says how far the job is: a line for people, points of the history for the records."""

    def __init__(self, ledger: Any, units: Sequence[Unit], wanted: int, had: Mapping[str, Mapping[str, int]]) -> None:
        self._ledger, self._units, self._wanted, self._had = ledger, units, wanted, had
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)
        self._line = 0.0

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
        except Exception:  # the cluster is busy or going down: others will say so
            return
        self._say(progress, last)
        for unit in self._units:
            self._note(unit, progress, last)

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
        text = f"{done}/{self._wanted} answers  {rate:.1f}/s  {errors} errors  {progress.workers} actors  {left}"
        if progress.deaths:
            text += f"  {progress.deaths} workers died"
        print(
            f"\r{text:<100}" if terminal else text,
            end="\n" if last or not terminal else "",
            file=sys.stderr,
            flush=True,
        )

    def _note(self, unit: Unit, progress: Progress, last: bool) -> None:
        record, name = unit.record, unit.point.name
        if record is None:
            return
        done, errors = self._had[name]["done"], self._had[name]["error"]
        rows, spent = progress.answered[name], progress.spent_s[name]
        record.rows = {**record.rows, "done": done + rows, "error": errors + progress.errors[name]}
        record.metrics = {**record.metrics, "load_s": progress.load_s}
        values = {"rows_done": float(done + rows), "rows_error": float(record.rows["error"])}
        if spent:
            values |= {"rows_per_s": rows / spent, "visual_tokens_per_s": progress.visual_tokens[name] / spent}
        if rows and record.log(done + rows, values, force=last):
            with contextlib.suppress(OSError):  # the next look saves it, or the end of the job
                record.save(unit.folder)


def _clock(seconds: float) -> str:
    whole = int(seconds)
    return (
        f"{whole // 3600}:{whole // 60 % 60:02}:{whole % 60:02}" if whole >= 3600 else f"{whole // 60}:{whole % 60:02}"
    )

"""One job from its config to its exit status: what is left to do, who does it, and what came out."""

from __future__ import annotations

import contextlib
import hashlib
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines import answers, summary
from pipelines.benchmarks import benchmark
from pipelines.benchmarks.base import Benchmark
from pipelines.config import EvalConfig, to_yaml
from pipelines.manifest import Manifest
from pipelines.paths import model_fingerprint, resolve_paths
from pipelines.points import Point
from pipelines.record import Record, git_commit
from pipelines.rows import described
from pipelines.storage import Folder, redacted

if TYPE_CHECKING:
    from pipelines.answerer import Answerer

PASSES = 3  # over rows that were lost on the way, with workers, before the job says that it cannot answer them
CONFIG, SAMPLE = "config.yaml", "answers.table.json"


@dataclass
class Unit:
    """The run of one point: where its answers are, and how it stands."""

    point: Point
    identity: dict[str, Any]
    run_id: str
    folder: Folder
    record: Record | None  # of an earlier job; None: there was none

    def finished(self, config: EvalConfig) -> bool:
        """Does what is there answer all that is asked for?"""
        record = self.record
        if record is None or record.state != "finished" or (config.retry_errors and record.rows["error"]):
            return False
        had = record.config.get("limit")
        return had == "all" or (config.limit is not None and config.limit <= had)


def run(config: EvalConfig, worker: type[Answerer] | None = None) -> int:
    """Do the job, or what is left of it. Returns the exit status: 0, 1 failed, 2 wrong use, 130 interrupted.

    worker: another Answerer, for tests and benchmarks
    """
    try:
        with _terminable():
            return _run(resolve_paths(config), worker)
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from here", file=sys.stderr)
        return 130
    except (ValueError, FileNotFoundError, answers.Locked) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1 if isinstance(error, answers.Locked) else 2


def _run(config: EvalConfig, worker: type[Answerer] | None) -> int:
    bench = benchmark(config.benchmark)
    manifest = _manifest(config, bench)
    units = _units(config, bench, manifest)
    print(to_yaml(config))
    if all(unit.finished(config) for unit in units):
        print("Everything asked for is answered already; nothing to do.\n")
        _conclude(config, units)
        return _status(config, units)
    from pipelines.reach import reach  # torch comes with it

    known = reach(
        config.model, config.revision, config.trust_remote_code, config.frames if config.kind == "video" else 1
    )
    for unit in units:
        unit.point.build(*known)  # a wrong option, or a budget out of reach, is found before anything starts
    index = manifest.index(config.limit)
    if not len(index):
        raise ValueError(f"{redacted(manifest.data)} has no rows")
    with contextlib.ExitStack() as held:
        for unit in units:
            held.enter_context(answers.Lock(unit.folder))
        return _answer(config, bench, manifest, units, index, worker)


def _manifest(config: EvalConfig, bench: Benchmark) -> Manifest:
    if bench.kind is not None and bench.kind != config.kind:
        raise ValueError(f"{bench.name} is about {bench.kind}s; run jobs/eval_{bench.kind}.py")
    data = config.data or bench.manifest(config.split, config.limit)
    if data is None:
        raise ValueError(
            f"--benchmark {bench.name} needs --data: the folder with its files; docs/benchmarks.md says which"
        )
    return bench.rows(
        str(data),
        config.split,
        media_root=config.media_root,
        allow_outside=config.allow_outside,
        kind=config.kind,
        question=config.question,
    ).ready()


def _units(config: EvalConfig, bench: Benchmark, manifest: Manifest) -> list[Unit]:
    digest = (bench.digest(config.split) if config.data is None else None) or manifest.digest()
    fingerprint = model_fingerprint(config.model, config.revision)
    output, units = Folder.of(config.output), []
    for point in config.points:
        identity = config.identity(point, digest, fingerprint, bench.version)
        run_id = config.run_name(point, identity)
        folder = output.child(run_id)
        record = None
        with contextlib.suppress(FileNotFoundError):
            record = Record.load(folder)
        units.append(Unit(point, identity, run_id, folder, record))
    return units


def _answer(
    config: EvalConfig,
    bench: Benchmark,
    manifest: Manifest,
    units: list[Unit],
    index: pa.Table,
    worker: type[Answerer] | None,
) -> int:
    """Answer what the runs lack, and say how it went."""
    from pipelines.tracking import Tracker

    job = _job_record(config, units)
    tracker = Tracker(config.tracking_uri, config.experiment)
    output = Folder.of(config.output)
    job_folder = output.child(job.name)
    for unit in units:
        unit.record = _started(config, unit, job, manifest, len(index))
        unit.folder.write(CONFIG, to_yaml(config).encode())
        unit.record.save(unit.folder)
    job.save(job_folder)
    tracker.watch(job, job_folder)
    for unit in units:
        tracker.watch(unit.record, unit.folder)
    state, message = "failed", ""
    began = time.time()
    try:
        lost = _work(config, manifest, units, index, worker)
        state = "failed" if lost else "finished"
        message = f"{lost} answers could not be had; run the same command again" if lost else ""
    except KeyboardInterrupt:
        state, message = "killed", "interrupted; the same command goes on from here"
    except Exception as error:
        message = f"{described(error)}; what is answered is kept, and the same command goes on from there"
        if not isinstance(error, ValueError):
            traceback.print_exc()
    finally:
        ids = index["row_id"].combine_chunks()
        vanilla = next((unit for unit in units if unit.point.method == "vanilla"), None)
        baseline = _answered(vanilla, ids) if vanilla else None
        for unit in units:
            compared = None if unit is vanilla else baseline
            _ended(config, unit, ids, compared, bench, state, message, time.time() - began)
        job.rows = {key: sum(unit.record.rows[key] for unit in units) for key in job.rows}
        job.end(state, {}, message)
        job.save(job_folder)
        behind = "" if tracker.stop() else tracker.problem
        for line in filter(None, (message, behind)):
            print(line, file=sys.stderr)
    _conclude(config, units)
    if state != "finished":
        return 130 if state == "killed" else 1
    return _status(config, units)


def _work(
    config: EvalConfig, manifest: Manifest, units: list[Unit], index: pa.Table, worker: type[Answerer] | None
) -> int:
    """Run the pipeline until nothing is missing, or no pass brings anything. Returns the answers still missing."""
    todo = _missing(units, index, retry_errors=config.retry_errors)
    for attempt in range(PASSES):
        if not len(todo):
            break
        if attempt == 0:
            from pipelines.plan import Pipeline  # Ray, torch and the model come with it

            pipeline = Pipeline(config, manifest, units, **({"worker": worker} if worker else {}))
        pipeline.answer(todo)
        before, todo = todo, _missing(units, index)
        if len(todo) == len(before):
            break
    return sum(len(wanted) for wanted in todo["wanted"].to_pylist())


def _missing(units: Sequence[Unit], index: pa.Table, retry_errors: bool = False) -> pa.Table:
    """Rows that some run lacks, with the places of those runs in `wanted`."""
    lacks = np.stack(
        [
            ~np.asarray(pc.is_in(index["row_id"], value_set=answers.settle(unit.folder, retry_errors=retry_errors)))
            for unit in units
        ]
    ).T  # (rows, runs)
    offsets = np.concatenate([[0], lacks.sum(axis=1).cumsum()]).astype(np.int32)
    places = np.nonzero(lacks)[1].astype(np.int16)
    wanted = pa.ListArray.from_arrays(pa.array(offsets), pa.array(places))
    return index.append_column("wanted", wanted).filter(pa.array(lacks.any(axis=1)))


def _job_record(config: EvalConfig, units: Sequence[Unit]) -> Record:
    """The job's own record: the same for the same runs, so that a job that goes on is one parent in MLflow."""
    digest = hashlib.sha256("\n".join(unit.run_id for unit in units).encode()).hexdigest()[:8]
    name = f"job-{config.benchmark}-{digest}"
    with contextlib.suppress(FileNotFoundError):
        record = Record.load(Folder.of(config.output).child(name))
        record.resume()
        return record
    return Record(name=name, config=config.to_dict(), tags=_tags(config))


def _tags(config: EvalConfig) -> dict[str, str]:
    tags = {"model": config.model_name, "benchmark": config.benchmark, "split": config.split}
    commit = git_commit()
    return {**tags, "git_commit": commit} if commit else tags


def _started(config: EvalConfig, unit: Unit, job: Record, manifest: Manifest, rows: int) -> Record:
    record = unit.record or Record(name=unit.run_id)
    record.resume()
    options = dict(unit.point.options)
    record.parent = {"id": job.id, "name": job.name}
    record.identity = unit.identity
    record.point = {"name": unit.point.name, "method": unit.point.method, **options}
    record.config = {**config.to_dict(), "point": unit.point.name, "method": unit.point.method, **options}
    record.tags = {**_tags(config), "method": unit.point.method, "point": unit.point.name}
    if "budget" in options:
        record.tags["budget"] = str(options["budget"])
    record.dataset = {
        "name": config.benchmark,
        "digest": str(unit.identity["manifest"])[:32],
        "source": redacted(manifest.data),
    }
    record.rows = {**record.rows, "wanted": rows}
    return record


def _answered(unit: Unit, ids: pa.Array) -> pa.Table:
    table = answers.read(unit.folder, summary.COLUMNS)
    return table.filter(pc.is_in(table["row_id"], value_set=ids))


def _ended(
    config: EvalConfig,
    unit: Unit,
    ids: pa.Array,
    vanilla: pa.Table | None,
    bench: Benchmark,
    state: Any,
    message: str,
    wall_s: float,
) -> None:
    """Write down what became of a run, whatever became of the job."""
    assert unit.record is not None
    table = _answered(unit, ids)
    timings = {"wall_s": wall_s, **{key: unit.record.metrics[key] for key in ("load_s",) if key in unit.record.metrics}}
    some = answers.sample(unit.folder)
    with contextlib.suppress(Exception):  # a figure for the tables; nothing hangs on it
        from pipelines.reach import prefill_tflops

        cost = prefill_tflops(
            config.model, config.revision, config.trust_remote_code, some.filter(pc.equal(some["status"], "ok"))
        )
        timings |= {} if cost is None else {"prefill_tflops": cost}
    metrics = summary.summarise(table, vanilla, bench, timings, config.seed)
    unit.record.rows = {"wanted": len(ids), "done": len(table), "error": int(metrics["rows_error"])}
    unit.record.artifacts = [CONFIG, SAMPLE]
    unit.folder.write(SAMPLE, summary.sample(some))
    unit.record.end(state, metrics, message)
    unit.record.save(unit.folder)


def _conclude(config: EvalConfig, units: Sequence[Unit]) -> None:
    """The summary: a table, what went wrong, where things are and what to do next."""
    print(summary.table([(unit.point.name, unit.record.metrics) for unit in units if unit.record]))
    for unit in units:
        if unit.record and unit.record.rows["error"]:
            failures = summary.errors(answers.read(unit.folder, summary.COLUMNS))
            print(f"\n{unit.point.name}: rows without an answer\n{summary.error_lines(failures)}")
    print("\nanswers, one Parquet folder a method:")
    for unit in units:
        print(f"  {redacted(unit.folder.uri)}")
    from pipelines.tracking import dashboard

    print(f"compare the runs:\n  {dashboard(config.tracking_uri)}")


def _status(config: EvalConfig, units: Sequence[Unit]) -> int:
    """1 if too many rows ended in an error."""
    for unit in units:
        rows = unit.record.rows if unit.record else {"done": 0, "error": 0}
        if rows["error"] > config.max_error_rate * rows["done"]:
            print(
                f"\n{unit.point.name}: {rows['error']} of {rows['done']} rows ended in an error, more than"
                f" --max-error-rate {config.max_error_rate:g}; --retry-errors takes them again",
                file=sys.stderr,
            )
            return 1
    return 0


@contextlib.contextmanager
def _terminable() -> Iterator[None]:
    """Being told to stop is Ctrl-C: what has been answered is written down before the end."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)

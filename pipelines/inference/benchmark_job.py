"""What there is to do: the questions of one benchmark, the runs that want answers to them, and how far each run is.

A job is one or more of these; a sweep has one for each model and benchmark. What is written down about a run, from its
first moment to its end, is written here.
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
from pipelines.config.hub import refuse_unknown
from pipelines.config.method_spec import MethodSpec
from pipelines.config.paths import model_fingerprint, resolve_paths
from pipelines.data.manifest import Manifest
from pipelines.metrics import summary
from pipelines.results import answers
from pipelines.results.run_record import RunRecord, State, git_commit
from pipelines.results.storage import Folder, run_concurrently
from pipelines.text import redacted

CONFIG, SAMPLE = "config.yaml", "answers.table.json"
KEPT = (
    "load_s",
    "wall_s",
    "gpu_busy",
    "worker_busy",
    "batch_tokens",
)  # metrics that the answers do not know
PART = 1 << 16  # rows of a table that is made in parts


@dataclass(eq=False)
class RunState:
    """The run of one point: where its answers are, and how it stands."""

    point: MethodSpec
    identity: dict[str, Any]
    run_id: str
    folder: Folder
    record: RunRecord | None = None  # None: nobody has begun it

    def load(self) -> None:
        """What an earlier job left."""
        with contextlib.suppress(FileNotFoundError):
            self.record = RunRecord.load(self.folder)

    def finished(self, config: EvalConfig) -> bool:
        """Does what is there answer all that is asked for?"""
        record = self.record
        if (
            record is None
            or record.state != "finished"
            or (config.retry_errors and record.rows["error"])
        ):
            return False
        had = record.config.get("limit")
        return had == "all" or (config.limit is not None and config.limit <= had)


@dataclass
class BenchmarkJob:
    """One benchmark's questions to one model: found by `of`, written down from `begin` to `end`."""

    config: EvalConfig
    bench: Benchmark
    manifest: Manifest
    units: list[RunState]
    open: list[RunState] = field(default_factory=list)  # that lack answers; what `wanted` counts
    left_out: dict[str, str] = field(default_factory=dict)  # runs that the model cannot do, and why
    revision: str | None = None  # of the model, as it was asked for; the config has its commit

    @classmethod
    def of(cls, asked: EvalConfig) -> BenchmarkJob:
        """What a config asks for; a ValueError or FileNotFoundError if its data is not what it says."""
        config = resolve_paths(asked)
        bench = benchmark(config.benchmark)
        manifest = manifest_of(config)
        digest = (bench.digest(config.split) if config.data is None else None) or manifest.digest()
        fingerprint = _fingerprint(config.model, config.revision)
        output, units = Folder.of(config.output), []
        for point in config.points:
            identity = config.identity(point, digest, fingerprint, bench.version)
            run_id = config.run_name(point, identity)
            units.append(RunState(point, identity, run_id, output.child(run_id)))
        work = cls(config, bench, manifest, units, revision=asked.revision)
        work.look()
        return work

    @functools.cached_property
    def index(self) -> pa.Table:
        """Where each row lies that is asked for; a ValueError if two have one id."""
        return self.manifest.index(self.config.limit)

    @property
    def rows(self) -> int:
        """How many are asked for; if no run lacks answers, without reading the data."""
        if self.open or not self.units:
            return len(self.index)
        wanted = max(unit.record.rows["wanted"] for unit in self.units if unit.record)
        return wanted if self.config.limit is None else min(wanted, self.config.limit)

    def look(self) -> None:
        """Find out which runs lack answers."""
        run_concurrently(RunState.load, self.units)
        self.open = [unit for unit in self.units if not unit.finished(self.config)]

    def retry_errors(self) -> None:
        """Ask again where the answer was an error."""
        self.config = replace(self.config, retry_errors=True)
        self.open = [unit for unit in self.units if not unit.finished(self.config)]

    def leave_out(self, unit: RunState, reason: str) -> None:
        """Go on without a point that the model cannot do."""
        self.left_out[unit.run_id] = reason
        self.units.remove(unit)
        self.open.remove(unit)

    def refuse(self, *, leave_out: bool = False) -> None:
        """Find wrong options, and budgets out of the model's reach, before anything starts: a ValueError says which.

        leave_out: go on without the points that are out of reach
        """
        from pipelines.config.model_info import model_info  # torch comes with it

        config = self.config
        known = model_info(
            config.model,
            config.revision,
            config.trust_remote_code,
            config.frames if config.kind == "video" else 1,
        )
        refuse_unknown(config)  # after `reach`, which says it if there is no such model
        for unit in list(self.open):
            unit.point.build()
            try:
                known.refuse(unit.point)
            except ValueError as error:
                if not leave_out:
                    raise
                self.leave_out(unit, str(error))

    def begin(self, job: RunRecord) -> None:
        """Under the runs' locks: write down that they are worked on."""
        self.look()  # another job may have ended just before we had the locks
        for unit in self.open:
            unit.record = self._started(unit)
        config = to_yaml(self.config).encode()
        run_concurrently(lambda unit: unit.folder.write(CONFIG, config), self.open)
        known = [(unit, unit.record) for unit in self.units if unit.record]
        for _, record in known:
            record.parent = {"id": job.id, "name": job.name}  # the latest job that a run is part of
        run_concurrently(lambda each: each[1].save(each[0].folder), known)

    def missing(self, *, retry_errors: bool = False) -> pa.Table:
        """All rows, with the places of the open runs that lack an answer in `wanted`."""
        if not self.open:
            return self.index.append_column("wanted", _places(np.zeros((len(self.index), 0), bool)))
        lacks = []
        settled = run_concurrently(
            lambda unit: answers.compact(unit.folder, retry_errors=retry_errors), self.open
        )
        for unit, answered in zip(self.open, settled, strict=True):
            lacks.append(~np.asarray(pc.is_in(self.index["row_id"], value_set=answered)))
            if unit.record:  # an earlier job may have written it before its last answers
                errors = 0 if retry_errors else unit.record.rows["error"]
                unit.record.rows = {
                    **unit.record.rows,
                    "done": int((~lacks[-1]).sum()),
                    "error": errors,
                }
        return self.index.append_column("wanted", _places(np.stack(lacks).T))

    def end(self, state: State, message: str, wall_s: float) -> None:
        """Write down what became of the runs, whatever became of the job; the first thing that fails is raised last."""
        failed: Exception | None = None
        vanilla = next(
            (unit for unit in self.units if unit.point.method == "vanilla" and unit.record), None
        )
        baseline = self._answered(vanilla) if vanilla else None
        for unit in self.units:
            try:
                if unit in self.open:
                    self._ended(unit, baseline, state, message, wall_s)
                elif vanilla in self.open and unit.record:  # what it is compared with has changed
                    self._ended(unit, baseline, unit.record.state, unit.record.message, None)
            except Exception as error:
                failed = failed or error
        if failed is not None:
            raise failed

    def _started(self, unit: RunState) -> RunRecord:
        config, options = self.config, dict(unit.point.options)
        record = unit.record or RunRecord(name=unit.run_id)
        record.resume()
        record.identity = unit.identity
        record.point = {"name": unit.point.name, "method": unit.point.method, **options}
        asked, own = config.to_dict(), {"method": unit.point.method}
        for (
            name,
            value,
        ) in options.items():  # a schedule is the point's; a seed of its own hides not the job's
            own[f"{unit.point.method}.{name}" if name in asked and name != "schedule" else name] = (
                value
            )
        record.config = asked | own
        record.tags = {**tags(config), "method": unit.point.method, "point": unit.point.name}
        if "budget" in options:
            record.tags["budget"] = str(options["budget"])
        record.dataset = {
            "name": config.benchmark,
            "digest": str(unit.identity["manifest"])[:32],
            "source": redacted(self.manifest.data),
        }
        record.rows = {**record.rows, "wanted": len(self.index)}
        return record

    def _ended(
        self,
        unit: RunState,
        baseline: pa.Table | None,
        state: State,
        message: str,
        wall_s: float | None,
    ) -> None:
        record, config = unit.record, self.config
        assert record is not None
        vanilla = unit.point.method == "vanilla"
        table = baseline if vanilla and baseline is not None else self._answered(unit)
        timings = {name: record.metrics[name] for name in KEPT if name in record.metrics}
        if wall_s is not None:
            timings["wall_s"] = (
                timings.get("wall_s", 0.0) + wall_s
            )  # of the job, however often it was interrupted
        some = answers.sample(unit.folder)
        with contextlib.suppress(Exception):  # a figure for the tables; nothing hangs on it
            from pipelines.config.model_info import prefill_tflops

            good = some.filter(pc.equal(some["status"], "ok"))
            cost = prefill_tflops(config.model, config.revision, config.trust_remote_code, good)
            timings |= {} if cost is None else {"prefill_tflops": cost}
        metrics = summary.summarise(
            table, None if vanilla else baseline, self.bench, timings, config.seed
        )
        wanted = len(self.index) if unit in self.open else record.rows["wanted"]
        record.rows = {"wanted": wanted, "done": len(table), "error": int(metrics["rows_error"])}
        record.artifacts = [CONFIG, SAMPLE]
        unit.folder.write(SAMPLE, summary.sample(some))
        if unit in self.open and len(table) == wanted:
            state, message = (
                "finished",
                too_many_errors(record, config),
            )  # whatever became of others
        record.end(state, metrics, message)
        record.save(unit.folder)

    def _answered(self, unit: RunState) -> pa.Table:
        """The answers to what was asked: a run may have more of an earlier job with a larger limit."""
        table = answers.read(unit.folder, summary.COLUMNS)
        if unit not in self.open:
            return table
        return table.filter(
            pc.is_in(table["row_id"], value_set=self.index["row_id"].combine_chunks())
        )


@functools.cache
def _fingerprint(model: str, revision: str | None) -> str:
    return model_fingerprint(model, revision)


def manifest_of(config: EvalConfig) -> Manifest:
    """Where the rows lie that a config asks about."""
    bench = benchmark(config.benchmark)
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


def _places(lacks: NDArray[np.bool_]) -> pa.ChunkedArray:
    """For each row (rows, runs) the places of the runs that lack it, a part at a time: indices are large."""
    parts = []
    for start in range(0, max(1, len(lacks)), PART):
        part = lacks[start : start + PART]
        offsets = np.concatenate([[0], part.sum(axis=1).cumsum()]).astype(np.int32)
        parts.append(
            pa.ListArray.from_arrays(
                pa.array(offsets), pa.array(np.nonzero(part)[1].astype(np.int16))
            )
        )
    return pa.chunked_array(parts)


def answers_of(todo: pa.Table) -> int:
    """How many answers rows need, as `Work.missing` has them."""
    return int(pc.sum(pc.list_value_length(todo["wanted"])).as_py() or 0)


def tags(config: EvalConfig) -> dict[str, str]:
    found = {"model": config.model_name, "benchmark": config.benchmark, "split": config.split}
    commit = git_commit()
    return {**found, "git_commit": commit} if commit else found


def too_many_errors(record: RunRecord, config: EvalConfig) -> str:
    """How many rows of a run ended in an error, if they are more than it may have; else nothing."""
    done, errors = record.rows["done"], record.rows["error"]
    if errors <= config.max_error_rate * done:
        return ""
    return f"{errors} of {done} rows ended in an error, more than --max-error-rate {config.max_error_rate:g}"


def records(works: Sequence[BenchmarkJob]) -> list[tuple[BenchmarkJob, RunState, RunRecord]]:
    """All runs of which there is a record."""
    return [(work, unit, unit.record) for work in works for unit in work.units if unit.record]

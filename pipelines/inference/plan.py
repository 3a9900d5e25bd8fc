"""The Ray Data plan: pointers to rows -> prepared rows on CPU tasks -> answers by GPU actors.

The columns between the stages:

    pointers   INDEX (`data.row_index`), missing_runs, benchmark_index
    prepared   PreparedRow.SCHEMA: the row, its prompt, the model's inputs as bytes, or an error
    answers    ANSWER_SCHEMA, written to Parquet by the actors; only row counts come back
"""

import hashlib
import logging
import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray
from ray.data import ActorPoolStrategy, DataContext

from pipelines.config.model_version import work_offline
from pipelines.data.row_index import group_by_media, split_between_media
from pipelines.data.rows import Row
from pipelines.inference import cluster
from pipelines.inference.benchmark_job import BenchmarkJob, count_missing
from pipelines.inference.encoded_prompt import prompt_encoder
from pipelines.inference.failure_tracker import FailureTrackerClient
from pipelines.inference.job_progress import JobProgress, ProgressMonitor
from pipelines.inference.job_spec import BenchmarkSpec, JobSpec, job_spec
from pipelines.inference.prepared_row import PreparedRow
from pipelines.inference.preprocess import row_error
from pipelines.inference.worker import InferenceWorker

MAX_TASKS = 4000  # that read rows: the driver's memory and Ray's bookkeeping grow with them
# Batches in a task's block, where there are rows enough: work for an actor while the next block
# is prepared.
BATCHES_PER_BLOCK = 4
MAX_BLOCK_BYTES = 64 << 20  # of prepared rows
MIN_STALL_S = 1800


class Pipeline:
    """The cluster, the plan and its monitor, for benchmark jobs that share a model."""

    def __init__(
        self,
        jobs: Sequence[BenchmarkJob],
        progress: JobProgress,
        worker: type[InferenceWorker] = InferenceWorker,
    ) -> None:
        self.jobs, self.worker = jobs, worker
        config = jobs[0].config
        cluster.join(config.ray_address)
        self.share = cluster.plan_resources(
            config.actors, config.gpus_per_actor, config.cpus_per_actor
        )
        self.tracker = cluster.start_failure_tracker()
        open_runs = [run for job in jobs for run in job.open_runs]
        self.monitor = ProgressMonitor(self.tracker, progress, open_runs)
        self.spec = job_spec(jobs, self.share.threads, self.share.gpus)
        tokens = f" and {self.spec.batch_tokens:,} tokens" if self.spec.batch_tokens else ""
        print(f"{self.share}; batches of at most {self.spec.batch_size} rows{tokens}", flush=True)

    def answer(self, missing: Sequence[pa.Table]) -> Iterator[None]:
        """Answer what is missing, one table for each benchmark job; yields as blocks finish."""
        self.monitor.wanted = self.monitor.wanted or sum(map(count_missing, missing))
        with self.monitor:
            for _ in self._plan(missing).iter_batches(batch_size=None, batch_format="pyarrow"):
                yield

    def _plan(self, missing: Sequence[pa.Table]) -> ray.data.Dataset:
        context = DataContext.get_current()
        context.enable_progress_bars = False
        context.print_on_execution_start = False
        context.target_max_block_size = MAX_BLOCK_BYTES
        context.execution_no_progress_timeout_s = stall_timeout_s(self.spec.config.batch_timeout)
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        share, batch_size = self.share, self.spec.batch_size
        task_rows = rows_per_task(sum(map(len, missing)), share.max_actors, batch_size)
        pointers = [
            block
            for benchmark, table in enumerate(missing)
            for block in self._pointer_blocks(benchmark, table, task_rows)
        ]
        block_rows = min(task_rows, batch_size * BATCHES_PER_BLOCK)
        # An actor without a block would load the model for nothing, and Ray would warn about it.
        # More may start if blocks exceed MAX_BLOCK_BYTES and are split.
        blocks = sum(math.ceil(len(block) / block_rows) for block in pointers)
        min_actors = min(share.min_actors, blocks)
        plan: ray.data.Dataset = (
            ray.data.from_blocks(pointers)  # from_arrow would start a task for each block first
            .map_batches(
                prepare_rows,
                fn_kwargs={"job": self.spec, "tracker": self.tracker, "block_rows": block_rows},
                batch_size=None,
                batch_format="pyarrow",
                num_cpus=share.prepare_cpus,
            )
            # Not `map_batches`: with GPUs it insists on a batch size, and joins small blocks to
            # reach it. Our blocks are to arrive as they are, never with rows of two benchmarks.
            .map_batches_internal(
                self.worker,
                fn_constructor_kwargs={"job": self.spec, "tracker": self.tracker},
                batch_size=None,
                batch_format="pyarrow",
                compute=ActorPoolStrategy(min_size=min_actors, max_size=share.max_actors),
                num_cpus=share.cpus,
                **({"num_gpus": share.gpus} if share.gpus else {}),
            )
        )
        return plan

    def _pointer_blocks(
        self, benchmark: int, pointers: pa.Table, task_rows: int
    ) -> Iterator[pa.Table]:
        """The rows of one benchmark that have to be read, in blocks of one task each.

        Questions about a picture are in one block, so that it is read and encoded once for them.
        A block keeps its answered rows, so that batches are made of the same rows however often
        the job was interrupted, and its numbers are the same to the last bit. Rows that are
        retried after errors lie too far apart for that: they go alone.
        """
        column = pa.array(np.full(len(pointers), benchmark, np.int16))
        pointers = pointers.append_column("benchmark_index", column)
        only_missing = self.jobs[benchmark].config.retry_errors
        for block in split_between_media(group_by_media(pointers), task_rows):
            if count_missing(block):
                lacks = pc.greater(pc.list_value_length(block["missing_runs"]), 0)
                yield block.filter(lacks) if only_missing else block


def stall_timeout_s(batch_timeout: float) -> int:
    """Seconds without progress after which the job fails: longer than it takes to give up a row
    that hangs when it is alone."""
    return max(MIN_STALL_S, int(8 * batch_timeout))


def rows_per_task(rows: int, actors: int, batch_size: int) -> int:
    """Few enough that all actors have work and answers come soon, many enough that the plan
    stays small."""
    batches = min(BATCHES_PER_BLOCK, rows // (batch_size * actors * BATCHES_PER_BLOCK))
    return max(batch_size * max(1, batches), math.ceil(rows / MAX_TASKS))


def prepare_rows(
    pointers: pa.Table, job: JobSpec, tracker: Any, block_rows: int
) -> Iterator[pa.Table]:
    """A CPU task: read rows, decode their media and make the model's inputs, block by block."""
    if job.offline:
        work_offline()
    for block in split_between_media(pointers, block_rows):
        yield from _tables(_prepare_block(block, job, tracker))


def _tables(rows: Sequence[PreparedRow]) -> Iterator[pa.Table]:
    """The rows in tables that Ray neither cuts nor, joined with the next one, has to cut.

    It would cut a table above 1.5 x MAX_BLOCK_BYTES, and each piece would carry all of its media.
    """
    part: list[PreparedRow] = []
    media: set[bytes] = set()
    size = 0
    for row in rows:
        more = len(row.inputs) + (0 if row.media in media else len(row.media))
        if part and size + more > MAX_BLOCK_BYTES // 2:
            yield PreparedRow.to_table(part)
            part, media, size, more = [], set(), 0, len(row.inputs) + len(row.media)
        part.append(row)
        media.add(row.media)
        size += more
    if part:
        yield PreparedRow.to_table(part)


def _prepare_block(pointers: pa.Table, job: JobSpec, tracker: Any) -> list[PreparedRow]:
    benchmark = pointers["benchmark_index"][0].as_py()
    spec = job.benchmarks[benchmark]
    keys = [f"reading {benchmark}/{row_id}" for row_id in pointers["row_id"].to_pylist()]
    # a task that Ray retries has the same name, so its death is noticed
    digest = hashlib.sha256("\n".join(keys).encode()).hexdigest()[:16]
    client = FailureTrackerClient(tracker, f"prepare {digest}")
    client.register()
    suspects, given_up = client.begin_batch(keys)
    timeout = job.config.batch_timeout
    with client.time_limit(timeout):
        rows = spec.manifest.read(pointers)
    prompt_encoder(spec.config).forget()  # a file may have changed since the last block
    prepared = []
    missing_runs = map(tuple, pointers["missing_runs"].to_pylist())
    for key, row, missing in zip(keys, rows, missing_runs, strict=True):
        if key in given_up:
            error = f"{given_up[key]} each time it read this row"
            prepared.append(PreparedRow(benchmark, row, missing, error=error))
            continue
        if suspects or given_up:
            client.begin_alone(key)
        with client.time_limit(timeout):
            prepared.append(_prepare_row(benchmark, spec, row, missing))
    client.unregister()
    return prepared


def _prepare_row(
    benchmark: int, spec: BenchmarkSpec, row: Row, missing: tuple[int, ...]
) -> PreparedRow:
    encode = prompt_encoder(spec.config)
    try:
        prompt = encode(row, spec.manifest)
    except Exception as error:  # any failure of a row is that row's error
        return PreparedRow(benchmark, row, missing, error=row_error(error))
    return PreparedRow.of(benchmark, row, missing, prompt)

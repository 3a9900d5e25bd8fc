"""The actor: answers blocks of prepared rows under every method of the job.

The parts: an engine that answers (`engines/`), a guard against rows that kill it (`row_guard.py`),
a loader that moves data (`batch_loader.py`) and buffers that write answers (`answer_buffer.py`).
"""

import time
from typing import Any, ClassVar

import pyarrow as pa
import ray
import torch

from pipelines.config.model_version import work_offline
from pipelines.inference.answer_buffer import MAX_UNSAVED_S, AnswerBuffer
from pipelines.inference.batch_loader import BatchLoader
from pipelines.inference.batching import split_into_batches
from pipelines.inference.engines.device_utilization import DeviceUtilization
from pipelines.inference.engines.transformers import TransformersEngine
from pipelines.inference.failure_tracker import FailureTrackerClient
from pipelines.inference.job_spec import BenchmarkSpec, JobSpec
from pipelines.inference.prepared_row import PreparedRow
from pipelines.inference.row_guard import RowGuard
from pipelines.results.run_record import RECORD_FILE
from pipelines.results.storage import run_concurrently
from pipelines.text import redacted

OUTPUT_CHECKS = 5  # within ten seconds: shared file systems show new files late


class InferenceWorker:
    """A callable class for Ray Data's `map_batches`: prepared rows in, row counts out.

    Answers go to disk on the way. Another engine is chosen by a subclass.
    """

    engine_class: ClassVar[type[TransformersEngine]] = TransformersEngine

    def __init__(self, job: JobSpec, tracker: Any) -> None:
        began = time.monotonic()
        if job.offline:
            work_offline()
        self.job = job
        in_ray = ray.is_initialized()
        worker_id = (in_ray and ray.get_runtime_context().get_actor_id()) or "alone"
        check_output_visible(job)
        self.tracker = FailureTrackerClient(tracker, worker_id)
        was_restarted = self.tracker.register()
        owns_gpu = torch.cuda.is_available() and (not in_ray or ray.get_gpu_ids())
        self.engine = self.engine_class(job, torch.device("cuda" if owns_gpu else "cpu"))
        # Without prefetch after a death: the next one is then caused by the rows being answered,
        # not by those being collated beside them.
        self.loader = BatchLoader(self.engine.start_transfer, prefetch=not was_restarted)
        self.guard = RowGuard(self.tracker, self.engine, self.loader, job.config.batch_timeout)
        self.engine.load()
        self.batch_tokens = self._agree_on_batch_tokens()
        self.engine.utilization = DeviceUtilization(self.engine.device)  # so far it was no work
        self.tracker.ready(time.monotonic() - began)

    def _agree_on_batch_tokens(self) -> int | None:
        """The limit from the job or another worker, else measured here and shared with all."""
        tokens = self.job.batch_tokens or self.tracker.batch_tokens()
        tokens = tokens or self.engine.measure_batch_tokens()
        return None if tokens is None else self.tracker.batch_tokens(tokens)

    def __call__(self, block: pa.Table) -> pa.Table:
        """Answer the rows that each run still lacks."""
        rows = PreparedRow.from_table(block)
        if rows:  # all of one benchmark: a task never mixes them
            self._answer_benchmark(self.job.benchmarks[rows[0].benchmark_index], rows)
        return pa.table({"rows": [len(rows)]})

    def _answer_benchmark(self, spec: BenchmarkSpec, rows: list[PreparedRow]) -> None:
        buffers = self._buffers(spec, rows)
        readable = []
        for row in rows:
            if row.error is None:
                readable.append(row)
                continue
            for buffer in buffers:
                buffer.fail(row, row.error)
        batches = split_into_batches(
            readable,
            self.job.batch_size,
            self.batch_tokens,
            spec.config.max_new_tokens,
            share=self.engine.shares_prefixes,
        )
        # If any row of a batch is missing, recompute the whole batch: results depend on batch
        # composition.
        incomplete = [
            batch for batch in batches if any(b.lacks(row) for row in batch for b in buffers)
        ]
        slowest_s = 0.0  # of a batch under one method
        for batch, inputs in self.loader.load_each(incomplete):
            for part, is_suspect in self.guard.safe_parts(batch, buffers):
                if inputs is None or len(part) != len(batch):
                    part_inputs = self.loader.try_load(part)
                else:
                    part_inputs = inputs
                lacking = [buffer for buffer in buffers if any(map(buffer.lacks, part))]
                self.engine.share_towers = len(lacking) > 1
                for buffer in lacking:
                    began = time.monotonic()
                    self.guard.answer(buffer, part, part_inputs)
                    slowest_s = max(slowest_s, time.monotonic() - began)
                    for pending in buffers:
                        # answers that precede a row that kills the worker must not be lost with it
                        pending.flush_if_due(MAX_UNSAVED_S if is_suspect else slowest_s)
                self.engine.forget_media()
                self._report(buffers)
        run_concurrently(AnswerBuffer.flush, buffers)
        self._report(buffers)

    def _buffers(self, spec: BenchmarkSpec, rows: list[PreparedRow]) -> list[AnswerBuffer]:
        def buffer(run_index: int) -> AnswerBuffer:
            method = self.engine.methods[spec.runs[run_index].method]
            return AnswerBuffer(spec, run_index, method, rows, self.tracker.worker)

        return run_concurrently(buffer, range(len(spec.runs)))

    def _report(self, buffers: list[AnswerBuffer]) -> None:
        progress = [buffer.drain_progress() for buffer in buffers]
        self.tracker.report_progress(progress, self.engine.utilization.drain())


def check_output_visible(job: JobSpec) -> None:
    """Raise FileNotFoundError if this machine does not see the output folder.

    Answers on a disk of this machine alone would never be found. A shared file system may be late,
    and a store that does not answer now proves nothing: writing will.
    """
    run = next(run for spec in job.benchmarks for run in spec.runs)
    for check in range(OUTPUT_CHECKS):
        time.sleep(check)
        try:
            if run.folder.exists(RECORD_FILE):
                return
        except OSError:
            return
    raise FileNotFoundError(
        f"a worker's machine does not see {redacted(run.folder.uri)}, where answers go; --output"
        " must be a folder that all machines share, or s3:// or gs://"
    )

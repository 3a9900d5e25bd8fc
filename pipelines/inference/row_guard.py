"""Keeps one row's failure from costing other rows.

A batch that fails, or does not fit into memory, is halved until the row that fails is alone and
becomes an error row. What no `except` can catch, a worker that dies, is found with the failure
tracker: rows of its batch are answered alone, or given up.
"""

import gc
import os
import sys
import time
from collections.abc import Iterator

import torch

from apet.decoding.cuda_graphs import CaptureError
from pipelines.inference.answer_buffer import AnswerBuffer
from pipelines.inference.batch_loader import BatchLoader
from pipelines.inference.engines.device_transfer import Inputs
from pipelines.inference.engines.transformers import TransformersEngine
from pipelines.inference.failure_tracker import FailureTrackerClient
from pipelines.inference.prepared_row import PreparedRow
from pipelines.text import describe_error

EXIT_DEVICE_BROKEN = 70


def is_out_of_memory(error: Exception) -> bool:
    """Whether a batch did not fit: also into the workspace of a library, which says so itself."""
    return isinstance(error, torch.OutOfMemoryError) or "_STATUS_ALLOC_FAILED" in str(error)


class RowGuard:
    """Answers batches through the engine, and isolates the rows that break it."""

    def __init__(
        self,
        tracker: FailureTrackerClient,
        engine: TransformersEngine,
        loader: BatchLoader,
        batch_timeout_s: float,
    ) -> None:
        self.tracker, self.engine, self.loader = tracker, engine, loader
        self.batch_timeout_s = batch_timeout_s

    def safe_parts(
        self, batch: list[PreparedRow], buffers: list[AnswerBuffer]
    ) -> Iterator[tuple[list[PreparedRow], bool]]:
        """Yield (rows to answer together, whether it is a suspect row alone).

        Usually that is the whole batch, once the tracker knows of it. Rows that a worker died with
        come one by one, or not at all.
        """
        suspects, given_up = self.tracker.begin_batch([row.key for row in batch])
        if not suspects and not given_up:
            yield batch, False
            return
        for row in batch:
            if row.key in given_up and self._give_up(row, buffers, given_up[row.key]):
                suspects.append(row.key)
        harmless = [row for row in batch if row.key not in {*suspects, *given_up}]
        if harmless:
            self.tracker.begin_batch([row.key for row in harmless])
            yield harmless, False
        for row in batch:
            if row.key in suspects:
                self.tracker.begin_alone(row.key)
                yield [row], True

    def _give_up(self, row: PreparedRow, buffers: list[AnswerBuffer], reason: str) -> bool:
        """Write an error for a row that killed its worker. True if other methods may try it.

        Methods run in order, so the first that lacks the row is the one it died of.
        """
        lacking = [buffer for buffer in buffers if buffer.lacks(row)]
        forgiven = bool(lacking) and self.tracker.forgive(row.key)
        for buffer in lacking[:1] if forgiven else lacking:
            buffer.fail(row, f"{reason} each time it answered this row alone")
            buffer.flush()
        return forgiven and len(lacking) > 1

    def answer(self, buffer: AnswerBuffer, rows: list[PreparedRow], inputs: Inputs | None) -> None:
        """Answer `rows` for one run, in smaller parts if necessary."""
        began, retry_whole = time.monotonic(), False
        try:
            with self.tracker.time_limit(self.batch_timeout_s):
                inputs = inputs or self.loader.load(rows)
                answers = self.engine.answer(buffer.spec.config, buffer.method, rows, inputs)
        except Exception as error:
            failure = error
            if is_out_of_memory(error):
                retry_whole = self.engine.release_graphs()  # that may have been enough
            else:
                self._exit_if_device_is_broken(error)
        else:
            buffer.add(rows, answers, time.monotonic() - began)
            return
        if len(rows) == 1 and not retry_whole:
            buffer.fail(rows[0], describe_error(failure))
            return
        del failure  # its traceback holds the batch's tensors
        inputs = None
        self.engine.forget_media()
        gc.collect()
        if self.engine.device.type == "cuda":
            torch.cuda.empty_cache()
        part_size = len(rows) if retry_whole else (len(rows) + 1) // 2
        rows = [row for row in rows if buffer.lacks(row)]
        for start in range(0, len(rows), part_size):
            self.answer(buffer, rows[start : start + part_size], None)

    def _exit_if_device_is_broken(self, error: Exception) -> None:
        """After a CUDA error this process cannot use the device any more. Ray starts another."""
        accelerator_error = getattr(torch, "AcceleratorError", CaptureError)
        if "CUDA error" in str(error) or isinstance(error, CaptureError | accelerator_error):
            print(
                f"worker {self.tracker.worker} ends: {describe_error(error)}",
                file=sys.stderr,
                flush=True,
            )
            os._exit(EXIT_DEVICE_BROKEN)

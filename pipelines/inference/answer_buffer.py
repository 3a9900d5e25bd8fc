"""Answers of one run to one block of rows, scored and on their way to disk."""

import time
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from apet.methods.base import Method
from pipelines.benchmarks import benchmark
from pipelines.data.answer_row import answer_row
from pipelines.inference.job_spec import BenchmarkSpec
from pipelines.inference.prepared_row import PreparedRow
from pipelines.inference.progress import RunProgress
from pipelines.results.answers import AnswerParts
from pipelines.text import describe_error

MAX_UNSAVED_S = 15.0  # after which answers are written although the block is not finished


class AnswerBuffer:
    """Collects the answers of one run to one block of rows, and writes them as Parquet parts."""

    def __init__(
        self,
        spec: BenchmarkSpec,
        run_index: int,
        method: Method,
        rows: Sequence[PreparedRow],
        worker: str,
    ) -> None:
        self.spec, self.run_index, self.method, self.worker = spec, run_index, method, worker
        self.run = spec.runs[run_index]
        self.benchmark = benchmark(spec.config.benchmark)
        self.block = AnswerParts(self.run.folder, [row.row_id for row in rows])
        self.answered = self.block.answered()  # by an earlier worker, which died
        self._unsaved: list[dict[str, Any]] = []
        self._oldest_at = 0.0
        self._progress = RunProgress(self.run.run_id)

    def lacks(self, row: PreparedRow) -> bool:
        return self.run_index in row.missing_runs and row.row_id not in self.answered

    def add(
        self, rows: Sequence[PreparedRow], answers: Sequence[dict[str, Any]], seconds: float
    ) -> None:
        """Score and keep a batch's answers, except to rows that were answered before.

        seconds: that the batch took
        """
        self._progress.spent_s += seconds
        for row, answer in zip(rows, answers, strict=True):
            if not self.lacks(row):
                continue
            try:
                score, correct = self.benchmark.score(row.row, answer["prediction"])
            except Exception as error:  # keep the answer: the rule or the reference is at fault
                self._append(row, **answer, status="error", error=describe_error(error))
                continue
            self._append(row, **answer, score=score, correct=correct, status="ok")

    def fail(self, row: PreparedRow, error: str) -> None:
        if self.lacks(row):
            self._append(row, status="error", error=error)

    def _append(self, row: PreparedRow, **produced: Any) -> None:
        if not self._unsaved:
            self._oldest_at = time.monotonic()
        self.answered.add(row.row_id)
        config = self.spec.config
        self._unsaved.append(
            answer_row(
                row.row,
                benchmark=config.benchmark,
                split=config.split,
                prompt=row.prompt,
                model=config.model_name,
                method=self.method.name,
                answered_at=datetime.now(UTC),
                actor=self.worker,
                point=self.run.method.name,
                run_id=self.run.run_id,
                **produced,
            )
        )

    def flush(self) -> None:
        """Write everything that is not on disk yet."""
        self.block.write(self._unsaved)
        progress = self._progress
        # Counted only now: answers that a worker dies with are made, and counted, again.
        progress.rows += len(self._unsaved)
        progress.errors += sum(answer["status"] == "error" for answer in self._unsaved)
        progress.visual_tokens += sum(
            answer.get("visual_tokens_in") or 0 for answer in self._unsaved
        )
        self._unsaved = []

    def flush_if_due(self, next_batch_s: float) -> None:
        """Write if the oldest answer would wait too long for a batch of `next_batch_s` seconds."""
        waited = time.monotonic() - self._oldest_at
        if self._unsaved and waited + next_batch_s >= MAX_UNSAVED_S:
            self.flush()

    def drain_progress(self) -> RunProgress:
        """The progress since the last call."""
        progress, self._progress = self._progress, RunProgress(self.run.run_id)
        return progress

"""The answers of one run to one block of rows, on their way to the disk."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from apet.methods.base import Method
from pipelines.benchmarks import benchmark
from pipelines.inference.failure_tracker import RunProgress
from pipelines.inference.job_spec import BenchmarkSpec, RunSpec
from pipelines.inference.prepared_row import PreparedRow
from pipelines.results.answers import Block
from pipelines.text import describe_error

FLUSH = 15.0  # seconds after which answers go to disk though the block is not done


@dataclass(frozen=True)
class Writer:
    """Who answers, as the answers say it."""

    name: str
    model: str


class AnswerBuffer:
    """The answers of one run to one block."""

    def __init__(
        self,
        writer: Writer,
        section: BenchmarkSpec,
        place: int,
        method: Method,
        rows: Sequence[PreparedRow],
    ) -> None:
        self.writer, self.section, self.place, self.method = writer, section, place, method
        self.run: RunSpec = section.runs[place]
        self.benchmark = benchmark(section.recipe.benchmark)
        self.block = Block(self.run.folder, [row.row_id for row in rows])
        self.done = self.block.answered()
        self._rows: list[dict[str, Any]] = []
        self._since = 0.0  # when the oldest of them came
        self._done = RunProgress(self.run.run_id)

    def lacks(self, row: PreparedRow) -> bool:
        return self.place in row.wanted and row.row_id not in self.done

    def add(
        self, rows: Sequence[PreparedRow], answers: Sequence[dict[str, Any]], seconds: float
    ) -> None:
        """What a batch has brought in so many seconds; of rows that were answered before, nothing."""
        self._done.spent_s += seconds
        for row, answer in zip(rows, answers, strict=True):
            if not self.lacks(row):
                continue
            try:
                score, correct = self.benchmark.score(row.row, answer["prediction"])
            except (
                Exception
            ) as error:  # the answer is kept; what is wrong is the rule, or the row's reference
                self._put(row, {**answer, "status": "error", "error": describe_error(error)})
                continue
            self._put(row, {**answer, "score": score, "correct": correct, "status": "ok"})

    def fail(self, row: PreparedRow, error: str) -> None:
        if self.lacks(row):
            self._put(row, {"status": "error", "error": error})

    def _put(self, row: PreparedRow, answer: dict[str, Any]) -> None:
        section, writer = self.section, self.writer
        if not self._rows:
            self._since = time.monotonic()
        self.done.add(row.row_id)
        self._rows.append(
            {
                "row_id": row.row_id,
                "benchmark": section.recipe.benchmark,
                "split": section.split,
                "type": row.row.type,
                "media": [medium.name for medium in row.row.media],
                "question": row.row.question,
                "prompt": row.prompt,
                "reference": row.row.answers,
                "options": row.row.options,
                "meta": list(row.row.meta.items()),
                "model": writer.model,
                "method": self.method.name,
                "answered_at": datetime.now(UTC),
                "actor": writer.name,
                "point": self.run.point.name,
                "run_id": self.run.run_id,
                **answer,
            }
        )

    def flush(self, within: float | None = None) -> None:
        """Write what there is; with `within` only if that time would make it wait too long."""
        if within is not None and (
            not self._rows or time.monotonic() + within - self._since < FLUSH
        ):
            return
        self.block.write(self._rows)
        self._done.rows += len(
            self._rows
        )  # not before: what a worker dies with is answered, and counted, again
        self._done.errors += sum(row["status"] == "error" for row in self._rows)
        self._done.visual_tokens += sum(row.get("visual_tokens_in") or 0 for row in self._rows)
        self._rows = []

    def told(self) -> RunProgress:
        """What was done since it was last told."""
        done, self._done = self._done, RunProgress(self.run.run_id)
        return done

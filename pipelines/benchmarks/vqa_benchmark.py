"""What the benchmarks of VQA accuracy share: ten people's answers, and one score (`pipelines.benchmarks.vqa`)."""

from __future__ import annotations

from typing import Any

from pipelines.benchmarks.base import Benchmark, Score
from pipelines.benchmarks.joined_manifest import SHORT
from pipelines.benchmarks.vqa import accuracy
from pipelines.data.rows import Row
from pipelines.metrics.answer_metrics import AnswerArrays, Metric, mean_over


class Annotated(Benchmark):
    """Scores are shares of agreement, 0 to 1 in steps of 0.1; `correct` where enough people agree. By answer type."""

    version = "1"
    kind = "image"
    rule = "VQA accuracy; answers and references normalised as LLaVA's scripts do"

    def prompt(self, row: Row) -> str:
        return row.question + SHORT

    def score(self, row: Row, prediction: str) -> Score:
        if not row.answers:
            return Score(None, None)  # a test split: a server has the answers
        worth = accuracy(prediction, row.answers)
        return Score(worth, worth == 1.0)

    def figures(self, sheet: AnswerArrays) -> dict[str, Metric]:
        return {
            "accuracy": mean_over(sheet.worth, sheet.scored),
            **sheet.by("question_type", sheet.meta("question_type")),
        }


def people(answers: Any) -> list[str]:
    """The answers of ten people, as texts or as {answer, answer_confidence}."""
    return [str(each["answer"]) if isinstance(each, dict) else str(each) for each in answers or []]

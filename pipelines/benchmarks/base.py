"""What a benchmark is: rows, the prompt that asks one, and the rule that scores an answer."""

from __future__ import annotations

import re
import string
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import pyarrow as pa

from pipelines.data.manifest import Manifest
from pipelines.data.rows import Kind, Row
from pipelines.metrics.answer_metrics import AnswerArrays, Metric, mean_over


class Score(NamedTuple):
    score: float | None  # None: the metric is not per row, or there is nothing to compare with
    correct: bool | None

    @classmethod
    def of(cls, correct: bool) -> Score:
        """All or nothing."""
        return cls(float(correct), correct)


class Benchmark(ABC):
    """One benchmark. `version` changes with its rows, its prompt or its score: it is part of a run's identity."""

    name: str
    version: str
    kind: Kind | None  # of its media; None: whatever they are
    headline: ClassVar[str] = "accuracy"  # which of its figures is the run's accuracy
    most: ClassVar[float] = 1.0  # what that figure is at best: `accuracy` is a share of it
    rule: ClassVar[str] = ""  # what a reader of its numbers has to know, in one line

    def manifest(self, split: str, limit: int | None) -> Path | None:
        """Where the first `limit` rows are when the user gives no `--data`; None: the user has to."""
        return None

    def digest(self, split: str) -> str | None:
        """What stands for those rows in a run's identity; None: a digest of the manifest."""
        return None

    def rows(self, data: str, split: str = "test", **how: Any) -> Manifest:
        """The rows of what `--data` names; `how` is as in `Manifest.of`."""
        return Manifest.of(data, **how)

    @abstractmethod
    def prompt(self, row: Row) -> str:
        """The question as the model is asked it, without the media and the conversation around it."""

    @abstractmethod
    def score(self, row: Row, prediction: str) -> Score:
        """How good an answer is."""

    def figures(self, sheet: AnswerArrays) -> dict[str, Metric]:
        """All that the official scorer reports, the headline among it. Only of rows that were answered."""
        return {"accuracy": mean_over(sheet.worth, sheet.scored)}

    def names(self, row: Row) -> tuple[str, ...]:
        """What answers that were made elsewhere may call this row."""
        return (row.row_id,)

    def claim(self, answer: Mapping[str, Any]) -> tuple[str, str]:
        """Of an answer that was made elsewhere: which row it is for, and what it says."""
        return claimed(answer, IDS), claimed(answer, TEXTS)

    def submission(self, answers: pa.Table, data: str | None) -> bytes:
        """The file that its server takes, of a run's answers; `data` is where the questions were."""
        raise ValueError(f"{self.name} has no server to submit to; its answers are scored here")

    def chance(self, type: str) -> float | None:
        """The accuracy of guessing, where it is known."""
        return None


IDS = ("question_id", "questionId", "index", "id", "image")
TEXTS = (
    "text",
    "prediction",
    "pred",
    "answer",
)  # `answer` is the reference where one of the others is there, too


def claimed(answer: Mapping[str, Any], names: tuple[str, ...]) -> str:
    """The first of these that an answer has."""
    for name in names:
        if answer.get(name) is not None:
            return str(answer[name])
    raise ValueError(
        f"an answer needs {' or '.join(names)}; it has {', '.join(answer) or 'nothing'}"
    )


def normalised(text: str) -> str:
    """A short answer without what does not matter: case, outer punctuation, articles, double spaces."""
    words = text.lower().strip().strip(string.punctuation + " ").split()
    return " ".join(
        [word for word in words if word not in ("a", "an", "the")] or words
    )  # "A" may be an option


LETTER = re.compile(r"^\W*([A-Z])(?:\W|$)")


def option_index(prediction: str, options: int) -> int | None:
    """Which option an answer names by its letter: "B", "(b)", "B. a dog"; None if none of them."""
    found = LETTER.match(
        prediction.strip().upper() if len(prediction.strip()) <= 3 else prediction.strip()
    )
    place = ord(found.group(1)) - ord("A") if found else -1
    return place if 0 <= place < options else None

"""The interface of a benchmark: its rows, the prompt of a row, and the score of an answer."""

from __future__ import annotations

import re
import string
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa

from pipelines.data.manifest import Manifest
from pipelines.data.rows import Kind, Row
from pipelines.metrics.answer_metrics import AnswerArrays, Metric


class Score(NamedTuple):
    score: float | None  # None: the metric is not per row, or the row has no reference
    correct: bool | None

    @classmethod
    def of(cls, correct: bool) -> Score:
        """Return the score of an answer that is either right or wrong."""
        return cls(float(correct), correct)


class Benchmark(ABC):
    """One benchmark. Runs are identified by `version`: it changes with rows, prompts and scores."""

    name: str
    version: str
    kind: Kind | None  # of its media; None: any
    headline: str = "accuracy"  # name of the metric that is the run's accuracy
    headline_max: float = 1.0  # `accuracy` in MLflow is a share of it
    scoring_note: str = ""  # one line that readers of the numbers must know

    def generate(self, split: str, limit: int | None) -> Path | None:
        """Return generated data with the first `limit` rows. None: the user must give `--data`."""
        return None

    def digest(self, split: str) -> str | None:
        """Return the identity of generated rows. None: it is the digest of the manifest."""
        return None

    def load(self, data: str, split: str = "test", **options: Any) -> Manifest:
        """Return the rows of `--data`; `options` are those of `Manifest.of`."""
        return Manifest.of(data, **options)

    @abstractmethod
    def prompt(self, row: Row) -> str:
        """Return the question to the model, without media and the conversation around it."""

    @abstractmethod
    def score(self, row: Row, prediction: str) -> Score:
        """Score the answer to a row."""

    def metrics(self, answers: AnswerArrays) -> dict[str, Metric]:
        """Return all metrics of the official scorer, the headline included, over scored rows."""
        return {"accuracy": answers.mean()}

    def external_ids(self, row: Row) -> tuple[str, ...]:
        """Return the ids that external answers may use for this row."""
        return (row.row_id,)

    def parse_answer(self, answer: Mapping[str, Any]) -> tuple[str, str]:
        """Return the row's external id and the text of an external answer."""
        return first_field(answer, ID_FIELDS), first_field(answer, TEXT_FIELDS)

    def submission(self, answers: pa.Table, data: str | None) -> bytes:
        """Return a run's answers as a file for the benchmark's server; `data` has the questions."""
        raise ValueError(f"{self.name} has no server to submit to; its answers are scored here")

    @property
    def chances(self) -> Mapping[str, float]:
        """Return the accuracy of guessing by type of question, where it is known."""
        return {}


ID_FIELDS = ("question_id", "questionId", "index", "id", "image")
# `answer` comes last: beside one of the others it is the reference.
TEXT_FIELDS = ("text", "prediction", "pred", "answer")


def first_field(answer: Mapping[str, Any], names: tuple[str, ...]) -> str:
    """Return the first of these fields that an answer has."""
    for name in names:
        if answer.get(name) is not None:
            return str(answer[name])
    raise ValueError(
        f"an answer needs {' or '.join(names)}; it has {', '.join(answer) or 'nothing'}"
    )


def normalised(text: str) -> str:
    """Return a short answer in lower case, without outer punctuation, articles, double spaces."""
    words = text.lower().strip().strip(string.punctuation + " ").split()
    # "A" may be an option.
    return " ".join([word for word in words if word not in ("a", "an", "the")] or words)


_FIRST_LETTER = re.compile(r"^\W*([A-Z])(?:\W|$)")


def lettered(options: Iterable[str]) -> list[str]:
    """Return the options as lines: "A. a cat", "B. a dog"."""
    return [f"{chr(ord('A') + index)}. {option}" for index, option in enumerate(options)]


def option_index(prediction: str, options: int) -> int | None:
    """Return the option that an answer names by letter: "B", "(b)", "B. a dog"; None if none."""
    text = prediction.strip()
    match = _FIRST_LETTER.match(text.upper() if len(text) <= 3 else text)
    index = ord(match[1]) - ord("A") if match else -1
    return index if 0 <= index < options else None

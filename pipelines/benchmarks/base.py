"""What a benchmark is: rows, the prompt that asks one, and the rule that scores an answer."""

from __future__ import annotations

import re
import string
from abc import ABC, abstractmethod
from pathlib import Path
from typing import ClassVar, NamedTuple

from pipelines.rows import Kind, Row


class Score(NamedTuple):
    score: float | None  # None: the metric is not per row, or there is nothing to compare with
    correct: bool | None


class Benchmark(ABC):
    """One benchmark. `version` changes with its rows, its prompt or its score: it is part of a run's identity."""

    name: str
    version: str
    kind: Kind | None  # of its media; None: whatever they are
    headline: ClassVar[str] = "accuracy"

    def manifest(self, split: str, limit: int | None) -> Path | None:
        """Where the first `limit` rows are when the user gives no `--data`; None: the user has to."""
        return None

    def digest(self, split: str) -> str | None:
        """What stands for those rows in a run's identity; None: a digest of the manifest."""
        return None

    @abstractmethod
    def prompt(self, row: Row) -> str:
        """The question as the model is asked it, without the media and the conversation around it."""

    @abstractmethod
    def score(self, row: Row, prediction: str) -> Score:
        """How good an answer is."""

    def chance(self, type: str) -> float | None:
        """The accuracy of guessing, where it is known."""
        return None


def plain(text: str) -> str:
    """A short answer without what does not matter: case, outer punctuation, articles, double spaces."""
    words = text.lower().strip().strip(string.punctuation + " ").split()
    return " ".join(word for word in words if word not in ("a", "an", "the"))


LETTER = re.compile(r"^\W*([A-Z])(?:\W|$)")


def letter(prediction: str, options: int) -> int | None:
    """Which option an answer names by its letter: "B", "(b)", "B. a dog"; None if none of them."""
    found = LETTER.match(prediction.strip().upper() if len(prediction.strip()) <= 3 else prediction.strip())
    place = ord(found.group(1)) - ord("A") if found else -1
    return place if 0 <= place < options else None

"""Common parts of the synthetic benchmarks: rows generated from a seed, and one-word answers."""

from __future__ import annotations

import os
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.benchmarks.base import Benchmark, Score, normalised
from pipelines.benchmarks.synthetic.dataset_files import MediaFile, write_dataset
from pipelines.benchmarks.synthetic.scenes import Question
from pipelines.data.rows import Kind, Row

Rng = np.random.Generator
QUESTIONS = {"train": 12_000, "val": 600, "test": 2_400}  # of each split


@dataclass(frozen=True)
class Synthetic(Benchmark):
    """A benchmark drawn from a seed, with the same files on every machine.

    Its version therefore identifies its rows. A `subject` is a scene or a clip.
    """

    name: str
    version: str
    kind: Kind
    file_name: str  # of the medium with a number: "images/{:06d}.png"
    questions_per_medium: int
    random_subject: Callable[[Rng], Any]
    save: Callable[[Any, Path], None]
    # Functions by type of question; None: the subject has no answer to such a question.
    question_types: Mapping[str, Callable[[Any, Rng], Question | None]]
    chances: Mapping[str, float]  # of guessing right among the possible answers

    def make(self, folder: Path, split: str, questions: int | None = None, seed: int = 0) -> Path:
        """Write media and manifest of a split below `folder`, once; return the manifest's path."""
        if split not in QUESTIONS:
            raise ValueError(f"{self.name} has no split '{split}'; it has {', '.join(QUESTIONS)}")
        home = folder / f"{self.name}-{self.version}-{seed}" / split
        file = home / ("manifest.jsonl" if questions is None else f"manifest-{questions}.jsonl")
        total = QUESTIONS[split] if questions is None else questions
        return write_dataset(file, f"{self.name}-{split}", self._media(split, seed), total)

    def _media(self, split: str, seed: int) -> Iterator[MediaFile]:
        for number in count():
            rng = self.rng_for(split, seed, number)
            subject = self.random_subject(rng)
            questions = self.questions(subject, rng, self.questions_per_medium)
            yield MediaFile(self.file_name.format(number), partial(self.save, subject), questions)

    def rng_for(self, split: str, seed: int, number: int) -> Rng:
        """Return the generator of one medium; no two splits, seeds or numbers share it."""
        name = f"{self.name} {self.version} {split}".encode()
        return np.random.default_rng([zlib.crc32(name), seed, number])

    def questions(self, subject: Any, rng: Rng, limit: int) -> list[Question]:
        """Return up to `limit` questions, each of another type that has an answer."""
        types = rng.permutation(list(self.question_types))
        drafts = [self.question_types[type](subject, rng) for type in types]
        return [question for question in drafts if question][:limit]

    def generate(self, split: str, limit: int | None) -> Path:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "apet"
        return self.make(cache, split, limit)

    def digest(self, split: str) -> str:
        return f"{self.name}-{self.version}-{split}"

    def prompt(self, row: Row) -> str:
        return row.question

    def score(self, row: Row, prediction: str) -> Score:
        return Score.of(normalised(prediction) in {normalised(answer) for answer in row.answers})

    def chance(self, type: str) -> float | None:
        return self.chances.get(type)

"""Common parts of the synthetic benchmarks: rows generated from a seed, and one-word answers."""

import json
import os
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from importlib.resources import files
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from pipelines.benchmarks.base import Benchmark, Score, normalised
from pipelines.benchmarks.synthetic.scenes import Draft, PhraseTarget, Question, pick
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
    # By type of question, a function and the possible answers. The function returns None if the
    # subject has no answer. Their order is part of what the seed draws.
    question_types: Mapping[str, tuple[Callable[[Any, Rng], Draft | None], Sequence[str]]]

    def make(self, folder: Path, split: str, questions: int | None = None, seed: int = 0) -> Path:
        """Write media and manifest of a split below `folder`; return the manifest's path.

        Does nothing if the manifest is there. Every file gets its name only when it is complete,
        the manifest last: a killed call leaves no manifest, and the next one continues with the
        missing media. Manifests in one folder share their media.
        """
        if split not in QUESTIONS:
            raise ValueError(f"{self.name} has no split '{split}'; it has {', '.join(QUESTIONS)}")
        home = folder / f"{self.name}-{self.version}-{seed}" / split
        manifest = home / ("manifest.jsonl" if questions is None else f"manifest-{questions}.jsonl")
        if manifest.exists():
            return manifest
        (home / self.file_name).parent.mkdir(parents=True, exist_ok=True)
        total = QUESTIONS[split] if questions is None else questions
        rows: list[dict[str, Any]] = []
        for number in count():
            if len(rows) >= total:
                break
            rng = self.rng_for(split, seed, number)
            subject = self.random_subject(rng)
            medium = self.file_name.format(number)
            if not (home / medium).exists():
                _write_atomically(home / medium, partial(self.save, subject))
            rows += [
                {
                    "id": f"{self.name}-{split}-{number:06d}-{index}",
                    "media": medium,
                    "question": question.text,
                    "answers": [question.answer],
                    "options": list(question.options),
                    "type": question.type,
                }
                for index, question in enumerate(
                    self.questions(subject, rng, self.questions_per_medium)
                )
            ]
        lines = "".join(json.dumps(row) + "\n" for row in rows[:total])
        _write_atomically(manifest, lambda path: path.write_text(lines, encoding="utf-8"))
        return manifest

    def rng_for(self, split: str, seed: int, number: int) -> Rng:
        """Return the generator of one medium; no two splits, seeds or numbers share it."""
        name = f"{self.name} {self.version} {split}".encode()
        return np.random.default_rng([zlib.crc32(name), seed, number])

    def questions(self, subject: Any, rng: Rng, limit: int) -> list[Question]:
        """Return up to `limit` questions, each of another type that has an answer."""
        questions: list[Question] = []
        for type in rng.permutation(list(self.question_types)).tolist():
            if draft := self.question_types[type][0](subject, rng):
                wording = draft.wording or pick(rng, load_wordings(self.name)[type])
                questions.append(self._build(type, draft, wording))
        return questions[:limit]

    def _build(self, type: str, draft: Draft, wording: str) -> Question:
        """Insert the phrases of a draft into the {} of a wording."""
        text, *pieces = wording.split("{}")
        targets = []
        for phrase, piece in zip(draft.phrases, pieces, strict=True):
            text += phrase.text
            targets.append(PhraseTarget(len(text), phrase.part, tuple(phrase.numbers)))
            text += piece
        options = tuple(draft.options or self.question_types[type][1])
        return Question(type, text, draft.answer, options, tuple(targets))

    def generate(self, split: str, limit: int | None) -> Path:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "apet"
        return self.make(cache, split, limit)

    def digest(self, split: str) -> str:
        return f"{self.name}-{self.version}-{split}"

    def prompt(self, row: Row) -> str:
        return row.question

    def score(self, row: Row, prediction: str) -> Score:
        return Score.of(normalised(prediction) in {normalised(answer) for answer in row.answers})

    @property
    def chances(self) -> dict[str, float]:
        return {type: 1 / len(options) for type, (_, options) in self.question_types.items()}


@cache
def load_wordings(benchmark: str) -> dict[str, list[str]]:
    """Return the wordings of each type of question of a benchmark."""
    text = files(__package__).joinpath("wordings.yaml").read_text(encoding="utf-8")
    wordings: dict[str, list[str]] = yaml.safe_load(text)[benchmark]
    return wordings


def _write_atomically(file: Path, save: Callable[[Path], Any]) -> None:
    """Save under a temporary name first. Two processes that write the file write the same bytes."""
    temporary = file.with_name(f".{os.getpid()}-{file.name}")
    try:
        save(temporary)
        os.replace(temporary, file)
    finally:
        temporary.unlink(missing_ok=True)

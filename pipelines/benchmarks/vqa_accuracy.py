"""VQA accuracy of TextVQA, VizWiz and VQAv2: normalised answers are compared with ten people's.

The rules are those of the challenge's server, oddities included, because otherwise numbers are not
comparable: `it's` becomes two words, `2.` loses its dot and `3.5` keeps it, a slash next to a space
disappears and one between words separates them, `none` is 0, and half of the table's contractions
can never match.
"""

import re
from collections.abc import Sequence
from functools import lru_cache
from importlib.resources import files
from typing import Any

import pyarrow as pa

from pipelines.benchmarks.base import Score
from pipelines.benchmarks.official import OfficialBenchmark
from pipelines.data.rows import Row
from pipelines.metrics.answer_metrics import AnswerArrays, Metric

_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_DOT = re.compile(r"\.(?!\d)")
# Number of dots of an answer that are removed: the original passes a flag in place of the count.
_MAX_DOTS = 32
_DIGITS = "zero one two three four five six seven eight nine ten"
_NUMBERS = {word: str(number) for number, word in enumerate(_DIGITS.split())} | {"none": "0"}
_ARTICLES = ("a", "an", "the")
# Lines of a contraction and the spellings that it replaces.
_CONTRACTION = {
    spelling: contraction
    for line in files(__package__).joinpath("vqa_contractions.txt").read_text().splitlines()
    for contraction, *spellings in [line.split()]
    for spelling in spellings
}


class VQABenchmark(OfficialBenchmark):
    """Scores are VQA accuracy, 0 to 1 in steps of 0.1; `correct` where enough people agree."""

    scoring_note = "VQA accuracy; answers and references normalised as LLaVA's scripts do"

    def score(self, row: Row, prediction: str) -> Score:
        if not row.answers:
            return Score(None, None)  # a test split, whose answers are on a server
        score = accuracy(prediction, row.answers)
        return Score(score, score == 1.0)

    def metrics(self, answers: AnswerArrays) -> dict[str, Metric]:
        question_types = answers.means_by("question_type", answers.meta("question_type"))
        return {"accuracy": answers.mean(), **question_types}


def submitted_answers(answers: pa.Table) -> dict[str, str]:
    """Return the normalised answer to each row of a run; an empty one where it failed."""
    columns = (answers[name].to_pylist() for name in ("row_id", "prediction"))
    return {row_id: normalised(text or "") for row_id, text in zip(*columns, strict=True)}


def answer_texts(answers: Any) -> list[str]:
    """Return the answers of ten people, given as texts or as {answer, answer_confidence}."""
    return [str(item["answer"]) if isinstance(item, dict) else str(item) for item in answers or []]


@lru_cache(maxsize=1 << 16)
def normalised(answer: str) -> str:
    """Return an answer in the form in which it is compared."""
    text = answer.lower().replace(",", "").replace("?", "").replace("'s", " 's").strip()
    text = text.replace("\n", " ").replace("\t", " ").strip()
    words = [_NUMBERS.get(word, word) for word in _without_punctuation(text).split()]
    return " ".join(_CONTRACTION.get(word, word) for word in words if word not in _ARTICLES)


def _without_punctuation(text: str) -> str:
    """Drop marks that are next to a space anywhere in the text, and separate words at others.

    Dots before digits stay.
    """
    out = text
    for mark in _PUNCTUATION:
        next_to_space = f"{mark} " in text or f" {mark}" in text
        out = out.replace(mark, "" if next_to_space else " ")
    return _DOT.sub("", out, count=_MAX_DOTS)


def accuracy(prediction: str, answers: Sequence[str]) -> float:
    """Return the mean over people of min(1, agreement of the others / 3)."""
    text = normalised(prediction)
    same = sum(normalised(answer) == text for answer in answers)
    if_left_out_agrees, if_not = min(1.0, max(0, same - 1) / 3), min(1.0, same / 3)
    return (same * if_left_out_agrees + (len(answers) - same) * if_not) / len(answers)

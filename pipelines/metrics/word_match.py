"""A metric that needs no model. It is NOT the judge, and its numbers must not stand beside a judge's.

    correct     the reference's words stand in the prediction in a row; a reference of yes or no is its first word
    score       5 x F1 of the words that both have, rounded

Compared are lower-case words without punctuation and articles, with zero to twelve as digits. It knows no synonyms
("cook" is not "prepare food"), no inflection ("cooks") and no negation ("not a dog" holds "dog").
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

from pipelines.metrics.verdicts import BEST, Item, Judge, Verdict

_WORD = re.compile(r"\w+")
_ARTICLES = ("a", "an", "the")
_COUNTED = [
    "zero",
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
    "eleven",
    "twelve",
]
_NUMBERS = {word: str(number) for number, word in enumerate(_COUNTED)}


class Offline(Judge):
    """Normalised match and word overlap."""

    label = "offline"
    name = "offline"
    prompt_hash = "none"

    @property
    def version(self) -> str:
        return "1"

    def judge(self, items: Iterable[Item]) -> Iterator[Verdict]:
        for item in items:
            given = words(item.prediction)
            right = [words(reference) for reference in item.reference]
            overlap = max((f1(given, reference) for reference in right), default=0.0)
            yield Verdict(
                any(matches(given, reference) for reference in right), int(BEST * overlap + 0.5)
            )


def words(text: str) -> list[str]:
    """What is compared of a text."""
    plain = (
        unicodedata.normalize("NFKC", text)
        .casefold()
        .replace("'", "")
        .replace("\N{RIGHT SINGLE QUOTATION MARK}", "")
    )
    found = [_NUMBERS.get(word, word) for word in _WORD.findall(plain)]
    return [
        word for word in found if word not in _ARTICLES
    ] or found  # the answer may be the letter a


def matches(given: Sequence[str], reference: Sequence[str]) -> bool:
    """Are the reference's words in the prediction, in a row? Of yes and no only the first word counts."""
    if not reference:
        return False
    if list(reference) in (["yes"], ["no"]):
        return list(given[:1]) == list(reference)
    size = len(reference)
    return any(
        list(given[start : start + size]) == list(reference)
        for start in range(len(given) - size + 1)
    )


def f1(given: Sequence[str], reference: Sequence[str]) -> float:
    """Twice the words in common by the words of both, each as often as it is there."""
    common = sum((Counter(given) & Counter(reference)).values())
    return 2 * common / (len(given) + len(reference)) if common else 0.0

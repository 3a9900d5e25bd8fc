"""A metric that needs no model. It is NOT the judge: never compare its numbers with a judge's.

    correct     the reference's words follow each other in the prediction; for a reference of yes or
                no, the prediction's first word is the reference
    score       5 x F1 of the common words, rounded

Words are compared in lower case, without punctuation and articles, with zero to twelve as digits.
The metric knows no synonyms ("cook" is not "prepare food"), no inflection ("cooks") and no negation
("not a dog" contains "dog").
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence

from pipelines.metrics.verdicts import BEST, Item, Judge, Verdict

_WORD = re.compile(r"\w+")
_ARTICLES = ("a", "an", "the")
_COUNTED = "zero one two three four five six seven eight nine ten eleven twelve"
_NUMBERS = {word: str(number) for number, word in enumerate(_COUNTED.split())}


class Offline(Judge):
    """Normalised match and word overlap."""

    label = "offline"
    name = "offline"
    prompt_hash = "none"

    @property
    def version(self) -> str:
        return "1"

    def judge(self, items: Sequence[Item]) -> Iterator[Verdict]:
        for item in items:
            prediction = words(item.prediction)
            references = [words(reference) for reference in item.reference]
            overlap = max((f1(prediction, reference) for reference in references), default=0.0)
            correct = any(matches(prediction, reference) for reference in references)
            yield Verdict(correct, int(BEST * overlap + 0.5))


def words(text: str) -> list[str]:
    """Return the words of a text that are compared."""
    plain = unicodedata.normalize("NFKC", text).casefold()
    plain = plain.replace("'", "").replace("\N{RIGHT SINGLE QUOTATION MARK}", "")
    every = [_NUMBERS.get(word, word) for word in _WORD.findall(plain)]
    # The answer may be the letter "a".
    return [word for word in every if word not in _ARTICLES] or every


def matches(prediction: list[str], reference: list[str]) -> bool:
    """Do the reference's words follow each other in the prediction? Yes and no must come first."""
    if not reference:
        return False
    size = len(reference)
    if reference in (["yes"], ["no"]):
        return prediction[:1] == reference
    starts = range(len(prediction) - size + 1)
    return any(prediction[start : start + size] == reference for start in starts)


def f1(prediction: list[str], reference: list[str]) -> float:
    """Return 2 x common words / words of both. Repeated words count as often as they occur."""
    common = sum((Counter(prediction) & Counter(reference)).values())
    return 2 * common / (len(prediction) + len(reference)) if common else 0.0

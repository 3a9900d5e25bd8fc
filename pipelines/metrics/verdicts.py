"""What a judge is: it reads a question, its correct answer and a predicted one, and says whether they agree."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from typing import NamedTuple

BEST = 5  # the highest score; the lowest is 0


class Item(NamedTuple):
    """What is judged. The model that answered is not named: a judge must not know it."""

    question: str
    reference: tuple[str, ...]  # one correct answer, or several that are equally right
    prediction: str


class Verdict(NamedTuple):
    """`correct` and `score` (0 to BEST) are both there, or neither is and `error` says why."""

    correct: bool | None
    score: int | None
    reply: str = ""  # what the judge said, word for word
    error: str | None = None  # "kind: message"; the kinds are counted


class Unavailable(Exception):
    """The judge cannot judge anything at present: no use in asking it about the next item."""


class Judge(ABC):
    """One judge. Its numbers are only comparable with those of an equal name, prompt hash and version.

    label       what its metrics are called: `judge/accuracy`
    name        readable, and usable in a file's name but for its slashes
    prompt_hash changes with any word that it is asked; "none" if it is asked nothing
    """

    label = "judge"
    name: str
    prompt_hash: str

    @property
    @abstractmethod
    def version(self) -> str:
        """Of the rules here and, where it is known, of the model: after judging, as a server may name it then."""

    @abstractmethod
    def judge(self, items: Iterable[Item]) -> Iterator[Verdict]:
        """One verdict an item, in the items' order, whatever goes wrong with one; `Unavailable` ends it.

        Items are taken as they are needed, so there may be more than fit into memory.
        """

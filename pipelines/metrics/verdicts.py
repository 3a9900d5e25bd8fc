"""The interface of a judge, which decides whether a prediction agrees with the correct answer."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import NamedTuple

BEST = 5  # the highest score; the lowest is 0


class Item(NamedTuple):
    """A question to judge. The model that answered is not named: a judge must not know it."""

    question: str
    reference: tuple[str, ...]  # one correct answer, or several that are equally right
    prediction: str


class Verdict(NamedTuple):
    """Either `correct` and `score` (0 to BEST) are both set, or neither and `error` says why."""

    correct: bool | None
    score: int | None
    reply: str = ""  # of the judge, word for word
    error: str | None = None  # "kind: message"; the kinds are counted


class Unavailable(Exception):
    """The judge cannot judge anything at present, so the next item need not be tried."""


class Judge(ABC):
    """One judge. Its numbers are comparable only if name, prompt hash and version are equal.

    label       prefix of its metrics: `judge/accuracy`
    name        readable; valid in a file name except for its slashes
    prompt_hash changes with any word of the prompt; "none" without a prompt
    """

    label = "judge"
    name: str
    prompt_hash: str

    @property
    @abstractmethod
    def version(self) -> str:
        """Version of the rules here and, if known, of the model.

        Read it after judging, as a server may name its model only then.
        """

    @abstractmethod
    def judge(self, items: Sequence[Item]) -> Iterator[Verdict]:
        """Yield one verdict per item, in order, whatever goes wrong with one item.

        `Unavailable` ends the iteration.
        """

"""What a language model is asked about an answer, and how its reply is read.

The protocol is Video-ChatGPT's for open answers about videos: is the prediction right, yes or no, and how close is it,
as a whole number from 0 to 5. Accuracy is yes / (yes + no). The wording is our own, so numbers of the same model
under the original wording may differ a little, as they do between versions of a model: the hash of the wording is kept
with each number.
"""

from __future__ import annotations

import ast
import hashlib
import json
import math
import re
from typing import Any

from pipelines.metrics.verdicts import BEST, Item, Verdict

VERSION = "1"  # of how replies are read and how often they are asked for
REPLIES = 3  # to one item, until one has the form that was asked for
KEPT = 2000  # characters of a reply, in a verdict

SYSTEM = """\
You grade answers to questions about videos. For each question you are shown the correct answer and the answer that a \
model predicted, and you decide whether the two agree in meaning.
- Look at what is meant, not at how it is worded.
- A synonym or a paraphrase of the correct answer is right.
- The correct answer is the only measure: do not judge by what else you know."""

USER = """\
Question: {question}
Correct Answer: {reference}
Predicted Answer: {prediction}

Does the predicted answer match the correct one (yes or no), and how well: a whole number from 0, not at all, to 5, \
entirely? Reply with one JSON object and nothing else. Its keys are 'pred', which is "yes" or "no", and 'score', which \
is a number and not a text. For example: {{"pred": "yes", "score": 4}}"""

AGAIN = 'That is not the object that was asked for. Reply with {"pred": "yes" or "no", "score": 0 to 5} and nothing else.'

PROMPT_HASH = hashlib.sha256("\0".join((SYSTEM, USER, AGAIN)).encode()).hexdigest()[:12]

Messages = list[dict[str, str]]
_THOUGHT = re.compile(r"<think>.*?</think>", re.DOTALL)
_OBJECT = re.compile(r"\{[^{}]{1,2000}\}")


def messages(item: Item) -> Messages:
    """The conversation that asks for a verdict."""
    reference = " or ".join(dict.fromkeys(item.reference))
    asked = USER.format(question=item.question, reference=reference, prediction=item.prediction)
    return [{"role": "system", "content": SYSTEM}, {"role": "user", "content": asked}]


def again(asked: Messages, reply: str) -> Messages:
    """The same after a reply that could not be read: a model that is not random would only repeat itself."""
    return [
        *asked,
        {"role": "assistant", "content": reply[:KEPT]},
        {"role": "user", "content": AGAIN},
    ]


def parse(reply: str) -> Verdict:
    """The verdict in a reply; a ValueError if there is none, or if there are two that differ.

    Prose or a code fence around the object is let pass, as are a Python dict and a score with decimals, which is cut.
    """
    found = {_verdict(text) for text in _OBJECT.findall(_THOUGHT.sub("", reply))} - {None}
    if len(found) != 1:
        what = "no verdict" if not found else "verdicts that differ"
        raise ValueError(f"{what} in {' '.join(reply.split())[:100]!r}")
    (verdict,) = found
    assert verdict is not None
    return Verdict(*verdict, reply[:KEPT])


def _verdict(text: str) -> tuple[bool, int] | None:
    given = _plain(text)
    if not isinstance(given, dict):
        return None
    said = str(given.get("pred")).strip(" .").lower()
    correct = {"yes": True, "true": True, "no": False, "false": False}.get(said)
    score = _score(given.get("score"))
    return None if correct is None or score is None else (correct, score)


def _plain(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        pass
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return None


def _score(given: Any) -> int | None:
    if isinstance(given, bool) or not isinstance(given, int | float | str):
        return None
    try:
        number = float(given)
    except (ValueError, OverflowError):
        return None
    return int(number) if math.isfinite(number) and 0 <= number <= BEST else None

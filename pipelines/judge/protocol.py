"""The prompt that asks a language model for a verdict, and the parser of its replies.

The protocol is Video-ChatGPT's for open answers about videos: is the prediction right, yes or no,
and how close is it, as a whole number from 0 to 5. Accuracy is yes / (yes + no). The wording is
our own, so numbers of the same model may differ a little from those under the original wording,
as they do between versions of a model. The hash of the wording is stored with each number.
"""

from __future__ import annotations

import ast
import hashlib
import json
import math
import re
from typing import Any

from pipelines.metrics.verdicts import BEST, Item, Verdict

VERSION = "1"  # of the rules that parse replies and repeat questions
MAX_REPLIES = 3  # per item, until one is well-formed
MAX_REPLY_CHARACTERS = 2000  # of a reply that are stored in a verdict

SYSTEM = """\
You grade answers to questions about videos. For each question you are shown the correct answer \
and the answer that a model predicted, and you decide whether the two agree in meaning.
- Look at what is meant, not at how it is worded.
- A synonym or a paraphrase of the correct answer is right.
- The correct answer is the only measure: do not judge by what else you know."""

USER = """\
Question: {question}
Correct Answer: {reference}
Predicted Answer: {prediction}

Does the predicted answer match the correct one (yes or no), and how well: a whole number from 0, \
not at all, to 5, entirely? Reply with one JSON object and nothing else. Its keys are 'pred', \
which is "yes" or "no", and 'score', which is a number and not a text. For example: \
{{"pred": "yes", "score": 4}}"""

FOLLOW_UP = """\
That is not the object that was asked for. Reply with {"pred": "yes" or "no", "score": 0 to 5} and \
nothing else."""

PROMPT_HASH = hashlib.sha256("\0".join((SYSTEM, USER, FOLLOW_UP)).encode()).hexdigest()[:12]

Messages = list[dict[str, str]]
_THOUGHT = re.compile(r"<think>.*?</think>", re.DOTALL)
_OBJECT = re.compile(r"\{[^{}]{1,2000}\}")
_YES_OR_NO = {"yes": True, "true": True, "no": False, "false": False}


def messages(item: Item) -> Messages:
    """The conversation that asks for a verdict."""
    reference = " or ".join(dict.fromkeys(item.reference))
    user = USER.format(question=item.question, reference=reference, prediction=item.prediction)
    return [{"role": "system", "content": SYSTEM}, {"role": "user", "content": user}]


def follow_up(conversation: Messages, reply: str) -> Messages:
    """Ask again after a malformed reply: a deterministic model would only repeat itself."""
    return [
        *conversation,
        {"role": "assistant", "content": reply[:MAX_REPLY_CHARACTERS]},
        {"role": "user", "content": FOLLOW_UP},
    ]


def parse(reply: str) -> Verdict:
    """The verdict in a reply; raises a ValueError for none, or for two that differ.

    Accepts prose or a code fence around the object, a Python dict, and a score with decimals,
    which is truncated.
    """
    verdicts = set(filter(None, map(_parse_object, _OBJECT.findall(_THOUGHT.sub("", reply)))))
    if len(verdicts) != 1:
        problem = "verdicts that differ" if verdicts else "no verdict"
        raise ValueError(f"{problem} in {' '.join(reply.split())[:100]!r}")
    return Verdict(*verdicts.pop(), reply[:MAX_REPLY_CHARACTERS])


def malformed(reply: str, error: ValueError) -> Verdict:
    return Verdict(None, None, reply[:MAX_REPLY_CHARACTERS], f"malformed: {error}")


def _parse_object(text: str) -> tuple[bool, int] | None:
    for parser in (json.loads, ast.literal_eval):
        try:
            value: Any = parser(text)
            break
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            continue
    else:
        return None
    if not isinstance(value, dict):
        return None
    correct = _YES_OR_NO.get(str(value.get("pred")).strip(" .").lower())
    score = _parse_score(value.get("score"))
    return None if correct is None or score is None else (correct, score)


def _parse_score(value: Any) -> int | None:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        score = float(value)
    except (ValueError, OverflowError):
        return None
    return int(score) if math.isfinite(score) and 0 <= score <= BEST else None

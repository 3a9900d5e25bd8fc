"""The prompt that asks a language model for a verdict, and the parser of its replies.

The protocol is Video-ChatGPT's for open answers about videos: is the prediction right, yes or no,
and how close is it, as a whole number from 0 to 5. Accuracy is yes / (yes + no). The wording is
our own, so numbers of the same model may differ a little from those under the original wording,
as they do between versions of a model. The hash of the wording is stored with each number.
"""

import ast
import hashlib
import json
import re
from contextlib import suppress

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
    """The verdict in a reply; one with an error if there is none, or if there are two that differ.

    Accepts prose or a code fence around the object, a Python dict, and a score with decimals,
    which is truncated.
    """
    stored = reply[:MAX_REPLY_CHARACTERS]
    verdicts = set(filter(None, map(_parse_object, _OBJECT.findall(_THOUGHT.sub("", reply)))))
    if len(verdicts) == 1:
        return Verdict(*verdicts.pop(), stored)
    problem = "verdicts that differ" if verdicts else "no verdict"
    error = f"malformed: {problem} in {' '.join(reply.split())[:100]!r}"
    return Verdict(None, None, stored, error)


def _parse_object(text: str) -> tuple[bool, int] | None:
    errors = (ValueError, SyntaxError, TypeError, LookupError, ArithmeticError, MemoryError)
    for parser in (json.loads, ast.literal_eval):
        with suppress(*errors, RecursionError):
            value = parser(text)
            correct, score = _YES_OR_NO[str(value["pred"]).strip(" .").lower()], value["score"]
            if not isinstance(score, bool) and 0 <= float(score) <= BEST:
                return correct, int(float(score))
    return None

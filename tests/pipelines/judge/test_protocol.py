"""The prompt, its replies, and judges that need no server."""

from __future__ import annotations

import subprocess
import sys

import pytest

from pipelines.judge import Item, Verdict, judge, protocol
from pipelines.metrics.word_match import Offline
from tests.pipelines.judge.chat_server import YES
from tests.support import ROOT


@pytest.mark.parametrize(
    ("reply", "correct", "score"),
    [
        ("{'pred': 'no', 'score': 0}", False, 0),
        ("{'pred': 'yes', 'score': 4.8}", True, 4),
        ('{"pred": "Yes", "score": "5"}', True, 5),
        ('{"pred": true, "score": 3}', True, 3),
        (f"Sure! Here it is:\n```json\n{YES}\n```\nAnything else?", True, 4),
        (f"<think>{{'pred': 'no', 'score': 1}}? No.</think>{YES}", True, 4),
        (f"{YES} {YES}", True, 4),
    ],
)
def test_parse_accepts_variants_of_the_object(reply: str, correct: bool, score: int) -> None:
    assert protocol.parse(reply) == Verdict(correct, score, reply)


@pytest.mark.parametrize(
    "reply",
    [
        "",
        "yes, 4",
        "{'pred': 'maybe', 'score': 3}",
        "{'pred': 'yes'}",
        "{'pred': 'yes', 'score': 6}",
        "{'pred': 'yes', 'score': -1}",
        "{'pred': 'yes', 'score': True}",
        '{"pred": "yes", "score": NaN}',
        "{'pred': 'yes', 'score': None}",
        "{'pred': 'yes', 'score': 10**9**9}",
        '{"score": 2, "pred": "no", "why": "a {cat}"}',
        "{" + "[" * 1500 + "}",
        YES[:-1],
    ],
)
def test_parse_rejects_malformed_replies(reply: str) -> None:
    error = f"malformed: no verdict in {' '.join(reply.split())[:100]!r}"
    assert protocol.parse(reply) == Verdict(None, None, reply, error)


def test_parse_rejects_two_different_verdicts() -> None:
    verdict = protocol.parse("{'pred': 'yes', 'score': 5} or {'pred': 'no', 'score': 0}")
    assert verdict.correct is None
    assert str(verdict.error).startswith("malformed: verdicts that differ in ")


def test_prompt_quotes_texts_with_format_characters() -> None:
    item = Item("What {0} is %s?", ("{pred}", "{pred}", "b"), '{"pred": "yes"}')
    system, user = protocol.messages(item)
    assert system["role"] == "system"
    for line in (
        "Question: What {0} is %s?\n",
        "Correct Answer: {pred} or b\n",
        'Predicted Answer: {"pred": "yes"}\n',
    ):
        assert line in user["content"]


def test_prompt_hash_is_that_of_earlier_verdicts() -> None:
    assert protocol.PROMPT_HASH == "6c0f20a9ac00"


@pytest.mark.parametrize(
    ("reference", "prediction", "correct", "score"),
    [
        ("dog", "The Dog.", True, 5),
        # F1 of dog, and, cat with dog is 1/2, and half a point is rounded up
        ("dog", "a dog and a cat", True, 3),
        ("dog", "hotdog", False, 0),
        ("dog", "", False, 0),
        ("two", "2", True, 5),
        ("ice cream", "cream with ice", False, 4),
        ("yes", "Yes, because it is", True, 2),
        ("no", "there is no doubt: yes", False, 2),
        ("a", "A", True, 5),
        ("café", "CAFE\u0301", True, 5),
        ("man's", "man\u2019s", True, 5),
        ("\u72d7", "\u72d7\u3002", True, 5),
        ("...", "...", False, 0),
    ],
)
def test_offline_metric_compares_normalised_words(
    reference: str, prediction: str, correct: bool, score: int
) -> None:
    assert list(Offline().judge([Item("", (reference,), prediction)])) == [Verdict(correct, score)]


def test_offline_metric_uses_the_best_reference() -> None:
    (verdict,) = judge("offline").judge([Item("", ("cat", "brown dog"), "a brown dog")])
    assert verdict == Verdict(True, 5)


def test_unknown_judge_is_refused() -> None:
    with pytest.raises(ValueError, match="not a judge: 'gpt'; choose one of offline, endpoint, l"):
        judge("gpt")


@pytest.mark.usefixtures("subprocesses")
def test_only_the_local_judge_imports_ray_and_torch() -> None:
    code = (
        "import sys, pipelines.judge.endpoint, pipelines.judge.run_verdicts;"
        "print({'ray', 'torch'} & set(sys.modules))"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.stdout == "set()\n", done.stderr

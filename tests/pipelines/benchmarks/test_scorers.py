"""Scores of raw answers by hand, as the official scorers give them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from pipelines.benchmarks import benchmark
from pipelines.benchmarks.vqa_accuracy import accuracy, normalised
from pipelines.data.rows import Row

REFUSAL = "I'm sorry, but I cannot see the image."


def row(answers: Sequence[str], **more: Any) -> Row:
    return Row("1", (), "?", tuple(answers), **more)


GQA = [
    ("yes", "yes", 1),
    ("Yes.", "yes", 1),
    ("Yes..", "yes", 1),
    ("yes, because", "yes", 0),
    (" yes", "yes", 0),
    ("", "yes", 0),
    (REFUSAL, "no", 0),
    ("the woman", "woman", 0),
    ("CAFÉ", "café", 1),
    ("two", "2", 0),
    ("A.", "a", 1),
    ("(a)", "a", 0),
    ("yes or no", "yes", 0),
]
POPE = [
    ("Yes", "yes", 1),
    ("No", "no", 1),
    ("no", "no", 1),
    ("NO", "no", 0),
    ("No, there is not.", "no", 1),
    ("Yes. There is no dog though", "yes", 1),
    ("yes, because", "yes", 1),
    ("There is not a dog.", "no", 1),
    ("There isn't a dog", "yes", 1),
    ("", "yes", 1),
    ("", "no", 0),
    ("Nothing", "yes", 1),
    (REFUSAL, "yes", 1),
    ("Não", "no", 0),
    ("A.", "no", 0),
    ("(a)", "yes", 1),
    ("zero", "no", 0),
    ("yes or no", "no", 1),
]
MME = [
    ("Yes", "yes", 1),
    ("yes, because", "yes", 1),
    ("No.", "no", 1),
    ("nope", "no", 1),
    ("", "yes", 0),
    ("", "no", 0),
    (" Yes", "yes", 1),
    ("It is yes", "yes", 0),
    ("Unknown", "no", 0),
    ("not", "no", 1),
    ("The yes", "yes", 0),
    ("YES", "yes", 1),
    ("Ёyes", "yes", 1),
    (REFUSAL, "no", 0),
    ("A.", "yes", 0),
    ("(a)", "no", 0),
    ("one", "yes", 0),
    ("yes or no", "no", 0),
    ("no/yes", "yes", 0),
]
SCIENCE = [
    ("B", "B", 1),
    ("B.", "B", 0),
    ("B. apostrophe", "B", 1),
    ("(B)", "B", 0),
    ("(b)", "B", 0),
    ("b", "B", 0),
    ("The answer is B.", "B", 1),
    ("The answer is B, so The answer is A.", "B", 0),
    ("I think The answer is B.", "B", 1),
    ("the answer is B.", "B", 0),
    ("", "B", 0),
    ("apostrophe", "B", 0),
    ("Because", "B", 0),
    ("E", "B", 0),
    ("A.", "A", 0),
    ("(a)", "A", 0),
    (REFUSAL, "A", 0),
    ("yes, because", "A", 0),
    ("two", "B", 0),
    ("A or B", "A", 0),
    ("\uff22", "B", 0),  # a wide B
]
BENCH = [  # options: a small dog, two cats, none, Zürich
    ("A", "A", 1),
    ("A.", "A", 1),
    ("(A)", "A", 1),
    ("(a)", "A", 0),
    ("A. a small dog", "A", 1),
    ("The answer is A", "A", 1),
    ("A or B", "A", 0),
    ("a small dog", "A", 1),
    ("It is a small dog.", "A", 1),
    ("two cats and a small dog", "A", 0),
    ("A picture of two cats on it", "B", 1),
    ("", "A", 0),
    (REFUSAL, "A", 0),
    ("zürich!", "D", 1),
    ("D) Zürich", "D", 1),
    ("two cats " * 20, "B", 0),
    ("2 cats", "B", 0),
    ("two", "B", 0),
    ("yes, because", "A", 0),
]
CLIPS = [
    ("The man cooks.", "man", 1),
    ("woman", "man", 0),
    ("There are two of them", "2", 1),
    ("", "man", 0),
    ("Yes, he does", "yes", 1),
    ("He does, yes", "yes", 0),
    (REFUSAL, "man", 0),
    ("A.", "a", 1),
    ("(a)", "a", 1),
    ("yes, because", "yes", 1),
    ("CAFÉ", "café", 1),
    ("two", "2", 1),
    ("yes or no", "yes", 1),
    ("yes or no", "no", 0),
]


@pytest.mark.parametrize(
    ("name", "prediction", "right", "score"),
    [
        *(("gqa", *case) for case in GQA),
        *(("pope", *case) for case in POPE),
        *(("mme", *case) for case in MME),
        *(("scienceqa", *case) for case in SCIENCE),
        *(("msvd", *case) for case in CLIPS),
        *((name, *case) for case in BENCH for name in ("mmbench", "mmbench_cn")),
    ],
)
def test_score_of_a_raw_answer_equals_the_official_one(
    name: str, prediction: str, right: str, score: int
) -> None:
    options = (
        ("a small dog", "two cats", "none", "Zürich")
        if "mmbench" in name
        else ("chiasmus", "apostrophe")
    )
    assert benchmark(name).score(row([right], options=options), prediction) == (
        float(score),
        bool(score),
    )


TEN = ["yes"] * 4 + ["no"] * 3 + ["maybe"] * 2 + ["a  Dog!"]


@pytest.mark.parametrize("name", ["vqav2", "textvqa", "vizwiz"])
@pytest.mark.parametrize(
    ("prediction", "score"),
    [
        ("Yes.", 1.0),
        ("no", 0.9),
        ("Maybe", 0.6),
        ("the dog", 0.3),
        ("yes, because", 0.0),
        ("", 0.0),
        (REFUSAL, 0.0),
    ],
)
def test_vqa_score_of_ten_answers(name: str, prediction: str, score: float) -> None:
    result = benchmark(name).score(row(TEN), prediction)
    assert result.score == pytest.approx(score)
    assert result.correct is (score == 1.0)
    assert benchmark(name).score(row([]), prediction) == (None, None)


@pytest.mark.parametrize(
    ("prediction", "score"),
    [("2", 1), ("Two.", 1), ("Café!", 1), ("CAFE", 0), ("A.", 0), ("(a)", 0), ("two or café", 0)],
)
def test_vqa_score_of_a_tie_is_full_for_both_answers(prediction: str, score: int) -> None:
    assert benchmark("vqav2").score(row(["two", "café"] * 5), prediction) == (
        float(score),
        bool(score),
    )


def test_accuracy_equals_its_leave_one_out_definition() -> None:
    """Compare with the mean over people of min(1, others who agree / 3)."""
    for same in range(11):
        answers = ["x"] * same + ["y"] * (10 - same)
        each = [min(1.0, (answers[:out] + answers[out + 1 :]).count("x") / 3) for out in range(10)]
        assert accuracy("x", answers) == pytest.approx(sum(each) / 10)


@pytest.mark.parametrize(
    ("prediction", "compared"),
    [
        ("Two dogs.", "2 dogs"),
        ("It's a cat", "it 's cat"),
        ("1,000", "1000"),
        ("U.S.A.", "usa"),
        ("3.5", "3.5"),
        ("2.", "2"),
        ("none", "0"),
        ("a/b", "b"),
        ("half-time", "half time"),
        ("10:30", "10:30"),
        ("$5.00", "$5.00"),
        ("the", ""),
        ("Coca-Cola, Inc.", "coca cola inc"),
        ("dont", "don't"),
        ("St. John's", "st john 's"),
        ("IM", "im"),
        ("oclock", "o'clock"),
        ("Yall'll", "y'all'll"),
        ("3 p.m.", "3 pm"),
        ("-5", "5"),
        ("a - b", "b"),
        ("no.1", "no.1"),
        ("(red)", "red"),
        ("black\nand\twhite", "black and white"),
        ("What's up?", "what 's up"),
        ("naïve", "naïve"),
        ("." * 40, "." * 8),
        ("?!", ""),
    ],
)
def test_normalised_answer_equals_the_servers(prediction: str, compared: str) -> None:
    assert normalised(prediction) == compared

"""`reads_question` is true of the methods that keep other tokens for another question."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from transformers import BatchFeature

from apet import attach
from apet.methods import METHODS
from apet.methods.base import Method
from tests.support import tiny
from tests.support.attached import build_method, kept_indices, model

QUESTIONS = ["What is this?", "How many red birds sit in the tree, and why?"]
PICTURES = [tiny.image(30, 20, 1), tiny.image(50, 20, 2)]
READING = [name for name, method in METHODS.items() if method.reads_question]


@cache
def inputs(family: str, questions: tuple[str, ...]) -> BatchFeature:
    """A picture for each of these questions."""
    pairs = zip(questions, PICTURES, strict=True)
    return tiny.inputs(family, [{"text": text, "images": [picture]} for text, picture in pairs])


@torch.no_grad()
def kept_tokens(
    family: str, method: Method, questions: tuple[str, ...]
) -> list[dict[str, list[int]]]:
    """The tokens of each picture that are left after each site."""
    core = model(family)
    with attach(core, method, keep_index=True) as run:
        run.seeds = [3, 4]  # of the pictures
        core(**inputs(family, questions), use_cache=True)
        return [kept_indices(stats) for stats in run.stats]


@pytest.mark.parametrize("family", tiny.FAMILIES)
@pytest.mark.parametrize("name", [name for name in METHODS if name not in READING])
def test_exchanged_questions_keep_the_same_tokens(family: str, name: str) -> None:
    if (family, name) == ("llava_onevision", "visionzip"):
        pytest.skip("this model's tokens are not the tower's")
    method = build_method(name, family)
    kept, exchanged = (
        kept_tokens(family, method, questions)
        for questions in (tuple(QUESTIONS), tuple(QUESTIONS[::-1]))
    )
    assert kept == exchanged
    assert name == "vanilla" or all(kept)


@pytest.mark.parametrize("name", READING)
def test_methods_that_read_the_question_keep_other_tokens(name: str) -> None:
    method = build_method(name, "llava")
    assert kept_tokens("llava", method, tuple(QUESTIONS)) != kept_tokens(
        "llava", method, tuple(QUESTIONS[::-1])
    )


def test_methods_of_the_decoder_read_the_question() -> None:
    assert READING == ["fastv", "sparsevlm", "pdrop", "dart"]

"""What the tests of attaching share: four unequal rows a family, tiny models, methods, and what they answer.

Models, inputs and answers are made once for all of these tests; the models are attached to again and again.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from functools import cache
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor
from transformers import BatchFeature, GenerationMixin, PreTrainedModel

from apet import attach
from apet.attach.prefill import RowStats
from apet.methods import METHODS
from apet.methods.base import Method
from apet.methods.decoder import DecoderMethod
from tests.support import tiny

STEPS = 3
CLOSE = {"rtol": 0, "atol": 1e-4}
REFUSED = {("llava_onevision", "visionzip")}  # its tokens are no patches of the tower
FEW = ("apet", "sparsevlm", "tome")  # at encoder and decoder, at several layers, inside the tower
PAIRS = [
    (family, name) for family in tiny.FAMILIES for name in METHODS if (family, name) not in REFUSED
]
EITHER = pytest.mark.parametrize("family", tiny.FAMILIES)
EVERY = pytest.mark.parametrize(("family", "name"), PAIRS)


def rows(family: str) -> list[dict[str, Any]]:
    """Unequal in everything: one picture, two, none, and a video with a picture behind it."""
    found = [
        {"text": "What is this?", "images": [tiny.image(30, 20, 1)]},
        {
            "text": "Describe both in detail",
            "images": [tiny.image(50, 20, 2), tiny.image(24, 44, 3)],
        },
        {"text": "No picture, only words, and more of them than most rows have tokens. " * 2},
    ]
    if family in tiny.VIDEO_FAMILIES:
        video = {"videos": [tiny.video(8, 24, 16, 5)], "images": [tiny.image(20, 20, 6)]}
        found.append({"text": "First <video> then <image>?", **video})
    return found


SIZES = {  # of the groups of each medium of each of these rows
    "llava": [[[36]], [[36], [36]], []],
    "llava_next": [[[36, 30, 30]], [[36, 30, 36, 30], [36, 36, 36]], []],
    "qwen2_5_vl": [[[8]], [[12], [18]], [], [[6, 6, 6, 6], [4]]],
    "video_llava": [[[36]], [[36], [36]], [], [[36] * 8, [36]]],
    "qwen3_vl": [[[8]], [[12], [18]], [], [[6, 6, 6, 6], [4]]],
    "llava_onevision": [[[25, 40]], [[25], [25]], [], [[9] * 8, [25, 25]]],
}
VISUAL = {family: [sum(map(sum, media)) for media in found] for family, found in SIZES.items()}


@cache
def model(family: str, attn: str = "sdpa", dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    return tiny.model(family, attn, dtype)


@cache
def batch(family: str) -> BatchFeature:
    return tiny.inputs(family, rows(family))


@cache
def alone(family: str, row: int) -> BatchFeature:
    return tiny.inputs(family, [rows(family)[row]])


def repeatable(family: str) -> list[int]:
    """Rows that `generate` can repeat: before 5.23 it mixed up the pictures of a row with several."""
    mixes = not hasattr(GenerationMixin, "_expand_multimodal_outputs") and "qwen" not in family
    return [row for row in range(len(rows(family))) if row != 1 or not mixes]


@cache
def repeated(family: str) -> BatchFeature:
    return tiny.inputs(family, [rows(family)[row] for row in repeatable(family)])


def make(name: str, family: str, budget: int | str | None = None) -> Method:
    """With a budget that every method can meet: in six layers with DeepStack, the first three see all tokens."""
    if budget is None:
        budget = (
            "70%" if family == "qwen3_vl" and issubclass(METHODS[name], DecoderMethod) else "40%"
        )
    small = {"basis": 4} if "basis" in {field.name for field in fields(METHODS[name])} else {}
    return METHODS[name](budget=budget, **small)


class Answer(NamedTuple):
    ids: Tensor  # (B, n)
    logits: Tensor  # (B, n, vocabulary)
    cache: list[Tensor]  # the keys of each layer


def generate(
    model: PreTrainedModel, inputs: BatchFeature, steps: int = STEPS, **more: Any
) -> Answer:
    options = {"max_new_tokens": steps, "min_new_tokens": steps, **more}
    out = model.generate(**inputs, **options, return_dict_in_generate=True, output_logits=True)
    ids = out.sequences[:, inputs["input_ids"].shape[1] :]
    keys = (
        [layer.keys for layer in out.past_key_values.layers]
        if out.past_key_values is not None
        else []
    )
    return Answer(ids, torch.stack(out.logits, dim=1), keys)


@torch.no_grad()
def prompt(model: PreTrainedModel, inputs: BatchFeature) -> Answer:
    """The first token alone, as `generate` above chooses it: no placeholder, and not the end."""
    out = model(**inputs, use_cache=True, logits_to_keep=1)
    never = torch.tensor(
        [*model.generation_config.suppress_tokens, model.generation_config.eos_token_id]
    )
    ids = out.logits.index_fill(-1, never, -torch.inf).argmax(dim=-1)
    return Answer(ids, out.logits, [layer.keys for layer in out.past_key_values.layers])


@torch.no_grad()
def last_logits(model: PreTrainedModel, inputs: BatchFeature) -> Tensor:
    return model(**inputs).logits[:, -1]


@cache
def plain(family: str, call: Callable[..., Answer] = generate) -> Answer:
    """What the unmodified model answers."""
    return call(model(family), batch(family))


@cache
def compressed(family: str, name: str, row: int | None = None) -> tuple[Answer, list[RowStats]]:
    """What a method makes of the batch, or of one of its rows alone.

    Steps after a prompt depend on how many tokens were dropped where, whoever chose them: rows alone take them with a
    `FEW` methods only, at all kinds of sites.
    """
    with attach(model(family), make(name, family), keep_index=True) as run:
        if row is None:
            return generate(model(family), batch(family)), run.stats
        return (generate if name in FEW else prompt)(model(family), alone(family, row)), run.stats


def index(stats: RowStats) -> dict[str, list[int]]:
    assert stats.index is not None
    return {site: kept.tolist() for site, kept in stats.index.items()}

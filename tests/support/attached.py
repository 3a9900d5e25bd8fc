"""Shared by the tests of attaching: four unequal rows per family, tiny models, methods and answers.

Models, inputs and answers are made once for all tests. Models are attached to again and again.
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
from apet.attach.row_stats import RowStats
from apet.methods import METHODS
from apet.methods.base import Method
from apet.methods.decoder_method import DecoderMethod
from apet.transformers_api import cache_of
from tests.support import tiny

STEPS = 3
CLOSE = {"rtol": 0, "atol": 1e-4}

# One method for each kind of sites: at encoder and decoder, at several layers, inside the tower.
# Every family is tested with each of them.
SITE_KINDS = ("apet", "sparsevlm", "tome")

# The other methods, with the families in which they act in a way of their own.
OTHER_PAIRS = [
    ("llava", "vanilla"),  # no sites
    ("qwen2_5_vl", "apet_greedy"),  # after the projector, with M-RoPE
    ("qwen3_vl", "fastv"),  # DeepStack moves the site
    ("llava_next", "pdrop"),  # several stages, crops
    ("video_llava", "dart"),  # keys of one layer; a decoder site in an encoder-only family
    ("qwen2_5_vl", "dart"),  # keys with M-RoPE
    ("llava", "visionzip"),  # CLS, before the projector
    ("video_llava", "visionzip"),  # CLS has a column of its own
    ("qwen2_5_vl", "visionzip"),  # without CLS, in windows
    ("llava_next", "divprune"),  # after the projector in a family that compresses before it
    ("llava_onevision", "random"),  # seeds of frames and crops
    ("llava_onevision", "uniform"),  # grids of frames and crops
    ("llava_next", "downsample"),  # means before the projector
]
PAIRS = [(family, name) for family in tiny.FAMILIES for name in SITE_KINDS] + OTHER_PAIRS
EVERY_FAMILY = pytest.mark.parametrize("family", tiny.FAMILIES)
EVERY_PAIR = pytest.mark.parametrize(("family", "name"), PAIRS)


def example_rows(family: str) -> list[dict[str, Any]]:
    """Unequal rows: one picture, two pictures, none, and a video with a picture behind it."""
    rows = [
        {"text": "What is this?", "images": [tiny.image(30, 20, 1)]},
        {
            "text": "Describe both in detail",
            "images": [tiny.image(50, 20, 2), tiny.image(24, 44, 3)],
        },
        {"text": "No picture, only words, and more of them than most rows have tokens. " * 2},
    ]
    if family in tiny.VIDEO_FAMILIES:
        media = {"videos": [tiny.video(8, 24, 16, 5)], "images": [tiny.image(20, 20, 6)]}
        rows.append({"text": "First <video> then <image>?", **media})
    return rows


# Visual tokens of each group of each medium of each of these rows.
GROUP_SIZES = {
    "llava": [[[36]], [[36], [36]], []],
    "llava_next": [[[36, 30, 30]], [[36, 30, 36, 30], [36, 36, 36]], []],
    "qwen2_5_vl": [[[8]], [[12], [18]], [], [[6, 6, 6, 6], [4]]],
    "video_llava": [[[36]], [[36], [36]], [], [[36] * 8, [36]]],
    "qwen3_vl": [[[8]], [[12], [18]], [], [[6, 6, 6, 6], [4]]],
    "llava_onevision": [[[25, 40]], [[25], [25]], [], [[9] * 8, [25, 25]]],
}
VISUAL_TOKENS = {
    family: [sum(map(sum, media)) for media in rows] for family, rows in GROUP_SIZES.items()
}


@cache
def model(family: str, attn: str = "sdpa", dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    return tiny.model(family, attn, dtype)


@cache
def batch_inputs(family: str) -> BatchFeature:
    return tiny.inputs(family, example_rows(family))


@cache
def row_inputs(family: str, row: int) -> BatchFeature:
    return tiny.inputs(family, [example_rows(family)[row]])


def expandable_rows(family: str) -> list[int]:
    """Rows that `generate` can repeat: before 5.23 it mixed up the pictures of a row with two."""
    mixes_up = not hasattr(GenerationMixin, "_expand_multimodal_outputs") and "qwen" not in family
    return [row for row in range(len(example_rows(family))) if row != 1 or not mixes_up]


@cache
def expandable_inputs(family: str) -> BatchFeature:
    return tiny.inputs(family, [example_rows(family)[row] for row in expandable_rows(family)])


def build_method(name: str, family: str, budget: int | str | None = None) -> Method:
    """Build a method, by default with a budget that it can meet in this family.

    In six layers with DeepStack, the first three see all tokens.
    """
    if budget is None:
        late = family == "qwen3_vl" and issubclass(METHODS[name], DecoderMethod)
        budget = "70%" if late else "40%"
    small = {"basis": 4} if "basis" in {field.name for field in fields(METHODS[name])} else {}
    return METHODS[name](budget=budget, **small)


class Answer(NamedTuple):
    ids: Tensor  # (B, n)
    logits: Tensor  # (B, n, vocabulary)
    cache: list[Tensor]  # the keys of each layer


def generate(
    model: PreTrainedModel, inputs: BatchFeature, steps: int = STEPS, **options: Any
) -> Answer:
    options = {"max_new_tokens": steps, "min_new_tokens": steps, **options}
    out = model.generate(**inputs, **options, return_dict_in_generate=True, output_logits=True)
    ids = out.sequences[:, inputs["input_ids"].shape[1] :]
    kv_cache = cache_of(out)
    layers = () if kv_cache is None else kv_cache.layers
    return Answer(ids, torch.stack(out.logits, dim=1), [layer.keys for layer in layers])


@torch.no_grad()
def first_token(model: PreTrainedModel, inputs: BatchFeature) -> Answer:
    """The first token as `generate` above chooses it: not a placeholder, and not the end."""
    out = model(**inputs, use_cache=True, logits_to_keep=1)
    config = model.generation_config
    never = torch.tensor([*config.suppress_tokens, config.eos_token_id])
    ids = out.logits.index_fill(-1, never, -torch.inf).argmax(dim=-1)
    return Answer(ids, out.logits, [layer.keys for layer in cache_of(out).layers])


@torch.no_grad()
def last_logits(model: PreTrainedModel, inputs: BatchFeature) -> Tensor:
    return model(**inputs).logits[:, -1]


@cache
def uncompressed(family: str, call: Callable[..., Answer] = generate) -> Answer:
    """The unmodified model's answer to the batch."""
    return call(model(family), batch_inputs(family))


@cache
def compressed(family: str, name: str, row: int | None = None) -> tuple[Answer, list[RowStats]]:
    """The answer with a method attached, to the batch or to one of its rows.

    Steps after a prompt depend on the number of tokens dropped at each site, not on the method. So
    single rows take steps with the methods of `SITE_KINDS` only.
    """
    with attach(model(family), build_method(name, family), keep_index=True) as run:
        if row is None:
            return generate(model(family), batch_inputs(family)), run.stats
        call = generate if name in SITE_KINDS else first_token
        return call(model(family), row_inputs(family, row)), run.stats


def kept_indices(stats: RowStats) -> dict[str, list[int]]:
    assert stats.index is not None
    return {site: index.tolist() for site, index in stats.index.items()}

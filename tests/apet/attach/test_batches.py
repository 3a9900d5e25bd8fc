"""Batches: each row gets the same tokens and the same answer as alone."""

from __future__ import annotations

import pytest
import torch
from transformers import BatchFeature

from apet import attach
from apet.attach.row_stats import RowStats
from apet.attention import packed_kernel
from apet.transformers_api import cache_input, cache_of
from tests.support import tiny
from tests.support.attached import (
    CLOSE,
    EVERY_PAIR,
    STEPS,
    VISUAL_TOKENS,
    batch_inputs,
    build_method,
    compressed,
    example_rows,
    expandable_inputs,
    expandable_rows,
    kept_indices,
    last_logits,
    model,
    row_inputs,
)

# Padding and beams differ by family; packed rows see them in the same way in all.
FAMILY_AND_KERNEL = pytest.mark.parametrize(
    ("family", "attn"),
    [*((family, "sdpa") for family in tiny.FAMILIES), ("llava", packed_kernel.NAME)],
)


@EVERY_PAIR
def test_rows_of_a_batch_get_the_same_as_alone(family: str, name: str) -> None:
    together, stats = compressed(family, name)
    for row in range(len(example_rows(family))):
        one, one_stats = compressed(family, name, row)
        assert kept_indices(one_stats[0]) == kept_indices(stats[row])
        assert one_stats[0].kept == stats[row].kept
        assert one_stats[0].budget == stats[row].budget
        torch.testing.assert_close(
            one.logits[0], together.logits[row, : one.logits.shape[1]], **CLOSE
        )
        assert torch.equal(one.ids[0], together.ids[row, : one.ids.shape[1]])


def pad_right(inputs: BatchFeature) -> BatchFeature:
    pads = (inputs["attention_mask"] == 0).sum(dim=1).tolist()
    moved = {
        key: torch.stack(
            [value.roll(-pad, 0) for value, pad in zip(inputs[key], pads, strict=True)]
        )
        for key in ("input_ids", "attention_mask", "mm_token_type_ids")
        if key in inputs
    }
    return BatchFeature({**inputs, **moved})


@FAMILY_AND_KERNEL
@torch.no_grad()
def test_right_padded_rows_get_the_same_as_alone(family: str, attn: str) -> None:
    """In the prompt and in steps with positions from the caller, as for the unmodified model."""
    inputs, core = pad_right(batch_inputs(family)), model(family, attn)
    want = [compressed(family, "apet", row) for row in range(len(example_rows(family)))]
    qwen = "qwen" in family
    positions = inputs["attention_mask"].sum(dim=1, keepdim=True)  # of the first new token
    for row, visual in enumerate(VISUAL_TOKENS[family] if qwen else ()):
        core(**row_inputs(family, row))
        positions[row] += core.model.rope_deltas[0, 0] if visual else 0
    with attach(core, build_method("apet", family), keep_index=True) as run:
        out = core(**inputs, use_cache=True)
        for row, (one, (stats,)) in enumerate(want):
            assert kept_indices(run.stats[row]) == kept_indices(stats)
            gone = VISUAL_TOKENS[family][row] - list(stats.kept.values() or [0])[-1]
            last = int(inputs["attention_mask"][row].sum()) - gone - 1
            torch.testing.assert_close(out.logits[row, last], one.logits[0, 0], **CLOSE)
        mask = inputs["attention_mask"]
        for step in range(STEPS - 1):
            ids = torch.cat([one.ids[:, step : step + 1] for one, _ in want])
            mask, here = torch.cat([mask, torch.ones_like(ids)], dim=1), positions + step
            out = core(
                input_ids=ids,
                attention_mask=mask,
                position_ids=here.expand(3, -1, -1) if qwen else here,
                **cache_input(core, cache_of(out)),
            )
            for row, (one, _) in enumerate(want):
                torch.testing.assert_close(out.logits[row, 0], one.logits[0, step + 1], **CLOSE)


@FAMILY_AND_KERNEL
def test_beams_of_a_row_keep_the_same_tokens_as_alone(family: str, attn: str) -> None:
    options, core = {"max_new_tokens": STEPS, "num_beams": 2}, model(family, attn)
    with attach(core, build_method("apet", family), keep_index=True) as run:
        together, stats = core.generate(**expandable_inputs(family), **options), run.stats
        assert len(stats) == 2 * len(expandable_rows(family))
        for number, row in enumerate(expandable_rows(family)):
            assert kept_indices(stats[2 * number]) == kept_indices(stats[2 * number + 1])
            one = core.generate(**row_inputs(family, row), **options)
            assert kept_indices(stats[2 * number]) == kept_indices(run.stats[0])
            new = one.shape[1] - row_inputs(family, row)["input_ids"].shape[1]
            assert (
                one[0, -new:].tolist()
                == together[number, expandable_inputs(family)["input_ids"].shape[1] :][
                    :new
                ].tolist()
            )


# ---- half precision

# At most this share of a row's tokens may differ.
MAX_SWAPPED = 1 / 8
# Logits may differ by this; the unmodified model's differ by 0.1 between batches.
MAX_LOGIT_DIFFERENCE = 0.25


@pytest.mark.parametrize(
    ("family", "name"),
    [
        ("llava", "apet"),
        ("llava_next", "sparsevlm"),
        ("qwen2_5_vl", "tome"),
        ("qwen2_5_vl", "fastv"),
        ("video_llava", "visionzip"),
        ("qwen3_vl", "apet_greedy"),
        ("llava_onevision", "dart"),
        ("llava_onevision", "divprune"),
    ],
)
def test_rows_of_a_bfloat16_batch_get_nearly_the_same_as_alone(family: str, name: str) -> None:
    """The rounding of matrix products depends on their shape, so near-ties may swap tokens."""
    half, rows = model(family, dtype=torch.bfloat16), (0, 1)
    inputs = tiny.inputs(family, [example_rows(family)[row] for row in rows])
    with attach(half, build_method(name, family), keep_index=True) as run:
        together, batch_stats = last_logits(half, inputs), run.stats
        for row, logits, stats in zip(rows, together, batch_stats, strict=True):
            alone = last_logits(half, row_inputs(family, row))[0]
            assert stats.kept == run.stats[0].kept
            swapped = swapped_tokens(stats, run.stats[0])
            assert swapped <= MAX_SWAPPED * stats.visual_tokens
            if not swapped:
                torch.testing.assert_close(
                    alone.float(), logits.float(), rtol=0, atol=MAX_LOGIT_DIFFERENCE
                )


def swapped_tokens(one: RowStats, other: RowStats) -> int:
    """The number of tokens that one run kept at a site and the other did not."""
    sites = zip(kept_indices(one).values(), kept_indices(other).values(), strict=True)
    return sum(len(set(here) - set(there)) for here, there in sites)

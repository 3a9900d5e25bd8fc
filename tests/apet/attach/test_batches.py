"""Rows do not notice their batch: each gets what it gets alone, for every family and method."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from transformers import BatchFeature

from apet import attach
from apet.attach.prefill import RowStats
from apet.attention import packed_kernel
from tests.support import tiny
from tests.support.attached import (
    CLOSE,
    EITHER,
    EVERY,
    STEPS,
    VISUAL,
    alone,
    batch,
    compressed,
    index,
    last_logits,
    make,
    model,
    repeatable,
    repeated,
    rows,
)


@EVERY
def test_a_batch_is_its_rows(family: str, name: str) -> None:
    together, stats = compressed(family, name)
    for row in range(len(rows(family))):
        one, one_stats = compressed(family, name, row)
        assert index(one_stats[0]) == index(stats[row])
        assert one_stats[0].kept == stats[row].kept
        assert one_stats[0].budget == stats[row].budget
        torch.testing.assert_close(
            one.logits[0], together.logits[row, : one.logits.shape[1]], **CLOSE
        )
        assert torch.equal(one.ids[0], together.ids[row, : one.ids.shape[1]])


def padded_right(inputs: BatchFeature) -> BatchFeature:
    pads = (inputs["attention_mask"] == 0).sum(dim=1).tolist()
    moved = {
        key: torch.stack(
            [value.roll(-pad, 0) for value, pad in zip(inputs[key], pads, strict=True)]
        )
        for key in ("input_ids", "attention_mask", "mm_token_type_ids")
        if key in inputs
    }
    return BatchFeature({**inputs, **moved})


@EITHER
@pytest.mark.parametrize("attn", ["sdpa", packed_kernel.NAME])
@torch.no_grad()
def test_right_padding(family: str, attn: str) -> None:
    """The prompt and the steps after it, whose positions a caller gives, as for the unmodified model."""
    inputs, core = padded_right(batch(family)), model(family, attn)
    want = [compressed(family, "apet", row) for row in range(len(rows(family)))]
    qwen = "qwen" in family
    positions = inputs["attention_mask"].sum(dim=1, keepdim=True)  # of the first new token
    for row, visual in enumerate(VISUAL[family] if qwen else ()):
        core(**alone(family, row))
        positions[row] += core.model.rope_deltas[0, 0] if visual else 0
    with attach(core, make("apet", family), keep_index=True) as run:
        out = core(**inputs, use_cache=True)
        for row, (one, (stats,)) in enumerate(want):
            assert index(run.stats[row]) == index(stats)
            gone = VISUAL[family][row] - list(stats.kept.values() or [0])[-1]
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
                past_key_values=out.past_key_values,
            )
            for row, (one, _) in enumerate(want):
                torch.testing.assert_close(out.logits[row, 0], one.logits[0, step + 1], **CLOSE)


@EITHER
@pytest.mark.parametrize("attn", ["sdpa", packed_kernel.NAME])
def test_beams(family: str, attn: str) -> None:
    options, core = {"max_new_tokens": STEPS, "num_beams": 2}, model(family, attn)
    with attach(core, make("apet", family), keep_index=True) as run:
        together, stats = core.generate(**repeated(family), **options), run.stats
        assert len(stats) == 2 * len(repeatable(family))
        for place, row in enumerate(repeatable(family)):
            assert index(stats[2 * place]) == index(stats[2 * place + 1])
            one = core.generate(**alone(family, row), **options)
            assert index(stats[2 * place]) == index(run.stats[0])
            new = one.shape[1] - alone(family, row)["input_ids"].shape[1]
            assert (
                one[0, -new:].tolist()
                == together[place, repeated(family)["input_ids"].shape[1] :][:new].tolist()
            )


# ---- half precision

SWAPS, LOGITS = (
    1 / 8,
    0.25,
)  # of a row's tokens; of logits, which the unmodified model's batch moves by 0.1

PADDED = (0, 1)


@cache
def two(family: str) -> BatchFeature:
    return tiny.inputs(family, [rows(family)[row] for row in PADDED])


@EVERY
def test_a_batch_is_its_rows_in_bfloat16(family: str, name: str) -> None:
    """Matrix products round differently with their shape: a near tie may fall otherwise, logits move a little."""
    half = model(family, dtype=torch.bfloat16)
    with attach(half, make(name, family), keep_index=True) as run:
        together, both = last_logits(half, two(family)), run.stats
        for row, logits, stats in zip(PADDED, together, both, strict=True):
            one = last_logits(half, alone(family, row))[0]
            assert stats.kept == run.stats[0].kept
            swaps = swapped(stats, run.stats[0])
            assert swaps <= SWAPS * stats.visual_tokens
            if not swaps:
                torch.testing.assert_close(one.float(), logits.float(), rtol=0, atol=LOGITS)


def swapped(one: RowStats, other: RowStats) -> int:
    """How many tokens one kept at a site and the other did not."""
    kept = zip(index(one).values(), index(other).values(), strict=True)
    return sum(len(set(here) - set(there)) for here, there in kept)

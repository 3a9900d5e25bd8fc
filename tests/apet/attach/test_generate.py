"""`generate` and `forward` do what they always do: caches or none, ends, loops of one's own."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from transformers import BatchFeature

from apet import ApET, attach
from apet.attention import packed_kernel
from tests.support.attached import (
    CLOSE,
    EITHER,
    STEPS,
    VISUAL,
    alone,
    batch,
    compressed,
    generate,
    index,
    last_logits,
    make,
    model,
    plain,
    prompt,
    rows,
)


@EITHER
@pytest.mark.parametrize("attn", ["sdpa", packed_kernel.NAME])
def test_without_a_cache(family: str, attn: str) -> None:
    want, _ = compressed(family, "apet")
    core = model(family, attn)
    with attach(core, make("apet", family), keep_index=True) as run:
        answer = generate(core, batch(family), use_cache=False)
        assert [stats.visual_tokens for stats in run.stats] == VISUAL[family]
        again = generate(core, alone(family, 0))  # nothing is left of the batch before
    assert torch.equal(answer.ids, want.ids)
    torch.testing.assert_close(answer.logits, want.logits, **CLOSE)
    torch.testing.assert_close(again.logits[0], want.logits[0], **CLOSE)


@EITHER
def test_a_row_stops_at_the_end(family: str) -> None:
    want, _ = compressed(family, "apet")
    end = int(want.ids[0, -1])
    last = want.ids[0].tolist().index(end) + 1
    with attach(model(family), make("apet", family)):
        out = model(family).generate(**batch(family), max_new_tokens=6, eos_token_id=end)
    new = out[:, batch(family)["input_ids"].shape[1] :]
    pad = model(family).generation_config.pad_token_id
    assert new[0].tolist() == [*want.ids[0, :last].tolist(), *[pad] * (new.shape[1] - last)]
    assert new.shape[1] <= 6
    with attach(model(family), make("apet", family)):
        one = model(family).generate(**alone(family, 0), max_new_tokens=6, eos_token_id=end)
    assert one.shape[1] == alone(family, 0)["input_ids"].shape[1] + last


def longer(inputs: BatchFeature, ids: Tensor) -> BatchFeature:
    """The inputs with further tokens (B, n) behind them."""
    more = {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "mm_token_type_ids": torch.zeros_like(ids),
    }
    grown = {
        key: torch.cat([inputs[key], value], dim=1) for key, value in more.items() if key in inputs
    }
    return BatchFeature({**inputs, **grown})


@EITHER
@torch.no_grad()
def test_steps_equal_a_fresh_run(family: str) -> None:
    """Of the whole sequence: nothing that a step sees is out of place."""
    want, stats = compressed(family, "apet")
    for row in range(len(rows(family))):
        one, _ = compressed(family, "apet", row)
        with attach(model(family), make("apet", family), keep_index=True) as run:
            for step in range(1, STEPS):
                logits = last_logits(model(family), longer(alone(family, row), one.ids[:, :step]))
                torch.testing.assert_close(logits[0], want.logits[row, step], **CLOSE)
                assert index(run.stats[0]) == index(stats[row])


@EITHER
@torch.no_grad()
def test_a_site_at_the_decoder_s_first_layer(family: str) -> None:
    """All layers' caches are then shorter than what entered, and positions are counted from what entered."""
    if family == "qwen3_vl":
        return  # allows none so early
    core, inputs = model(family), alone(family, 0)
    with attach(core, ApET(schedule="encoder=80%,0=40%", basis=3)):
        answer = generate(core, inputs)
        out = core(**inputs, use_cache=True)
        for step in range(STEPS):
            fresh = (
                last_logits(core, longer(inputs, answer.ids[:, :step]))
                if step
                else out.logits[:, -1]
            )
            torch.testing.assert_close(answer.logits[:, step], fresh, **CLOSE)
    with attach(core, ApET(schedule="encoder=80%,0=40%", basis=3)):
        out = core(**inputs, use_cache=True)
        for step in range(STEPS):
            torch.testing.assert_close(out.logits[:, -1], answer.logits[:, step], **CLOSE)
            out = core(
                input_ids=answer.ids[:, step : step + 1], past_key_values=out.past_key_values
            )


@torch.no_grad()
def test_a_cache_that_was_cut_back_is_refused() -> None:
    core, inputs = model("llava"), alone("llava", 0)
    with attach(core, make("apet", "llava")):
        cache = core(**inputs, use_cache=True).past_key_values
        cache.crop(-2)
        with pytest.raises(ValueError, match="cut back by 2 tokens into the compressed prompt"):
            core(input_ids=inputs["input_ids"][:, -2:], past_key_values=cache)
    with attach(core, make("apet", "llava", "100%")):  # where nothing was compressed, it may be
        cache = core(**inputs, use_cache=True).past_key_values
        cache.crop(-2)
        again = core(input_ids=inputs["input_ids"][:, -2:], past_key_values=cache).logits[:, -1]
    torch.testing.assert_close(again, plain("llava", prompt).logits[:1, 0], **CLOSE)


@EITHER
@torch.no_grad()
def test_forward_step_by_step(family: str) -> None:
    """A loop of one's own, with no more than ids and the cache, or with a mask for a padded batch."""
    want, _ = compressed(family, "apet", 0)
    with attach(model(family), make("apet", family)):
        out = model(family)(**alone(family, 0), use_cache=True)
        for step in range(STEPS):
            torch.testing.assert_close(out.logits[:, -1], want.logits[:, step], **CLOSE)
            out = model(family)(
                input_ids=want.ids[:, step : step + 1], past_key_values=out.past_key_values
            )

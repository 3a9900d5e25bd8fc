"""`generate` and `forward` behave as usual: with a cache or without, to the end, in other loops."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from transformers import BatchFeature

from apet import ApET, attach
from apet.attention import packed_kernel
from apet.transformers_api import cache_input, cache_of
from tests.support import tiny
from tests.support.attached import (
    CLOSE,
    EVERY_FAMILY,
    STEPS,
    VISUAL_TOKENS,
    batch_inputs,
    build_method,
    compressed,
    example_rows,
    first_token,
    generate,
    kept_indices,
    last_logits,
    model,
    row_inputs,
    uncompressed,
)


@pytest.mark.parametrize(
    ("family", "attn"),
    [*((family, "sdpa") for family in tiny.FAMILIES), ("llava", packed_kernel.NAME)],
)
def test_generate_without_a_cache_gives_the_same_answer(family: str, attn: str) -> None:
    want, _ = compressed(family, "apet")
    core = model(family, attn)
    with attach(core, build_method("apet", family), keep_index=True) as run:
        answer = generate(core, batch_inputs(family), use_cache=False)
        assert [stats.visual_tokens for stats in run.stats] == VISUAL_TOKENS[family]
        again = generate(core, row_inputs(family, 0))  # nothing is left of the batch before
    assert torch.equal(answer.ids, want.ids)
    torch.testing.assert_close(answer.logits, want.logits, **CLOSE)
    torch.testing.assert_close(again.logits[0], want.logits[0], **CLOSE)


@pytest.mark.parametrize("family", ["llava", "qwen3_vl"])
def test_row_stops_at_its_end(family: str) -> None:
    want, _ = compressed(family, "apet")
    end = int(want.ids[0, -1])
    last = want.ids[0].tolist().index(end) + 1
    with attach(model(family), build_method("apet", family)):
        out = model(family).generate(**batch_inputs(family), max_new_tokens=6, eos_token_id=end)
    new = out[:, batch_inputs(family)["input_ids"].shape[1] :]
    pad = model(family).generation_config.pad_token_id
    assert new[0].tolist() == [*want.ids[0, :last].tolist(), *[pad] * (new.shape[1] - last)]
    assert new.shape[1] <= 6
    with attach(model(family), build_method("apet", family)):
        one = model(family).generate(**row_inputs(family, 0), max_new_tokens=6, eos_token_id=end)
    assert one.shape[1] == row_inputs(family, 0)["input_ids"].shape[1] + last


def append_tokens(inputs: BatchFeature, ids: Tensor) -> BatchFeature:
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


@EVERY_FAMILY
@torch.no_grad()
def test_steps_equal_a_new_prompt_with_the_same_tokens(family: str) -> None:
    """Everything a step sees has the right position."""
    want, stats = compressed(family, "apet")
    for row in range(len(example_rows(family))):
        one, _ = compressed(family, "apet", row)
        with attach(model(family), build_method("apet", family), keep_index=True) as run:
            for step in range(1, STEPS):
                logits = last_logits(
                    model(family), append_tokens(row_inputs(family, row), one.ids[:, :step])
                )
                torch.testing.assert_close(logits[0], want.logits[row, step], **CLOSE)
                assert kept_indices(run.stats[0]) == kept_indices(stats[row])


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl", "llava_onevision"])
@torch.no_grad()
def test_site_at_the_first_decoder_layer_keeps_positions(family: str) -> None:
    """All caches are then shorter than the decoder's input, which positions are counted from."""
    core, inputs = model(family), row_inputs(family, 0)
    with attach(core, ApET(schedule="encoder=80%,0=40%", basis=3)):
        answer = generate(core, inputs)
        out = core(**inputs, use_cache=True)
        for step in range(STEPS):
            fresh = (
                last_logits(core, append_tokens(inputs, answer.ids[:, :step]))
                if step
                else out.logits[:, -1]
            )
            torch.testing.assert_close(answer.logits[:, step], fresh, **CLOSE)
    with attach(core, ApET(schedule="encoder=80%,0=40%", basis=3)):
        out = core(**inputs, use_cache=True)
        for step in range(STEPS):
            torch.testing.assert_close(out.logits[:, -1], answer.logits[:, step], **CLOSE)
            out = core(input_ids=answer.ids[:, step : step + 1], **cache_input(core, cache_of(out)))


@torch.no_grad()
def test_cropped_cache_is_refused_after_compression() -> None:
    core, inputs = model("llava"), row_inputs("llava", 0)
    with attach(core, build_method("apet", "llava")):
        cache = cache_of(core(**inputs, use_cache=True))
        cache.crop(-2)
        with pytest.raises(ValueError, match="cut back by 2 tokens into the compressed prompt"):
            core(input_ids=inputs["input_ids"][:, -2:], **cache_input(core, cache))
    # Without compression it is allowed.
    with attach(core, build_method("apet", "llava", "100%")):
        cache = cache_of(core(**inputs, use_cache=True))
        cache.crop(-2)
        again = core(input_ids=inputs["input_ids"][:, -2:], **cache_input(core, cache)).logits[
            :, -1
        ]
    torch.testing.assert_close(again, uncompressed("llava", first_token).logits[:1, 0], **CLOSE)


@EVERY_FAMILY
@torch.no_grad()
def test_forward_in_a_loop_gives_the_answer_of_generate(family: str) -> None:
    """Each step gets only ids and the cache."""
    want, _ = compressed(family, "apet", 0)
    core = model(family)
    with attach(core, build_method("apet", family)):
        out = core(**row_inputs(family, 0), use_cache=True)
        for step in range(STEPS):
            torch.testing.assert_close(out.logits[:, -1], want.logits[:, step], **CLOSE)
            out = core(input_ids=want.ids[:, step : step + 1], **cache_input(core, cache_of(out)))

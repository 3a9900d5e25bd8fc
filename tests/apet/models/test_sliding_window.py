"""A decoder with a sliding window: LLaVA with Mistral."""

from __future__ import annotations

import pytest
import torch
from transformers import BatchFeature, MistralConfig, PreTrainedModel

from apet import ApET, attach
from apet.attention import packed_kernel
from apet.methods import build
from tests.support import tiny

ROWS = [
    {"text": "What is this?", "images": [tiny.image(30, 20, 1)]},
    {"text": "And these two?", "images": [tiny.image(50, 20, 2), tiny.image(24, 44, 3)]},
    {"text": "none"},
]
STEPS = 4


def mistral(window: int) -> PreTrainedModel:
    config = tiny.model("llava").config
    llama = config.text_config.to_dict()
    same = (
        "vocab_size",
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
    )
    config.text_config = MistralConfig(
        **{name: llama[name] for name in same}, num_key_value_heads=2, sliding_window=window
    )
    return tiny.build(config)


def answer(model: PreTrainedModel, inputs: BatchFeature) -> tuple[list[list[int]], torch.Tensor]:
    out = model.generate(
        **inputs,
        max_new_tokens=STEPS,
        min_new_tokens=STEPS,
        return_dict_in_generate=True,
        output_logits=True,
    )
    return out.sequences[:, inputs["input_ids"].shape[1] :].tolist(), torch.stack(out.logits, dim=1)


@pytest.mark.parametrize("name", ["apet", "fastv", "uniform"])
def test_full_budget_keeps_the_window(name: str) -> None:
    model, inputs = mistral(40), tiny.inputs("llava", ROWS)
    with attach(model, build(name, budget="100%")):
        found = answer(model, inputs)
    ids, logits = answer(model, inputs)
    assert found[0] == ids
    assert torch.equal(found[1], logits)
    assert not torch.allclose(
        logits, answer(mistral(4000), inputs)[1]
    )  # the window is narrow enough to matter


@pytest.mark.parametrize("name", ["apet", "uniform", "tome"])
@pytest.mark.parametrize("attn", ["sdpa", packed_kernel.NAME])
def test_sites_before_decoder_shorten_the_prompt(name: str, attn: str) -> None:
    model = mistral(30)
    model.set_attn_implementation(attn)
    method = build(name, schedule="encoder=16") if name == "apet" else build(name, budget=16)
    with attach(model, method) as run:
        ids, logits = answer(model, tiny.inputs("llava", ROWS))
        assert [row.budget for row in run.stats] == [16, 32, 0]
        for row, one in enumerate(ROWS):
            alone_ids, alone = answer(model, tiny.inputs("llava", [one]))
            assert alone_ids[0] == ids[row]
            torch.testing.assert_close(alone[0], logits[row], rtol=0, atol=1e-4)


def test_site_inside_decoder_is_refused() -> None:
    model, inputs = mistral(40), tiny.inputs("llava", ROWS)
    with (
        pytest.raises(ValueError, match=r"layer 3.*40 tokens back.*schedule='encoder=10%'"),
        attach(model, ApET(budget=16)),
    ):
        model(**inputs)


@torch.no_grad()
def test_window_longer_than_prompt_changes_nothing() -> None:
    inputs = tiny.inputs("llava", ROWS)
    wide, just = mistral(4000), mistral(int(inputs["input_ids"].shape[1]))
    with attach(wide, ApET(budget=30)), attach(just, ApET(budget=30)):
        assert torch.equal(wide(**inputs).logits, just(**inputs).logits)


def test_answer_longer_than_window_is_refused() -> None:
    inputs = tiny.inputs("llava", ROWS[:1])
    model = mistral(int(inputs["input_ids"].shape[1]) - 6)  # the encoder's site drops 6
    with (
        pytest.raises(ValueError, match=r"with the answer so far.*tokens back"),
        attach(model, ApET(budget=20)),
    ):
        answer(model, inputs)
